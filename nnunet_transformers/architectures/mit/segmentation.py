"""MiT, the pyramid transformer U-Net of UniMiSS, for segmentation.

Xie et al., "UniMiSS: Universal Medical Self-Supervised Learning via Breaking Dimensionality Barrier", ECCV 2022,
and its appendix, section 3.2. Details that the paper omits follow the authors' release.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import prod
from types import MappingProxyType

import torch.nn.functional as F
from torch import Tensor, nn

from .._arguments import PerAxis, check_strides
from .._network import SegmentationNetwork
from .._registry import RenamingRule, register_network, register_released_family
from ..layers import ConvNormAct, patch_transpose
from .classifier import MiTClassifier
from .pair import MiTPair
from .trunk import STEM_DIM, MiTDecoder, MiTTrunk, init_weights

DIMENSION = re.compile(r"[23]D(?=\d*(\.|$))")


class MiTSegmentationDecoder(MiTDecoder):
    """The trunk's decoder, up-sampling to the stem's resolution, and the heads, full resolution first.

    Args:
        trunk: provides the decoder's stages.
        dims: channels of the trunk's stages, finest first.
        num_classes: output channels.
        auxiliary_heads: build the heads of deep supervision.
        deep_supervision: return all outputs.
    """

    def __init__(
        self, trunk: MiTTrunk, dims: Sequence[int], num_classes: int, auxiliary_heads: bool, deep_supervision: bool
    ) -> None:
        super().__init__(trunk.decoder.stages, dims[0])
        self.deep_supervision = deep_supervision
        self.stem_stride = trunk.stem_stride
        first_stride = trunk.embed_strides[0]
        ndim = len(first_stride)
        self.up = patch_transpose(dims[0], STEM_DIM, first_stride, channels_last=False)
        self.fuse = ConvNormAct(STEM_DIM, STEM_DIM, 3, (1,) * ndim)
        # a map of the same resolution as the one before gets no head
        self.has_stem_output = prod(self.stem_stride) > 1
        self.first_level = int(prod(first_stride) == 1)
        head_dims = [STEM_DIM]
        if auxiliary_heads:
            head_dims += [STEM_DIM] * self.has_stem_output + list(dims[self.first_level : -1])
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[ndim]
        self.seg_layers = nn.ModuleList(convolution(dim, num_classes, kernel_size=1) for dim in head_dims)
        for module in (self.fuse, self.seg_layers):
            module.apply(init_weights)

    def forward(self, stem: Tensor, features: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Map the stem's output and encoder features, finest first, to logits (a list under deep supervision)."""
        decoded, _ = self.decode(features)
        image = self.fuse(self.up(decoded[0]) + stem)
        # a 1x1 convolution and an interpolation commute: classify at the lower resolution
        logits = self.seg_layers[0](image)
        if self.has_stem_output:
            size = [n * s for n, s in zip(logits.shape[2:], self.stem_stride, strict=True)]
            logits = F.interpolate(logits, size, mode={2: "bilinear", 3: "trilinear"}[len(size)])
        if not self.deep_supervision:
            return logits
        maps = [image] * self.has_stem_output + decoded[self.first_level :]
        return [logits, *(head(m) for head, m in zip(self.seg_layers[1:], maps, strict=True))]


