"""Trainer variants with other schedule lengths, named as nnU-Net's own."""

from __future__ import annotations

from ..discovery import SCHEDULES, schedule_name
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
