"""nnU-Net's augmentation, which a plan can reduce, and which patches of two or three slices can have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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

    def get_training_transforms(  # nnU-Net calls it through the trainer, where its own is a static method
        self,
        patch_size: Sequence[int],
        rotation_for_DA: Any,
        deep_supervision_scales: Any,
        mirror_axes: Sequence[int] | None,
        *others: Any,
        **options: Any,
    ) -> BasicTransform:
        if self.augmentation == "nnunet":
            create = super().get_training_transforms
            transforms = create(patch_size, rotation_for_DA, deep_supervision_scales, mirror_axes, *others, **options)
            fit_blur(transforms)
            return transforms
        options.pop("use_mask_for_norm", None)  # voxels outside stay zero by themselves
        plain = self.get_validation_transforms(deep_supervision_scales, **options)
        return ComposeTransforms([MirrorTransform(tuple(mirror_axes)), plain]) if mirror_axes else plain
