"""What nnU-Net and weight loading expect of every network here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ._arguments import check_dimensions, check_image_size

AUXILIARY_HEADS = "decoder.seg_layers."


class SegmentationNetwork(nn.Module, ABC):
    """Base of the segmentation networks.

    A subclass has three disjoint parts: ``stem``, ``encoder`` and ``decoder``, the segmentation heads in
    ``decoder.seg_layers`` (full resolution first) and the switch ``decoder.deep_supervision``.

    Attributes:
        dimensions: numbers of spatial axes that the class has a form for.
        patch_size: the only image size that the network takes.
        strides: down-sampling per stage and axis. As in nnU-Net's plans, output i of deep supervision has
            1 / cumprod(strides)[i] of the patch's resolution, and there are ``len(strides) - 1`` outputs.
        resolved_arguments: arguments that depend on others where they are not given, with the values that they have.
        grid_sizes: elements per axis of each feature map that ``encode`` returns, finest first.
        feature_channels: channels of each of these maps.
        stem_channels_last: whether the stem gives (batch, *grid, channels) or (batch, length, channels), rather than
            (batch, channels, *grid).
        key_to_encoder, key_to_stem, keys_to_in_proj, key_to_lpe: where weights are found, the contract of
            dynamic_network_architectures' ``AbstractDynamicNetworkArchitectures``.
    """

    dimensions: tuple[int, ...] = (2, 3)
    stem_channels_last = True
    key_to_encoder = "encoder"
    key_to_stem = "stem"
    keys_to_in_proj: Sequence[str] = ("stem.proj",)
    key_to_lpe: str | None = None

    def __init__(self, patch_size: Sequence[int]) -> None:
        super().__init__()
        self.patch_size = tuple(int(p) for p in patch_size)
        ndim = check_dimensions(self.patch_size)
        if ndim not in self.dimensions:
            forms = " and ".join(f"{n}D" for n in self.dimensions)
            raise ValueError(
                f"{type(self).__name__} has no {ndim}D form, only {forms}: patch_size {self.patch_size} has {ndim} "
                "axes. nnU-Net's 2d configuration trains a 2D network on the slices of volumes"
            )
        self.strides: list[list[int]] = []
        self.resolved_arguments: dict[str, Any] = {}
        self.grid_sizes: Sequence[Sequence[int]] = ()
        self.feature_channels: Sequence[int] = ()
        self.register_load_state_dict_pre_hook(_drop_absent_heads)

    @property
    def feature_strides(self) -> list[tuple[int, ...]]:
        """Voxels per element and axis of each feature map, finest first."""
        return [tuple(p // g for p, g in zip(self.patch_size, grid, strict=True)) for grid in self.grid_sizes]

    def group_matcher(self, coarse: bool = False) -> dict:
        """What timm's layer-wise learning rates count as a layer: the stem and each stage of the encoder."""
        stages = [(r"^encoder\.(?:stages|downsamples|norms)\.(\d+)", None), (r"^encoder\.", (len(self.grid_sizes),))]
        return {"stem": r"^stem\.", "blocks": stages}

    @abstractmethod
    def encode(self, image: Tensor) -> list[Tensor]:
        """Feature maps of stem and encoder, finest first, each (batch, feature_channels[i], *grid).

        This is all that pretraining and probing know of a network.
        """

    def check_input(self, image: Tensor) -> None:
        """Check that an image has the size that the network was built for.

        Raises:
            ValueError: names the first axis that differs.
        """
        check_image_size(image, self.patch_size)


def _drop_absent_heads(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Let a network without auxiliary heads load what one with them saved: they serve training alone."""
    start = f"{prefix}{AUXILIARY_HEADS}"
    kept = len(getattr(module.decoder, "seg_layers", ()))
    for key in [k for k in state_dict if k.startswith(start)]:
        index = key[len(start) :].split(".")[0]
        if index.isdigit() and int(index) >= kept:
            del state_dict[key]
