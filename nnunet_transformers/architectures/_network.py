"""What nnU-Net and weight loading expect of every network here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from ._arguments import check_dimensions, check_image_size
from ._backbone import Backbone
from ._pair import NetworkPair

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
        pair_class: builds the 2D and the 3D form at once for cross-dimensional pretraining, from (patch_size_2d,
            patch_size_3d, input_channels_2d, input_channels_3d, **arguments); None for a pair of the encoders alone.
        classifier_class: the network's own classifier, whose features take in the token of pretraining, built from
            (input_channels, num_classes, patch_size, **arguments), for num_classes 0 without a head; None for a
            network without such a token.
        key_to_encoder, key_to_stem, keys_to_in_proj, key_to_lpe: where weights are found, the contract of
            dynamic_network_architectures' ``AbstractDynamicNetworkArchitectures``.
    """

    dimensions: tuple[int, ...] = (2, 3)
    stem_channels_last = True
    key_to_encoder = "encoder"
    key_to_stem = "stem"
    keys_to_in_proj: Sequence[str] = ("stem.proj",)
    key_to_lpe: str | None = None
    pair_class: ClassVar[Callable[..., NetworkPair] | None] = None
    classifier_class: ClassVar[Callable[..., Backbone] | None] = None

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

    def encoder_state_dict(self) -> dict[str, Tensor]:
        """Weights of stem and encoder, statistics of batch norms included, detached."""
        parts = (f"{self.key_to_stem}.", f"{self.key_to_encoder}.")
        return {name: value.detach() for name, value in self.state_dict().items() if name.startswith(parts)}

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
