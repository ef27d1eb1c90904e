"""The interface of segmentation networks that nnU-Net, planners, trainers and weight loading rely on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from ._arguments import check_dimensions, check_image_size
from ._backbone import Backbone
from ._pair import NetworkPair
from ._removal import BLOCKS, SKIPS, bypass, cut_skips, matching, silence

AUXILIARY_HEADS = "decoder.seg_layers."
# the decoder's own first layer on the image, in the branch of ``FullResolutionBranch``
BRANCH_IN_PROJ = "decoder.full_resolution.image.conv"
# arguments that a planner derives from patch and token grids
TOKEN_ARGUMENTS = ("patch_embed_stride", "num_stages", "merge_strides", "window_sizes")


class SegmentationNetwork(nn.Module, ABC):
    """Base of the segmentation networks.

    A subclass has three disjoint parts: ``stem``, ``encoder`` and ``decoder``, the segmentation heads in
    ``decoder.seg_layers`` (full resolution first) and, with several of them, the switch ``decoder.deep_supervision``.

    Attributes:
        dimensions: numbers of spatial axes that the class supports.
        patch_size: the only image size that the network takes, in voxels.
        strides: down-sampling per stage and axis. As in nnU-Net's plans, output i of deep supervision has
            1 / cumprod(strides)[i] of the patch's resolution, and there are ``len(strides) - 1`` outputs.
        resolved_arguments: values in use of the arguments whose default depends on other arguments.
        grid_sizes: elements per axis of each feature map that ``encode`` returns, finest first.
        feature_channels: channels of each of these maps.
        stem_channels_last: whether the stem returns (batch, *grid, channels) or (batch, length, channels), rather than
            (batch, channels, *grid).
        token_arguments: those of ``TOKEN_ARGUMENTS`` that the class takes; a planner sets them.
        pair_class: builds a 2D and a 3D network that share layers, for cross-dimensional pretraining, from
            (patch_size_2d, patch_size_3d, input_channels_2d, input_channels_3d, **arguments); None for a pair of
            encoders (``EncoderPair``).
        classifier_class: the network's own classifier, whose features include the SSL token of pretraining, built from
            (input_channels, num_classes, patch_size, **arguments), without a head for num_classes 0; None for a
            network without an SSL token.
        removable: what an ablation can replace by the identity, by name: a regular expression of the modules whose
            result is left out of a residual sum, or, for ``blocks``, that are passed by. Its first group is the module
            that has no further use then.
        has_skips: whether the decoder takes more than the last feature map.
        deeply_supervised: whether there are outputs at several resolutions. A network without takes
            ``deep_supervision`` and ``auxiliary_heads`` too, and returns its one output whatever they are.
        stock: for one of nnU-Net's own networks, its class, which nnU-Net's plans name; here to pretrain its encoder.
        extra: the extra of this package that installs the library which the class needs, named as that library; None
            where no extra is needed. Without the library the constructor raises ModuleNotFoundError.
        key_to_encoder, key_to_stem, keys_to_in_proj, key_to_lpe: names of the modules whose weights are transferred, as
            in dynamic_network_architectures' ``AbstractDynamicNetworkArchitectures``.

    Raises:
        ValueError: if the class does not support the patch's number of axes.
    """

    dimensions: tuple[int, ...] = (2, 3)
    stem_channels_last = True
    key_to_encoder = "encoder"
    key_to_stem = "stem"
    keys_to_in_proj: Sequence[str] = ("stem.proj",)
    key_to_lpe: str | None = None
    token_arguments: ClassVar[Sequence[str]] = ()
    pair_class: ClassVar[Callable[..., NetworkPair] | None] = None
    classifier_class: ClassVar[Callable[..., Backbone] | None] = None
    removable: Mapping[str, str] = {}
    has_skips: ClassVar[bool] = True
    deeply_supervised: ClassVar[bool] = True
    stock: ClassVar[type[nn.Module] | None] = None
    extra: ClassVar[str | None] = None

    stem: nn.Module
    encoder: nn.Module
    decoder: nn.Module

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

    @property
    def parts(self) -> list[str]:
        """Names of what ``remove`` can remove from this network."""
        found = [part for part, pattern in self.removable.items() if matching(self, pattern)]
        return [*found, SKIPS] if self.has_skips else found

    @classmethod
    def may_be_removed(cls) -> set[str]:
        """Names of what ``remove`` can remove from some network of the class."""
        return {*cls.removable, SKIPS} if cls.has_skips else {*cls.removable}

    def remove(self, part: str) -> None:
        """Replace a part by the identity, for good; of the skips the decoder gets zeros. Names of weights stay.

        Args:
            part: one of ``parts``.

        Raises:
            ValueError: if the network has no such part.
        """
        if part not in self.parts:
            raise ValueError(f"{type(self).__name__} has no {part!r} to remove, only {', '.join(self.parts) or 'none'}")
        if part == SKIPS:
            cut_skips(self.decoder)
        else:
            (bypass if part == BLOCKS else silence)(self, self.removable[part])

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns for timm's layer-wise learning rates: the stem and each stage of the encoder."""
        stages = [(r"^encoder\.(?:stages|downsamples|norms)\.(\d+)", None), (r"^encoder\.", (len(self.grid_sizes),))]
        return {"stem": r"^stem\.", "blocks": stages}

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay besides norms and biases, as in timm: tables and class tokens.

        They are collected from the ``no_weight_decay`` of the layers. A network that holds such a parameter itself adds
        its name.
        """
        return no_weight_decay(self)

    @abstractmethod
    def encode(self, image: Tensor) -> list[Tensor]:
        """Compute the feature maps of stem and encoder; pretraining and probing use nothing else of a network.

        Args:
            image: (batch, input_channels, *patch_size).

        Returns:
            Maps (batch, feature_channels[i], *grid_sizes[i]), finest first.

        Raises:
            ValueError: on an image of another size.
        """

    def encoder_state_dict(self) -> dict[str, Tensor]:
        """Weights of stem and encoder, including batch norm statistics, detached."""
        parts = (f"{self.key_to_stem}.", f"{self.key_to_encoder}.")
        return {name: value.detach() for name, value in self.state_dict().items() if name.startswith(parts)}

    def check_input(self, image: Tensor) -> None:
        """Check that an image has the size that the network was built for.

        Raises:
            ValueError: names the first axis that differs.
        """
        check_image_size(image, self.patch_size)


def no_weight_decay(module: nn.Module) -> set[str]:
    """Collect the parameter names that the layers of a module return from their ``no_weight_decay``.

    Names without a parameter are dropped: some of timm's layers state parameters that they do not have.
    """
    stated = {
        f"{path}.{name}"
        for path, layer in module.named_modules(remove_duplicate=False)
        if path and hasattr(layer, "no_weight_decay")
        for name in layer.no_weight_decay()
    }
    return stated & {name for name, _ in module.named_parameters(remove_duplicate=False)}


def _drop_absent_heads(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Drop auxiliary heads, which only training uses, from the state dict of a network without them."""
    start = f"{prefix}{AUXILIARY_HEADS}"
    kept = len(getattr(module.decoder, "seg_layers", ()))
    for key in [k for k in state_dict if k.startswith(start)]:
        index = key[len(start) :].split(".")[0]
        if index.isdigit() and int(index) >= kept:
            del state_dict[key]