class MiT(SegmentationNetwork):
    """MiT in 2D and 3D.

    Per-stage arguments of the encoder begin with the finest stage, those of the decoder with the deepest.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        patch_size: edge lengths in voxels; two for a 2D network, three for a 3D one. The learned
            position embeddings depend on it.
        embed_dims, num_heads, depths, sr_ratios: channels, attention heads, transformer layers and spatial reduction of
            each encoder stage. A reduction is an integer or one per axis, clamped to the grid.
        decoder_num_heads, decoder_depths, decoder_sr_ratios: the same for each decoder stage.
        num_stages: resolutions, including the bottleneck; longer per-stage arguments are cut to the finest stages.
        patch_embed_stride: voxels per token of the finest token grid; 1, 2, 4 or 8, an integer or one per axis.
        merge_strides: strides between the stages, 1 or 2: an integer or one entry per stage (per axis).
        drop_path_rate: stochastic depth rate of the last encoder block.
        deep_supervision: return a list of logits, full resolution first.
        auxiliary_heads: build the heads of deep supervision; by default only under ``deep_supervision``.
        strides: the plan's copy of the strides for nnU-Net; must match the other arguments.
        reference_compat: drop tokens at the end of an axis that the reduction does not divide from keys and values, as
            the release does.
        activation_checkpointing: recompute the transformer layers in the backward pass: less memory, more time.
        switchable_embedding: False for variant 2 of the appendix's Table 1, which embeds patches by interpolation and a
            linear layer.

    Raises:
        ValueError: on a patch size that the strides do not divide or that leaves one token in the bottleneck, and on
            arguments that contradict each other.

    Examples:
        >>> import torch
        >>> network = MiT(input_channels=1, num_classes=3, patch_size=(32, 64, 64), patch_embed_stride=(2, 4, 4))
        >>> network(torch.zeros(1, 1, 32, 64, 64)).shape
        torch.Size([1, 3, 32, 64, 64])
    """

    stem_channels_last = False
    keys_to_in_proj = ("stem.conv",)
    token_arguments = ("patch_embed_stride", "num_stages", "merge_strides")
    removable: Mapping[str, str] = MappingProxyType(
        {"attention": r"(.*\.attn)", "blocks": r"((?:en|de)coder\.stages\.\d+\.blocks\.\d+)"}
    )
    pair_class = MiTPair
    classifier_class = MiTClassifier

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: Sequence[int],
        embed_dims: Sequence[int] = (48, 128, 256, 512),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        decoder_num_heads: Sequence[int] = (8, 4, 2),
        depths: Sequence[int] = (1, 1, 1, 1),
        decoder_depths: Sequence[int] = (1, 1, 1),
        num_stages: int = 4,
        patch_embed_stride: PerAxis = 4,
        merge_strides: int | Sequence[PerAxis] = 2,
        sr_ratios: Sequence[PerAxis] = (6, 4, 2, 1),
        decoder_sr_ratios: Sequence[PerAxis] = (2, 4, 6),
        drop_path_rate: float = 0.0,
        deep_supervision: bool = False,
        auxiliary_heads: bool | None = None,
        strides: Sequence[Sequence[int]] | None = None,
        reference_compat: bool = False,
        activation_checkpointing: bool = False,
        switchable_embedding: bool = True,
    ) -> None:
        super().__init__(patch_size)
        trunk = MiTTrunk(
            input_channels,
            self.patch_size,
            embed_dims=embed_dims,
            num_heads=num_heads,
            decoder_num_heads=decoder_num_heads,
            depths=depths,
            decoder_depths=decoder_depths,
            num_stages=num_stages,
            patch_embed_stride=patch_embed_stride,
            merge_strides=merge_strides,
            sr_ratios=sr_ratios,
            decoder_sr_ratios=decoder_sr_ratios,
            drop_path_rate=drop_path_rate,
            reference_compat=reference_compat,
            activation_checkpointing=activation_checkpointing,
            switchable_embedding=switchable_embedding,
        )
        if not switchable_embedding:
            self.keys_to_in_proj = ("stem.linear",)
        self.strides = trunk.strides
        check_strides(strides, self.strides)
        self.resolved_arguments = {"merge_strides": trunk.embed_strides[1:]}
        self.stem, self.encoder = trunk.stem, trunk.encoder
        self.feature_channels = list(embed_dims[:num_stages])
        self.grid_sizes = trunk.grid_sizes
        self.decoder = MiTSegmentationDecoder(
            trunk,
            embed_dims[:num_stages],
            num_classes,
            deep_supervision if auxiliary_heads is None else auxiliary_heads,
            deep_supervision,
        )

    def encode(self, image: Tensor) -> list[Tensor]:
        self.check_input(image)
        return self.encoder(self.stem(image))[0]

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """(batch, input_channels, *patch_size) to logits (batch, num_classes, *patch_size).

        Under deep supervision a list, each output at the resolution that ``strides`` states.

        Raises:
            ValueError: on an image of another size.
        """
        self.check_input(image)
        stem = self.stem(image)
        features, _ = self.encoder(stem)
        return self.decoder(stem, features)


