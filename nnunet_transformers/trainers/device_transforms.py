"""nnU-Net's augmentation on a GPU: batchgeneratorsv2's transforms of CUDA tensors.

What nnU-Net's transforms lack for that is here. Parameters are drawn on the host, in the order in which a worker draws
them, so the same seed gives the same parameters; noise itself is the device's. Rotations and labels at borders are as
in batchgeneratorsv2 0.3.6, from which earlier versions differ slightly.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
import torch.nn.functional as F
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform
from torch import Tensor
from torch.utils._pytree import tree_map_only

# Transforms that act on a device's tensors, with those of their parameters that have to be there. The others are read
# as numbers, for which the host would wait.
PARAMETERS: dict[type[BasicTransform], tuple[str, ...]] = {
    SpatialTransform: ("grid",),
    GaussianNoiseTransform: ("apply_idx",),
    GaussianBlurTransform: (),
    MultiplicativeBrightnessTransform: ("multipliers",),
    ContrastTransform: ("multipliers",),
    SimulateLowResolutionTransform: (),
    GammaTransform: ("gamma",),
    MirrorTransform: (),
    MaskImageTransform: (),
    RemoveLabelTansform: (),
    Convert3DTo2DTransform: (),
    Convert2DTo3DTransform: (),
    MoveSegAsOneHotToDataTransform: (),
    ConvertSegmentationToRegionsTransform: (),
    DownsampleSegForDSTransform: (),
}
# factor of a label's share in an interpolated voxel before it is rounded to float16, as in ``SpatialTransform``
SCORE = 1000.0


def on_device(transform: BasicTransform, device: torch.device) -> BasicTransform:
    """Return a transform that does the same to tensors on a device.

    A transform that is not in ``PARAMETERS``, such as those of a cascade's previous segmentation, or a subclass, acts
    on a copy on the host.
    """
    kind = type(transform)
    if kind is ComposeTransforms:
        return ComposeTransforms([on_device(part, device) for part in transform.transforms])
    if kind is RandomTransform:
        return RandomTransform(on_device(transform.transform, device), transform.apply_probability)
    if kind not in PARAMETERS:
        return OnHost(transform, device)
    changed = copy(transform)
    if kind is SpatialTransform:
        changed.__class__ = Spatial
    if kind is GaussianBlurTransform and device.type != "cpu":
        changed.benchmark = False  # of FFT and convolution, by a clock that does not wait for the device
    if kind is ConvertSegmentationToRegionsTransform:
        changed.regions = [region.to(device) for region in transform.regions]
    return OnDevice(changed, device, PARAMETERS[kind])


class OnDevice(BasicTransform):
    """A transform that acts on a device and draws its parameters on the host, where it sees the shapes alone.

    Args:
        transform: acts on tensors of any device, if what it creates is on the default device.
        device: of the tensors.
        parameters: those that have to be on the device.
    """

    def __init__(self, transform: BasicTransform, device: torch.device, parameters: tuple[str, ...]) -> None:
        super().__init__()
        self.transform, self.device, self.parameters = transform, device, parameters

    def get_parameters(self, **data: Any) -> dict[str, Any]:
        drawn: dict[str, Any] = self.transform.get_parameters(**tree_map_only(Tensor, _of_shape, data))
        for name in self.parameters:
            if isinstance(drawn.get(name), Tensor):
                drawn[name] = drawn[name].to(self.device)
        return drawn

    def apply(self, data_dict: dict[str, Any], **parameters: Any) -> dict[str, Any]:
        with self.device:
            transformed: dict[str, Any] = self.transform.apply(data_dict, **parameters)
        return transformed


class OnHost(BasicTransform):
    """A transform of copies on the host, which go back to the device."""

    def __init__(self, transform: BasicTransform, device: torch.device) -> None:
        super().__init__()
        self.transform, self.device = transform, device

    def apply(self, data_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        transformed = self.transform(**tree_map_only(Tensor, Tensor.cpu, data_dict))
        moved: dict[str, Any] = tree_map_only(Tensor, lambda tensor: tensor.to(self.device), transformed)
        return moved


def _of_shape(tensor: Tensor) -> Tensor:
    """A tensor on the host with a shape and a type, and one element in memory."""
    return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)


class Spatial(SpatialTransform):
    """nnU-Net's rotation and scaling, with the grid and the labels computed where the tensors are.

    The coordinates and scores equal those of ``SpatialTransform`` up to rounding, so that a voxel halfway between two
    labels can get the other one.
    """

    def get_parameters(self, **data: Any) -> dict[str, Any]:
        if self.p_elastic_deform:  # the field's values are parameters
            return dict(super().get_parameters(**data))
        drawing = copy(self)
        drawing.patch_size = (1,) * len(self.patch_size)  # the draws do not depend on it, the work does
        drawn = dict(super(Spatial, drawing).get_parameters(**data))
        return {**drawn, "grid": None}

    def apply(self, data_dict: dict[str, Any], **parameters: Any) -> dict[str, Any]:
        if parameters["affine"] is not None and parameters["grid"] is None:
            shape = data_dict["image"].shape[1:]
            grid = self._grid(parameters["affine"], parameters["center_location_in_pixels"], shape)
            parameters["grid"] = grid
        return dict(super().apply(data_dict, **parameters))

    def _grid(self, affine: Any, centre: list[float], shape: tuple[int, ...]) -> Tensor:
        """Positions (*patch, axes) in an image of this shape, as ``grid_sample`` takes them: from -1 to 1, x first."""
        ndim = len(shape)
        axes = [
            torch.linspace((1 - n) / 2, (n - 1) / 2, n).reshape([-1 if axis == i else 1 for i in range(ndim)])
            for axis, n in enumerate(self.patch_size)
        ]
        positions = []
        for row, c, n in zip(affine, centre, shape, strict=True):
            # a sum rather than a matrix product, which a GPU may compute in TF32
            position = torch.full((), c - n / 2)
            for factor, axis in zip(row, axes, strict=True):
                position = position + float(factor) * axis
            positions.append(position / (n / 2))
        return torch.stack(positions[::-1], -1)

    def _apply_to_segmentation(self, segmentation: Tensor, **parameters: Any) -> Tensor:
        grid = parameters["grid"]
        if grid is None or self.mode_seg == "nearest":
            return super()._apply_to_segmentation(segmentation, **parameters)
        padding: float | None = self.padding_value_seg if self.border_mode_seg == "constant" else 0
        if self.border_mode_seg in ("border", "reflection"):
            padding = None
        return self._sample_labels(segmentation, grid, padding)

    def _sample_labels(self, labels: Tensor, grid: Tensor, padding: float | None) -> Tensor:
        """The label with the largest interpolated share in each voxel; on a tie the nearest voxel's, if it takes part.

        Args:
            labels: (channels, *size).
            grid: of ``_grid``.
            padding: the label outside; None where the border's label is continued.

        Returns:
            (channels, *patch).
        """
        modes = {"padding_mode": "zeros" if padding is not None else self.border_mode_seg}
        modes["align_corners"] = self.align_corners

        def sampled(values: Tensor, outside: float, mode: str) -> Tensor:
            # grid_sample pads with zeros only
            return F.grid_sample((values - outside)[None], grid[None], mode=mode, **modes)[0] + outside

        nearest = sampled(labels.float(), padding or 0.0, "nearest").to(labels.dtype)
        present = labels.unique().tolist()
        if padding is not None and padding not in present:
            present = sorted([*present, int(padding)])
        tiebreak = getattr(self, "seg_tiebreak", "nearest")  # from 0.3.6 on
        best = torch.full(nearest.shape, -torch.inf, dtype=torch.float16)
        score_of_nearest, result = best.clone(), nearest.clone()
        for label in present:
            outside = SCORE if label == padding else 0.0
            score = sampled((labels == label).float() * SCORE, outside, self.mode_seg).to(torch.float16)
            better = score >= best if tiebreak == "highest" else score > best
            result.masked_fill_(better, label)
            torch.maximum(best, score, out=best)
            score_of_nearest = torch.where(nearest == label, score, score_of_nearest)
        if tiebreak != "nearest":
            return result
        return torch.where(score_of_nearest == best, nearest, result)
