"""Settings of the training in a plan: the entry ``training`` of a configuration, which our trainers follow."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

ENTRY = "training"
# an epoch has as many samples as the fold has training cases
CASES = "cases"
# axes along which no two labels lie in the same order in most cases
UNORDERED = "unordered"

Optimiser = Literal["adamw", "adam"]
Schedule = Literal["polynomial", "cosine", "constant"]
Augmentation = Literal["nnunet", "mirroring", "none"]
Oversampling = Literal["share of the batch", "probability"]


@dataclass(frozen=True)
class TrainingSettings:
    """What a plan sets; None leaves it to the trainer.

    Attributes:
        epochs: length of the schedule. A trainer whose name states a length, such as ``_20epochs``, keeps that.
        iterations_per_epoch: optimiser steps of an epoch, or "cases" for as many samples as there are training cases.
        learning_rate: highest rate of the schedule.
        weight_decay: of all parameters but norms, biases and position tables.
        optimiser: "adamw" or "adam".
        schedule: "polynomial" with nnU-Net's power of 0.9, "cosine" or "constant".
        warmup_fraction: fraction of the schedule with a rising rate.
        clip_grad_norm: norm to which gradients are clipped, after nnU-Net's 12.
        dice_weight, ce_weight: weights of the two terms of nnU-Net's loss.
        focal_weight: weight of a focal loss that takes the place of cross-entropy; without one there is none.
        layer_decay, frozen_fraction: as the trainers' attributes, for pretrained encoders.
        deep_supervision: whether the auxiliary outputs of the network are trained.
        oversample_foreground: share of samples with a class in their centre; nnU-Net's is 0.33.
        oversampling: how it is kept: as nnU-Net's fixed share of the batch, which at a batch of 1 is 0 or 1, or as the
            probability of each sample.
        augmentation: "nnunet"; "mirroring" alone; or "none" for pieces of the images as they are.
        mirror_axes: axes of the patch, from 0, that augmentation mirrors and predictions average over; [] for none, or
            "unordered" for those along which no two labels lie in the same order in five of six cases.
        mirroring: whether validation and prediction average over mirrored images, where augmentation mirrors.
        augment_on_device: whether training images are augmented on the GPU rather than by nnU-Net's processes.
        ema_decay: decay of the moving average of the weights that validates and is stored; without one there is none.
        surface_metrics: whether the final validation also computes HD95 and NSD of the whole cases.
        patience: epochs without a lower validation loss after which training ends.
    """

    epochs: int | None = None
    iterations_per_epoch: int | Literal["cases"] | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    optimiser: Optimiser | None = None
    schedule: Schedule | None = None
    warmup_fraction: float | None = None
    clip_grad_norm: float | None = None
    dice_weight: float | None = None
    ce_weight: float | None = None
    focal_weight: float | None = None
    layer_decay: float | None = None
    frozen_fraction: float | None = None
    deep_supervision: bool | None = None
    oversample_foreground: float | None = None
    oversampling: Oversampling | None = None
    augmentation: Augmentation | None = None
    mirror_axes: Sequence[int] | Literal["unordered"] | None = None
    mirroring: bool | None = None
    augment_on_device: bool | None = None
    ema_decay: float | None = None
    surface_metrics: bool | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            if value is not None and not check.holds(value):
                raise ValueError(f"{name} must be {check.text}, got {value!r}")

    @classmethod
    def from_configuration(cls, configuration: Mapping[str, Any]) -> TrainingSettings:
        """Read the entry ``training`` of a plan's configuration; without one, all is left to the trainer.

        Raises:
            ValueError: names the setting that does not exist or has an impossible value.
        """
        entry = configuration.get(ENTRY, {})
        known = [field.name for field in fields(cls)]
        if not isinstance(entry, Mapping):
            raise ValueError(f"{ENTRY!r} must hold settings by name, got {entry!r}")
        if unknown := sorted(set(map(str, entry)) - set(known)):
            raise ValueError(f"there is no setting {', '.join(unknown)}; there are {', '.join(known)}")
        settings = cls(**entry)
        is_2d = len(configuration.get("patch_size", ())) == 2
        if is_2d and 2 in list(settings.mirror_axes or ()):
            raise ValueError("mirror_axes has axis 2, but the axes of the patch are 0 to 1")
        return settings

    def stated(self) -> dict[str, Any]:
        """Settings that are not left to the trainer, as a plan holds them."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class _Check:
    text: str
    types: tuple[type, ...]
    low: float = 0.0
    high: float = float("inf")
    words: tuple[str, ...] = ()

    def holds(self, value: object) -> bool:
        if isinstance(value, str):
            return value in self.words
        # a bool is an int for Python
        if not isinstance(value, self.types) or isinstance(value, bool) != (self.types == (bool,)):
            return False
        return isinstance(value, bool) or self.low <= value <= self.high  # type: ignore[operator]  # int or float


def _words(choices: Any) -> _Check:
    words = get_args(choices)
    return _Check(" or ".join(map(repr, words)), (), words=words)


class _AxesCheck(_Check):
    def holds(self, value: object) -> bool:
        if not isinstance(value, (list, tuple)):
            return super().holds(value)
        return all(type(axis) is int and 0 <= axis < 3 for axis in value) and len(set(value)) == len(value)


_COUNT = _Check("a whole number from 1 on", (int,), 1)
_AMOUNT = _Check("a number from 0 on", (int, float))
_POSITIVE = _Check("a number above 0", (int, float), sys.float_info.min)
_SHARE = _Check("a number from 0 to 1", (int, float), high=1)
_FLAG = _Check("true or false", (bool,))
_CHECKS = {
    "epochs": _COUNT,
    "iterations_per_epoch": _Check(f"a whole number from 1 on or {CASES!r}", (int,), 1, words=(CASES,)),
    "learning_rate": _AMOUNT,
    "weight_decay": _AMOUNT,
    "optimiser": _words(Optimiser),
    "schedule": _words(Schedule),
    "warmup_fraction": _SHARE,
    "clip_grad_norm": _POSITIVE,
    "dice_weight": _AMOUNT,
    "ce_weight": _AMOUNT,
    "focal_weight": _AMOUNT,
    "layer_decay": _SHARE,
    "frozen_fraction": _SHARE,
    "deep_supervision": _FLAG,
    "oversample_foreground": _SHARE,
    "oversampling": _words(Oversampling),
    "augmentation": _words(Augmentation),
    "mirror_axes": _AxesCheck(f"{UNORDERED!r} or a list of axes from 0 to 2, each once", (), words=(UNORDERED,)),
    "mirroring": _FLAG,
    "augment_on_device": _FLAG,
    "ema_decay": _SHARE,
    "surface_metrics": _FLAG,
    "patience": _COUNT,
}
