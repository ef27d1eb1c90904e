"""nnU-Net's augmentation, which a plan can reduce, and which patches of two or three slices can have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from .._blur import fit_blur
from ..plans.training import UNORDERED, Augmentation
from .label_order import label_centres, ordered_axes

# cases that are read for the order of their labels, a hundredth of a second each
ORDER_CASES = 200
# nnU-Net's largest rotation of cubes; it turns squares by up to 180 degrees, which mirrors both of their axes
UPRIGHT = np.pi / 6


class Augments(nnUNetTrainer):
    """Mixin for a trainer, listed before its class.

    nnU-Net's transforms as they are, but for a blur that is limited to a patch's axes, which matters below four voxels.

    Attributes:
        augmentation: "nnunet"; "mirroring" alone, of patches that are pieces of the images; or "none".
        mirror_axes: axes of the patch that training mirrors, and over whose mirrored images validation and prediction
            average; "unordered" for those along which no two labels have an order; None for nnU-Net's. Without
            augmentation there are none. Planes with an axis that is not mirrored are rotated by at most 30 degrees.
    """

    inference_allowed_mirroring_axes: tuple[int, ...] | None
    augmentation: Augmentation = "nnunet"
    mirror_axes: Sequence[int] | Literal["unordered"] | None = None

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:
        rotation, in_plane, read_size, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if self.augmentation != "nnunet":
            read_size = self.configuration_manager.patch_size  # without the margin that a rotation needs
        mirrored = () if self.augmentation == "none" else self.mirror_axes
        if mirrored is not None:
            if mirrored == UNORDERED:
                mirrored = self._unordered_axes(axes or ())
            axes = tuple(axis for axis in axes or () if axis in mirrored) or None
            self.inference_allowed_mirroring_axes = axes
            plane = {0, 1, 2} if len(self.configuration_manager.patch_size) == 3 else {0, 1}
            if not plane - ({0} if in_plane else set()) <= set(axes or ()):
                rotation = max(rotation[0], -UPRIGHT), min(rotation[1], UPRIGHT)
        return rotation, in_plane, read_size, axes

    def _unordered_axes(self, axes: Sequence[int]) -> list[int]:
        """Those of the axes along which no two labels lie in the same order in the cases.

        All folds have to mirror alike, as nnU-Net predicts with what one of them states: validation cases count too, as
        they do for the plan.
        """
        dataset_class = self.dataset_class or infer_dataset_class(self.preprocessed_dataset_folder)
        names = sorted(dataset_class.get_identifiers(self.preprocessed_dataset_folder))
        few = [names[i] for i in np.linspace(0, len(names) - 1, min(len(names), ORDER_CASES)).astype(int)]
        cases = dataset_class(self.preprocessed_dataset_folder, few)
        ordered = ordered_axes(label_centres(cases.load_case(name)[-1]) for name in few)
        # of a slice, the first axis of its volume is not in the patch
        missing = 3 - len(self.configuration_manager.patch_size)
        for axis, (first, second) in ordered.items():
            if axis >= missing:
                self.print_to_log_file(
                    f"axis {axis - missing} is not mirrored: along it, labels {first} and {second} lie in one order"
                )
        return [axis for axis in axes if axis + missing not in ordered]

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
