"""UNet-2022: a U-Net of blocks with window attention and depth-wise convolution side by side.

Guo et al., "UNet-2022: Exploring Dynamics in Non-isomorphic Architecture", https://arxiv.org/abs/2210.15566. The 2D
networks are the published ones; where paper and release differ, defaults follow the release, which produced the
published results. The 3D form is this package's own: the same blocks with strides and kernels per axis.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod
from types import MappingProxyType

import numpy as np
import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from ._arguments import (
    PerAxis,
    check_depth,
    check_dimensions,
    check_strides,
    one_per_stage,
    per_axis,
    per_stage,
    token_grids,
)
from ._network import TOKEN_ARGUMENTS, SegmentationNetwork
from ._registry import RenamingRule, register_network, register_released_family
from .layers import (
    FullResolutionBranch,
    RelativePositionBias,
    WindowAttention,
    WindowPartition,
    choose_windows,
    convolution,
    patch_transpose,
    recomputed,
)

MAX_OUTPUTS = 3
BLOCKS = ("parallel", "swin", "convnext")


class ConvNeXtBlock(nn.Module):
    """Depth-wise convolution and MLP (https://arxiv.org/abs/2201.03545, figure 4), channels last, in 2D and 3D.

    Parameters are named as in timm's ConvNeXt, whose ImageNet weights fit.
    """

    def __init__(self, dim: int, kernel_size: Sequence[int], drop_path_rate: float) -> None:
        super().__init__()
        self.conv_dw = convolution(dim, dim, kernel_size, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6))
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, *grid, dim) to the same shape."""
        return x + self.drop_path(self.gamma * self.mlp(self.norm(self.conv_dw(x))))


class AttentionConvBlock(nn.Module):
    """Window attention and depth-wise convolution of the same input, summed and projected (paper, eq. 3 and 4).

    Either can be left out (table 6). The released code convolves the padded and rolled map of the windows, so shifted
    blocks mix opposite edges. Here the convolution reads the map itself, unless ``reference_compat`` is set.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        partition: WindowPartition,
        kernel_size: Sequence[int],
        drop_path_rate: float,
        reference_compat: bool,
        attention: bool,
        convolution_beside: bool,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attn: WindowAttention | None = None
        if attention:
            bias = RelativePositionBias(partition.window_size, partition.window_size, num_heads)
            self.attn = WindowAttention(dim, num_heads, partition, bias)
        else:
            self.proj = nn.Linear(dim, dim)
        self.conv_dw: nn.Module | None = None
        if convolution_beside:
            self.conv_dw = convolution(dim, dim, kernel_size, groups=dim)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()
        self.reference_compat = reference_compat

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, *grid, dim) to the same shape."""
        z = self.norm(x)
        if self.attn is None:
            assert self.conv_dw is not None
            return x + self.drop_path(self.proj(self.conv_dw(z)))
        mixed = self.attn.attend(z.flatten(1, -2)).view_as(z)
        if self.conv_dw is not None:
            partition = self.attn.partition
            rolled = self.reference_compat
            mixed = mixed + (partition.unroll(self.conv_dw(partition.roll(z))) if rolled else self.conv_dw(z))
        return x + self.drop_path(self.attn.proj(mixed))


class SwinBlock(nn.Module):
    """Swin's block, for the comparison of table 5: window attention, then an MLP, each behind its norm."""

    def __init__(self, dim: int, num_heads: int, partition: WindowPartition, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        bias = RelativePositionBias(partition.window_size, partition.window_size, num_heads)
        self.attn = WindowAttention(dim, num_heads, partition, bias)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, *grid, dim) to the same shape."""
        z = self.norm1(x)
        x = x + self.drop_path(self.attn.proj(self.attn.attend(z.flatten(1, -2)).view_as(z)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Block(nn.Module):
    """Parts in a row: a ConvNeXt block, then attention beside convolution, in the paper's PI block (section 3.2).

    Args:
        parts: modules by name.
        activation_checkpointing: recompute them in the backward pass.
    """

    def __init__(self, parts: Mapping[str, nn.Module], activation_checkpointing: bool) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.activation_checkpointing = activation_checkpointing

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, *grid, dim) to the same shape."""
        return recomputed(self._forward, x, active=self.activation_checkpointing and self.training)

    def _forward(self, x: Tensor) -> Tensor:
        for part in self.children():
            x = part(x)
        return x


class ConvStem(nn.Module):
    """Strided 3x3 convolutions, two per block (paper, section 3.3).

    A block is strided on the axes that it down-samples; the kernel is 1 on an axis that is not down-sampled yet.
    """

    def __init__(self, input_channels: int, dim: int, strides: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        total = [1] * len(strides[0])
        for index, stride in enumerate(strides):
            total = [t * s for t, s in zip(total, stride, strict=True)]
            kernel_size = [3 if t > 1 else 1 for t in total]
            is_last = index == len(strides) - 1
            out = dim // 2 ** (len(strides) - 1 - index)
            layers = [convolution(input_channels, out, kernel_size, stride), nn.GELU(), nn.LayerNorm(out)]
            layers += [convolution(out, out, kernel_size), *([] if is_last else [nn.GELU()]), nn.LayerNorm(out)]
            self.blocks.append(nn.Sequential(*layers))
            input_channels = out

    def forward(self, image: Tensor) -> Tensor:
        """Map (batch, input_channels, *size) to (batch, *grid, dim)."""
        x = image.movedim(1, -1)
        for block in self.blocks:
            x = block(x)
        return x


class DeconvStem(nn.Module):
    """Up-sampling by the stride of the stem, to logits (paper, section 3.4); a stride of 8 is split into 2 and 4."""

    def __init__(self, dim: int, num_classes: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        total = [1] * len(stride)
        while max(s // t for s, t in zip(stride, total, strict=True)) > 4:
            step = [2 if s // t > 4 else 1 for s, t in zip(stride, total, strict=True)]
            total = [t * s for t, s in zip(total, step, strict=True)]
            kernel_size = [3 if s > 1 else 1 for s in stride]
            layers = [patch_transpose(dim, dim // 2, step), nn.GELU(), nn.LayerNorm(dim // 2)]
            layers += [convolution(dim // 2, dim // 2, kernel_size), nn.GELU(), nn.LayerNorm(dim // 2)]
            self.blocks.append(nn.Sequential(*layers))
            dim //= 2
        self.seg = patch_transpose(dim, num_classes, [s // t for s, t in zip(stride, total, strict=True)])

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, *grid, dim) to (batch, num_classes, *(grid x stride))."""
        for block in self.blocks:
            x = block(x)
        return self.seg(x).movedim(-1, 1)


class UNet2022Encoder(nn.Module):
    """Stages of blocks, GELU, norm and convolution between them, and a norm for each output."""

    def __init__(
        self, stages: Sequence[Sequence[Block]], dims: Sequence[int], merge_strides: Sequence[Sequence[int]]
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Sequential(*blocks) for blocks in stages)
        self.downsamples = nn.ModuleList()
        for stage, stride in enumerate(merge_strides):
            kernel_size = [3 if s > 1 else 1 for s in stride]
            reduction = convolution(dims[stage], dims[stage + 1], kernel_size, stride)
            self.downsamples.append(nn.Sequential(nn.GELU(), nn.LayerNorm(dims[stage]), reduction))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (batch, *grid, dim) to the features of all resolutions, finest first, channels last."""
        features = []
        for stage, (blocks, norm) in enumerate(zip(self.stages, self.norms, strict=True)):
            x = blocks(x)
            features.append(norm(x))
            if stage < len(self.downsamples):
                x = self.downsamples[stage](x)
        return features


class UNet2022DecoderLevel(nn.Module):
    """Norm, transposed convolution, addition of the skip, blocks."""

    def __init__(self, dim: int, stride: Sequence[int], blocks: Sequence[Block]) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.LayerNorm(2 * dim), patch_transpose(2 * dim, dim, stride))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map the deeper level (batch, *grid, 2 dim) and a skip (batch, *(grid x stride), dim) to the skip's shape."""
        return self.blocks(self.expand(x) + skip)


class UNet2022Decoder(nn.Module):
    """The levels, deepest first, and a head for each of the finest three, full resolution first."""

    def __init__(
        self,
        levels: Sequence[UNet2022DecoderLevel],
        heads: Sequence[nn.Module],
        deep_supervision: bool,
        full_resolution: FullResolutionBranch | None,
    ) -> None:
        super().__init__()
        self.full_resolution = full_resolution
        self.deep_supervision = deep_supervision
        self.levels = nn.ModuleList(levels)
        self.seg_layers = nn.ModuleList(heads)

    def forward(self, image: Tensor, features: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Map the image and encoder features, finest first, to logits (a list of them under deep supervision)."""
        x = features[-1]
        maps: list[Tensor] = []
        for level, skip in zip(self.levels, reversed(features[:-1]), strict=True):
            x = level(x, skip)
            maps.insert(0, x)
        head, *auxiliary = self.seg_layers
        logits = head(x if self.full_resolution is None else self.full_resolution(x, image))
        if not self.deep_supervision:
            return logits
        return [logits, *(other(m) for other, m in zip(auxiliary, maps[1:], strict=False))]


def published_windows(grid_sizes: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...] | None:
    """Apply the rule behind the published windows: with r tokens along the deepest grid, r, r, 2r, r.

    Args:
        grid_sizes: tokens per axis of each stage.

    Returns:
        None unless there are four 2D grids of 8r, 4r, 2r and r tokens with r from 5 to 10.
    """
    deepest = tuple(grid_sizes[-1])
    expected = [tuple(factor * r for r in deepest) for factor in (8, 4, 2, 1)]
    if len(deepest) != 2 or [tuple(g) for g in grid_sizes] != expected or not all(5 <= r <= 10 for r in deepest):
        return None
    return deepest, deepest, expected[2], deepest


class UNet2022(SegmentationNetwork):
    """UNet-2022 in 2D and 3D.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        patch_size: edge lengths in voxels; two for a 2D network, three for a 3D one.
        embed_dim: channels of the finest tokens, doubled at each stage; a multiple of ``num_heads``.
        num_heads: heads of the first stage, doubled at each stage.
        num_stages: resolutions.
        depths: PI blocks per stage, three each by default; every second one has shifted windows. The decoder mirrors
            the encoder.
        patch_embed_stride: voxels per token (the paper's P), one integer or one per axis, powers of two.
        merge_strides: down-sampling after each stage but the last, one integer or one entry per stage.
        kernel_size: of the depth-wise convolutions, one integer or one per axis. By default 7 in 2D; in 3D 3, or 1x7x7
            where the axes have different strides, since 7^3 takes ten times as long as 3^3.
        window_sizes: attention window, one integer or one entry per encoder stage; the decoder mirrors it. By default
            the published rule where it applies, else windows that divide the token grids.
        block: "parallel" for the paper's PI block, "swin" or "convnext" for those of table 5.
        attention, convolution: False leaves this half of the PI block out (table 6).
        drop_path_rate: stochastic depth rate of the last encoder block.
        full_resolution_channels: channels of a convolutional branch at full resolution that joins the tokens before
            the head; 0, as published, for none.
        activation_checkpointing: recompute the blocks in the backward pass.
        deep_supervision: return a list of logits, full resolution first.
        auxiliary_heads: build the heads of deep supervision; by default only under ``deep_supervision``.
        strides: the plan's copy of the strides for nnU-Net; must match the other arguments.
        reference_compat: reproduce the release: depth-wise convolutions beside the attention read padded and rolled
            maps, and all axes have one clamped window edge.

    Raises:
        ValueError: on a patch size that the strides do not divide or arguments that contradict each other.

    Examples:
        >>> import torch
        >>> network = UNet2022(input_channels=1, num_classes=3, patch_size=(64, 64), embed_dim=24)
        >>> network(torch.zeros(1, 1, 64, 64)).shape
        torch.Size([1, 3, 64, 64])
    """

    keys_to_in_proj = ("stem.blocks.0.0",)
    token_arguments = TOKEN_ARGUMENTS
    removable: Mapping[str, str] = MappingProxyType(
        {
            "attention": r"(.*\.parallel\.attn\.qkv)",
            "convolution": r"(.*\.parallel\.conv_dw)",
            "blocks": r"((?:encoder\.stages\.\d+|decoder\.levels\.\d+\.blocks)\.\d+)",
        }
    )

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: Sequence[int],
        embed_dim: int = 96,
        num_heads: int = 3,
        num_stages: int = 4,
        depths: Sequence[int] | None = None,
        patch_embed_stride: PerAxis = 4,
        merge_strides: int | Sequence[PerAxis] = 2,
        kernel_size: PerAxis | None = None,
        window_sizes: int | Sequence[PerAxis] | None = None,
        block: str = "parallel",
        attention: bool = True,
        convolution: bool = True,
        drop_path_rate: float = 0.2,
        full_resolution_channels: int = 0,
        activation_checkpointing: bool = False,
        deep_supervision: bool = False,
        auxiliary_heads: bool | None = None,
        strides: Sequence[Sequence[int]] | None = None,
        reference_compat: bool = False,
    ) -> None:
        super().__init__(patch_size)
        ndim = check_dimensions(self.patch_size)
        if num_stages < 2:
            raise ValueError(f"num_stages must be at least 2, got {num_stages}")
        check_depth((num_stages,), "num_stages")
        depths = one_per_stage((3,) * num_stages if depths is None else depths, num_stages, "depths")
        check_depth(depths, "depths")
        patch_embed_stride = per_axis(patch_embed_stride, ndim, "patch_embed_stride")
        if any(p & (p - 1) for p in patch_embed_stride) or max(patch_embed_stride) < 2:
            raise ValueError(f"patch_embed_stride must be powers of two, one of them above 1, got {patch_embed_stride}")
        merge_strides = per_stage(merge_strides, num_stages - 1, ndim, "merge_strides")
        num_outputs = min(MAX_OUTPUTS, num_stages - 1)
        # each head undoes the stem's stride, so the outputs are apart by the merges; the remaining factor comes last
        steps = [list(s) for s in merge_strides[: num_outputs - 1]]
        remainder = [prod(axis) for axis in zip(patch_embed_stride, *merge_strides[num_outputs - 1 :], strict=True)]
        self.strides = [[1] * ndim, *steps, remainder]
        check_strides(strides, self.strides)
        grid_sizes = token_grids(self.patch_size, (patch_embed_stride, *merge_strides))
        if kernel_size is None:
            largest = max(patch_embed_stride)
            isotropic = min(patch_embed_stride) == largest
            kernel_size = 7 if ndim == 2 else 3 if isotropic else [7 if s == largest else 1 for s in patch_embed_stride]
        kernel_size = per_axis(kernel_size, ndim, "kernel_size")
        if any(k % 2 == 0 for k in kernel_size):
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        if block not in BLOCKS:
            raise ValueError(f"block must be {', '.join(BLOCKS[:-1])} or {BLOCKS[-1]}, got {block!r}")
        if not (attention or convolution):
            raise ValueError("a block needs attention, convolution or both")
        if block != "parallel" and not (attention and convolution):
            raise ValueError(f"attention and convolution are halves of the block 'parallel', got {block!r}")
        if auxiliary_heads is None:
            auxiliary_heads = deep_supervision

        if window_sizes is None:
            window_sizes = published_windows(grid_sizes) or choose_windows(grid_sizes)
        windows = per_stage(window_sizes, num_stages, ndim, "window_sizes")
        self.resolved_arguments = {"depths": depths, "kernel_size": kernel_size, "window_sizes": windows}
        if not (block == "parallel" and attention and convolution):
            self.removable = {**_alone(block, attention), "blocks": self.removable["blocks"]}
        if reference_compat:
            windows = tuple((min(*g, *w),) * ndim for g, w in zip(grid_sizes, windows, strict=True))
        dims = [embed_dim * 2**stage for stage in range(num_stages)]
        self.grid_sizes, self.feature_channels = grid_sizes, dims
        self.block = block

        def parts(stage: int, partition: WindowPartition, rate: float) -> dict[str, nn.Module]:
            dim, heads = dims[stage], num_heads * 2**stage
            if block == "swin":
                return {"swin": SwinBlock(dim, heads, partition, rate)}
            found: dict[str, nn.Module] = {"convnext": ConvNeXtBlock(dim, kernel_size, rate)}
            if block == "parallel":
                arguments = (partition, kernel_size, rate, reference_compat, attention, convolution)
                found["parallel"] = AttentionConvBlock(dim, heads, *arguments)
            return found

        def blocks(stage: int, rates: Sequence[float]) -> list[Block]:
            partitions = [WindowPartition(grid_sizes[stage], windows[stage], shifted) for shifted in (False, True)]
            return [
                Block(parts(stage, partitions[index % 2], rate), activation_checkpointing)
                for index, rate in enumerate(rates)
            ]

        def stages(num: int) -> list[list[Block]]:
            rates = np.linspace(0, drop_path_rate, sum(depths[:num])).tolist()
            ends = np.cumsum((0, *depths[:num]))
            return [blocks(stage, rates[ends[stage] : ends[stage + 1]]) for stage in range(num)]

        # stem blocks of stride 2; the first ones do not down-sample an axis with a smaller stride
        count = max(patch_embed_stride).bit_length() - 1
        stem_strides = [[2 if p >> (count - 1 - i) > 1 else 1 for p in patch_embed_stride] for i in range(count)]
        self.stem = ConvStem(input_channels, embed_dim, stem_strides)
        self.encoder = UNet2022Encoder(stages(num_stages), dims, merge_strides)
        levels = [
            UNet2022DecoderLevel(dims[stage], merge_strides[stage], level_blocks)
            for stage, level_blocks in enumerate(stages(num_stages - 1))
        ]
        heads: list[nn.Module] = [
            DeconvStem(dims[level], num_classes, patch_embed_stride)
            for level in range(num_outputs if auxiliary_heads else 1)
        ]
        branch = None
        if full_resolution_channels:
            branch = FullResolutionBranch(input_channels, dims[0], full_resolution_channels, patch_embed_stride)
            heads[0] = {2: nn.Conv2d, 3: nn.Conv3d}[ndim](full_resolution_channels, num_classes, kernel_size=1)
        self.decoder = UNet2022Decoder(levels[::-1], heads, deep_supervision, branch)

    def encode(self, image: Tensor) -> list[Tensor]:
        self.check_input(image)
        return [features.movedim(-1, 1) for features in self.encoder(self.stem(image))]

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """(batch, input_channels, *patch_size) to logits (batch, num_classes, *patch_size).

        Under deep supervision a list, each output at the resolution that ``strides`` states.

        Raises:
            ValueError: on an image of another size.
        """
        self.check_input(image)
        return self.decoder(image, self.encoder(self.stem(image)))


def _alone(block: str, attention: bool) -> dict[str, str]:
    """What is removed of blocks that have attention or convolution, which then is all of a residual branch."""
    return {
        "swin": {"attention": r"(.*\.swin\.attn)\.proj"},
        "convnext": {"convolution": r"(.*\.convnext\.mlp)"},
        "parallel": {"attention": r"(.*\.parallel\.attn)\.proj"}
        if attention
        else {"convolution": r"(.*\.parallel\.proj)"},
    }[block]


def checkpoint_filter_fn(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Translate the weights of the authors' release (2D) to ``UNet2022``.

    Returns:
        A state dict that loads strictly into the same variant, built with ``reference_compat=True`` and all heads.

    Raises:
        ValueError: if these are not the weights of a released UNet-2022.
    """
    stem_blocks = len([k for k in state_dict if re.fullmatch(r"model_down\.patch_embed\..+\.conv1\.weight", k)])
    levels = len([k for k in state_dict if re.fullmatch(r"decoder\.layers\.\d+\.Upsample\.up\.weight", k)])
    if not stem_blocks or not levels:
        raise ValueError("these are not the weights of a released UNet-2022: no convolution stem or no decoder level")
    in_block = {"conv1": 0, "norm1": 2, "conv2": 3, "norm2": 5}
    rules: list[RenamingRule] = [
        (r"^model_down\.patch_embed\.project_block\.(\d+)\.(\w+)\.", lambda m: f"stem.blocks.{m[1]}.{in_block[m[2]]}."),
        (r"^model_down\.patch_embed\.norm\.", f"stem.blocks.{stem_blocks - 1}.4."),
        (r"^model_down\.layers\.(\d+)\.blocks\.", r"encoder.stages.\1."),
        (r"^model_down\.layers\.(\d+)\.downsample\.norm\.", r"encoder.downsamples.\1.1."),
        (r"^model_down\.layers\.(\d+)\.downsample\.reduction\.", r"encoder.downsamples.\1.2."),
        (r"^model_down\.norm(\d+)\.", r"encoder.norms.\1."),
        (r"^decoder\.layers\.(\d+)\.", lambda m: f"decoder.levels.{levels - 1 - int(m[1])}."),
        (r"\.Upsample\.norm\.", ".expand.0."),
        (r"\.Upsample\.up\.", ".expand.1."),
        (
            r"^final\.(\d+)\.project_block\.(\d+)\.(\w+)\.",
            lambda m: f"decoder.seg_layers.{m[1]}.blocks.{m[2]}.{in_block[m[3]]}.",
        ),
        (r"^final\.(\d+)\.up_final\.", r"decoder.seg_layers.\1.seg."),
        (r"(\.\d+)\.blocks_tr\.norm1\.", r"\1.parallel.norm."),
        (r"(\.\d+)\.blocks_tr\.dwconv\.", r"\1.parallel.conv_dw."),
        (r"(\.\d+)\.blocks_tr\.attn\.relative_position_bias_table$", r"\1.parallel.attn.bias.table"),
        (r"(\.\d+)\.blocks_tr\.attn\.", r"\1.parallel.attn."),
        (r"(\.\d+)\.gamma$", r"\1.convnext.gamma"),
        (r"(\.\d+)\.dwconv\.", r"\1.convnext.conv_dw."),
        (r"(\.\d+)\.norm\.", r"\1.convnext.norm."),
        (r"(\.\d+)\.pwconv(\d)\.", r"\1.convnext.mlp.fc\2."),
    ]
    translated = {}
    for key, value in state_dict.items():
        if key.endswith(("relative_position_index", "attn_mask")):
            continue
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        translated[key] = value
    return translated


register_released_family(
    "unet2022",
    checkpoint_filter_fn,
    head="decoder.seg_layers.0.seg.bias",
    variants=(
        {"auxiliary_heads": True},
        {"auxiliary_heads": True, "patch_embed_stride": 8},
        {"auxiliary_heads": True, "patch_embed_stride": 8, "window_sizes": (16, 16, 16, 8)},
    ),
    patch_sizes=((224, 224), (320, 320), (512, 512)),
)
register_network("unet2022_tiny", UNet2022, {"embed_dim": 48, "num_heads": 3}, embed_dim=96, num_heads=3)
register_network("unet2022_base", UNet2022, {"embed_dim": 64, "num_heads": 4}, embed_dim=128, num_heads=4)
register_network("unet2022_large", UNet2022, {"embed_dim": 96, "num_heads": 3}, embed_dim=192, num_heads=6)
