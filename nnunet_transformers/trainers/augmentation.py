"""nnU-Net's augmentation, which a plan can reduce, and which patches of two or three slices can have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from .._blur import fit_blur
from ..plans.training import Augmentation


class Augments(nnUNetTrainer):
    """Mixin for a trainer, listed before its class.

    nnU-Net's transforms as they are, but for a blur that is limited to a patch's axes, which matters below four voxels.

    Attributes:
        augmentation: "nnunet"; "mirroring" alone, of patches that are pieces of the images; or "none", and as training
            sees no mirrored images then, validation and prediction do not average over them.
    """

    augmentation: Augmentation = "nnunet"

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:
        rotation, in_plane, read_size, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if self.augmentation != "nnunet":
            read_size = self.configuration_manager.patch_size  # without the margin that a rotation needs
        if self.augmentation == "none":
            axes = self.inference_allowed_mirroring_axes = None
        return rotation, in_plane, read_size, axes

    def get_dataloaders(self) -> tuple[Any, Any]:
        if self.augmentation == "nnunet":
            loaders: tuple[Any, Any] = super().get_dataloaders()
            return loaders
        with patch.object(self, "get_training_transforms", self._reduced_transforms):
            return super().get_dataloaders()

    @staticmethod
    def get_training_transforms(*arguments: Any, **options: Any) -> BasicTransform:
        transforms = nnUNetTrainer.get_training_transforms(*arguments, **options)
        fit_blur(transforms)
        return transforms

    def _reduced_transforms(
        self,
        patch_size: Sequence[int],
        rotation: Any,
        deep_supervision_scales: Any,
        mirror_axes: Sequence[int] | None,
        do_dummy_2d: bool,
        use_mask_for_norm: Any = None,  # without changes of intensity, voxels outside stay zero by themselves
        **options: Any,
    ) -> BasicTransform:
        """Replace ``get_training_transforms``, whose arguments these are."""
        plain = self.get_validation_transforms(deep_supervision_scales, **options)
        return ComposeTransforms([MirrorTransform(tuple(mirror_axes)), plain]) if mirror_axes else plain
