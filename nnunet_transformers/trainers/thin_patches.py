"""Augmentation of patches of two or three slices, at which nnU-Net's own ends with an error."""

from __future__ import annotations

from typing import Any

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from .._blur import fit_blur


class AugmentsThinPatches(nnUNetTrainer):
    """Mixin for a trainer, listed before its class: nnU-Net's transforms, whose blur is limited to a patch's axes.

    Patches of at least four voxels per axis are augmented as by nnU-Net.
    """

    @staticmethod
    def get_training_transforms(*arguments: Any, **options: Any) -> BasicTransform:
        transforms = nnUNetTrainer.get_training_transforms(*arguments, **options)
        fit_blur(transforms)
        return transforms
