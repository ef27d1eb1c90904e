"""Trainer variants with other lengths: nnU-Net's schedules, named as its own, and the demo's."""

from __future__ import annotations

from typing import Any

from ..discovery import SCHEDULES, demo_name, schedule_name
from .trainer import TransformerTrainer


def with_schedules(*trainers: type[TransformerTrainer]) -> dict[str, type[TransformerTrainer]]:
    """Create ``X_1epoch``, ``X_5epochs`` ... of each trainer ``X``.

    Returns:
        name to class, to be added to the module that defines the trainers: a class is pickled by module and name.
    """
    variants = [
        _variant(trainer, schedule_name(trainer.__name__, epochs), f"for {epochs} epochs", epochs, states_epochs=True)
        for trainer in trainers
        for epochs in SCHEDULES
    ]
    return {variant.__name__: variant for variant in variants}


def with_demo(trainer: type[TransformerTrainer]) -> dict[str, type[TransformerTrainer]]:
    """Create ``XDemo`` of a trainer ``X``: minutes on a CPU instead of weeks.

    Returns:
        name to class, as ``with_schedules``.
    """
    name = demo_name(trainer.__name__)
    return {name: _variant(trainer, name, "for a first look: 12 epochs of 20 iterations", 12, default_iterations=20)}


def _variant(
    trainer: type[TransformerTrainer], name: str, purpose: str, epochs: int, **attributes: Any
) -> type[TransformerTrainer]:
    doc = f"{trainer.__name__} {purpose}."
    return type(
        name, (trainer,), {"default_epochs": epochs, "__module__": trainer.__module__, "__doc__": doc, **attributes}
    )
