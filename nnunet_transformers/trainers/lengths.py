"""Trainer variants with other lengths: nnU-Net's schedules, named as its own, and the demo's."""

from __future__ import annotations

from ..discovery import SCHEDULES, demo_name, schedule_name
from .trainer import TransformerTrainer


def with_schedules(*trainers: type[TransformerTrainer]) -> dict[str, type[TransformerTrainer]]:
    """Create ``X_1epoch``, ``X_5epochs`` ... of each trainer ``X``.

    Returns:
        name to class, to be added to the module that defines the trainers: a class is pickled by module and name.
    """
    variants = {}
    for trainer in trainers:
        for epochs in SCHEDULES:
            name = schedule_name(trainer.__name__, epochs)
            attributes = {
                "default_epochs": epochs,
                "states_epochs": True,
                "__module__": trainer.__module__,
                "__doc__": f"{trainer.__name__} for {epochs} epochs.",
            }
            variants[name] = type(name, (trainer,), attributes)
    return variants


def with_demo(trainer: type[TransformerTrainer]) -> dict[str, type[TransformerTrainer]]:
    """Create ``XDemo`` of a trainer ``X``: minutes on a CPU instead of weeks.

    Returns:
        name to class, as ``with_schedules``.
    """
    name = demo_name(trainer.__name__)
    attributes = {
        "default_epochs": 12,
        "default_iterations": 20,
        "__module__": trainer.__module__,
        "__doc__": f"{trainer.__name__} for a first look on a CPU: 12 epochs of 20 iterations.",
    }
    return {name: type(name, (trainer,), attributes)}
