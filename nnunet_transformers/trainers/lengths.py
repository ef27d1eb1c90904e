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
        _variant(trainer, schedule_name(trainer.__name__, epochs), f"for {epochs} epochs", epochs)
        for trainer in trainers
        for epochs in SCHEDULES
    ]
    return {variant.__name__: variant for variant in variants}


def with_demo(trainer: type[TransformerTrainer]) -> dict[str, type[TransformerTrainer]]:
    """Create ``XDemo`` of a trainer ``X``: minutes on a CPU instead of weeks.

    It is too short for augmentation to help: after 308 iterations on hippocampus QT-UNet T has a Dice of 0.834 without
    and 0.783 with it (``benchmarks/NOTES.md``).

    Returns:
        name to class, as ``with_schedules``.
    """
    name = demo_name(trainer.__name__)
    purpose = "for a first look: 12 epochs of 20 iterations, without augmentation"
    return {name: _variant(trainer, name, purpose, 12, default_iterations=20, augmentation="none")}


def _variant(
    trainer: type[TransformerTrainer], name: str, purpose: str, epochs: int, **attributes: Any
) -> type[TransformerTrainer]:
    """Create a trainer whose name states its epochs, and their iterations if they are among the attributes."""
    stated = {"epochs"} | ({"iterations_per_epoch"} if "default_iterations" in attributes else set())
    attributes |= {"default_epochs": epochs, "stated_by_name": frozenset(stated)}
    attributes |= {"__module__": trainer.__module__, "__doc__": f"{trainer.__name__} {purpose}."}
    return type(name, (trainer,), attributes)