def checkpoint_filter_fn(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Translate the weights of the authors' release, in each of its three forms.

    Segmentation weights become those of ``MiT``, a classifier's those of ``MiTClassifier``, and pretraining's (2D and
    3D) those of ``MiTPair``; heads of the pretraining method are dropped. Position embeddings stay flattened, since a
    release does not state their grid; they load into a network of the patch size of its training.

    Returns:
        A state dict that loads strictly into the same variant, built with ``reference_compat=True``.

    Raises:
        ValueError: if these are not the weights of a released MiT.
    """
    if any(key.startswith("backbone.") for key in state_dict):
        state_dict = {k.removeprefix("backbone."): v for k, v in state_dict.items() if k.startswith("backbone.")}
    if "head_new.weight" in state_dict:
        # a classifier is an encoder, so its names lack the encoder's prefix
        state_dict = {k if "_new." in k else f"transformer.{k}": v for k, v in state_dict.items()}
    dimensions = {key: match[0] for key in state_dict if (match := DIMENSION.search(key))}
    is_pair = len(set(dimensions.values())) == 2
    has_token = "transformer.cls_tokens1" in state_dict
    translated = {}
    for key, value in state_dict.items():
        name = _translate(DIMENSION.sub("", key))
        parts = {name: value}
        if has_token and name.endswith("position.weight"):
            # the release stores the SSL token's row before those of the grid
            parts = {name.replace("position.weight", "token_position"): value[:, :1], name: value[:, 1:]}
        forms = (f"form_{dimensions[key].lower()}.",) if key in dimensions else ("form_2d.", "form_3d.")
        for form in forms if is_pair else ("",):
            translated.update({form + part: tensor for part, tensor in parts.items()})
    if not any(key.endswith("stem.conv.weight") for key in translated):
        raise ValueError("these are not the weights of a released MiT: no stem (patch_embed0)")
    return translated


def _translate(key: str) -> str:
    """Translate a name of the release, its dimensionality removed, to ``MiTTrunk``, ``MiT`` and ``MiTClassifier``."""

    def encoder(rest: str) -> Callable[[re.Match[str]], str]:
        return lambda m: f"encoder.stages.{int(m[1]) - 1}.{rest}"

    rules: list[RenamingRule] = [
        (r"^transformer\.patch_embed0\.", "stem."),
        (r"^transformer\.patch_embed(\d)\.proj\.", encoder("embed.")),
        (r"^transformer\.pos_embed(\d)$", encoder("position.weight")),
        (r"^transformer\.block(\d)\.", encoder("blocks.")),
        (r"^transformer\.cls_tokens1$", "encoder.token"),
        (r"^transformer\.cls_tokens(\d)\.", encoder("token_proj.")),
        (r"^cls_tokens(\d)\.", r"decoder.stages.\1.token_proj."),
        (r"^DecEmbed(\d)\.proj\.", r"decoder.stages.\1.embed."),
        (r"^DecPosEmbed(\d)$", r"decoder.stages.\1.position.weight"),
        (r"^Decblock(\d)\.", r"decoder.stages.\1.blocks."),
        (r"^norm\.", "decoder.norm."),
        (r"^transposeconv_stage3\.", "decoder.up."),
        (r"^stage3_de\.", "decoder.fuse."),
        (r"^cls_conv\.", "decoder.seg_layers.0."),
        (r"^ds(\d)_cls_conv\.", lambda m: f"decoder.seg_layers.{4 - int(m[1])}."),
        (r"^(norm|head)_new\.", r"\1."),
    ]
    for pattern, replacement in rules:
        key, found = re.subn(pattern, replacement, key)
        if found:
            return key
    raise ValueError(f"these are not the weights of a released MiT: it has no {key!r}")


register_released_family(
    "mit",
    checkpoint_filter_fn,
    head="decoder.seg_layers.0.weight",
    variants=({"auxiliary_heads": True},),
    patch_sizes=((48, 192, 192), (48, 192, 256), (16, 96, 96), (64, 128, 128), (224, 224)),
)
register_network("mit_7", MiT, arguments_3d={"patch_embed_stride": (2, 4, 4)})
register_network(
    "mit_22",
    MiT,
    arguments_3d={"patch_embed_stride": (2, 4, 4)},
    depths=(2, 3, 4, 3),
    decoder_depths=(3, 4, 3),
)
