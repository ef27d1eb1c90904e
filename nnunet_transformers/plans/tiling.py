"""Choose patch size, token strides, stages and windows together, so that windows tile every token grid exactly.

nnU-Net's rules for CNNs, applied to tokens: down-sample an axis while its spacing is within a factor of two of the
finest, keep the patch as large as its CNN plan has it, stop when the deepest grid is small. On top of them comes what
attention needs: a window that divides each grid, since a window that does not pads the grid with tokens that cost as
much as real ones (1.3 to 5.4 times as many in the published network at a patch of 128^3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import inf, log, log2, prod, sqrt

from ..architectures._arguments import token_grids
from ..architectures.layers.window_choice import MAX_WINDOW_TOKENS, choose_window

MIN_GRID = 2
MAX_MERGES = 4
Size = tuple[int, ...]


def tiling_windows(
    grid_sizes: tuple[Size, ...], token_spacings: tuple[tuple[float, ...], ...]
) -> tuple[float, tuple[Size, ...]]:
    """The best window for each grid by itself, and their mean penalty."""
    choices = [choose_window(g, s) for g, s in zip(grid_sizes, token_spacings, strict=True)]
    return sum(penalty for penalty, _ in choices) / len(choices), tuple(window for _, window in choices)


def no_windows(grid_sizes: tuple[Size, ...], token_spacings: tuple[tuple[float, ...], ...]) -> tuple[float, None]:
    """For networks whose attention is not windowed."""
    return 0.0, None


@dataclass(frozen=True)
class TokenRules:
    """Requirements of a network on its token grids.

    Attributes:
        patch_embed_strides_2d, patch_embed_strides_3d: voxels per token and axis that it can have, powers of two from
            coarse to fine. An axis with coarse voxels may have less, down to 1.
        finest_tokens_2d, finest_tokens_3d: tokens of the finest grid up to which a smaller stride is affordable. In 3D
            the published QT-UNet's count at its patch of 128^3 and stride 4, in 2D that of a 512^2 image at stride 4.
        num_stages: number of resolutions, where it is fixed.
        isotropic: whether all axes have the coarsest stride and every stage halves them all, whatever the spacing.
        min_deepest_tokens: fewest tokens that the deepest grid may have.
        windows: chooses the window of each stage; returns a penalty (0 is ideal) and the windows.
    """

    patch_embed_strides_2d: tuple[int, ...] = (4, 2, 1)
    patch_embed_strides_3d: tuple[int, ...] = (4, 2, 1)
    finest_tokens_2d: int = 128**2
    finest_tokens_3d: int = 32**3
    num_stages: int | None = None
    isotropic: bool = False
    min_deepest_tokens: int = 1
    windows: Callable[..., tuple[float, tuple[Size, ...] | None]] = tiling_windows

    def patch_embed_strides(self, ndim: int) -> tuple[int, ...]:
        """Strides that the network can have, from coarse to fine."""
        return self.patch_embed_strides_3d if ndim == 3 else self.patch_embed_strides_2d

    def finest_tokens(self, ndim: int) -> int:
        """Token budget of the finest grid."""
        return self.finest_tokens_3d if ndim == 3 else self.finest_tokens_2d


@dataclass(frozen=True)
class TokenPlan:
    """Everything that ties a patch to its token grids.

    Attributes:
        patch_size: voxels per axis.
        patch_embed_stride: voxels per token and axis.
        merge_strides: tokens merged after each stage but the last, per axis.
        window_sizes: attention window of each stage, per axis; divides the stage's grid. None without windows.
    """

    patch_size: Size
    patch_embed_stride: Size
    merge_strides: tuple[Size, ...]
    window_sizes: tuple[Size, ...] | None

    @property
    def num_stages(self) -> int:
        return len(self.merge_strides) + 1

    @property
    def grid_sizes(self) -> tuple[Size, ...]:
        """Tokens per axis of each stage."""
        return token_grids(self.patch_size, (self.patch_embed_stride, *self.merge_strides))


def choose_patch_embed_stride(patch_size: Sequence[int], spacing: Sequence[float], rules: TokenRules) -> Size:
    """Voxels per token and axis: tokens about as long in mm on every axis, as fine as the budget allows.

    Args:
        patch_size: wanted patch in voxels.
        spacing: mm per voxel.
        rules: the network's.
    """
    strides = rules.patch_embed_strides(len(patch_size))
    coarsest, *finer = strides
    if rules.isotropic:
        return (coarsest,) * len(patch_size)
    powers = [2**n for n in range(coarsest.bit_length())]

    def stride_for(base: int) -> Size:
        token = 1.001 * base * min(spacing) * sqrt(2)
        return tuple(
            max((p for p in powers if p <= base and p * s <= token and n >= p * 4), default=1)
            for n, s in zip(patch_size, spacing, strict=True)
        )

    stride = stride_for(coarsest)
    for base in finer:
        candidate = stride_for(base)
        tokens = prod(n / p for n, p in zip(patch_size, candidate, strict=True))
        if tokens > rules.finest_tokens(len(patch_size)):
            break
        stride = candidate
    if max(stride) < strides[-1]:
        # an image too small for the finest stride that the network has: the patch grows to it
        stride = tuple(strides[-1] if s < 2 * min(spacing) else 1 for s in spacing)
    return stride


def choose_merge_strides(
    grid_size: Sequence[float], token_spacing: Sequence[float], max_merges: int = MAX_MERGES
) -> tuple[tuple[int, ...], ...]:
    """Merge the axes whose token spacing is within a factor of two of the finest, as nnU-Net pools."""
    grid, spacing = list(grid_size), list(token_spacing)
    merges: list[tuple[int, ...]] = []
    while len(merges) < max_merges:
        able = [a for a in range(len(grid)) if grid[a] >= 2 * MIN_GRID]
        if not able:
            break
        finest = min(spacing[a] for a in able)
        stride = tuple(2 if a in able and spacing[a] < 2 * finest else 1 for a in range(len(grid)))
        grid = [g / s for g, s in zip(grid, stride, strict=True)]
        spacing = [x * s for x, s in zip(spacing, stride, strict=True)]
        merges.append(stride)
    return tuple(merges)


def _sizes_near(target: int, step: int) -> list[int]:
    """Multiples of ``step`` around ``target``: those next to it and those within a fifth of it."""
    below = max(1, target // step)
    near = {below, below + 1}
    near |= {n for n in range(below - 2, below + 3) if n > 0 and abs(n * step / target - 1) <= 0.2}
    return [n * step for n in sorted(near)]


def plan_tokens(
    patch_size: Sequence[int],
    spacing: Sequence[float],
    rules: TokenRules = TokenRules(),
    patch_embed_stride: Size | None = None,
) -> TokenPlan:
    """Choose a patch near ``patch_size`` and everything that follows from it.

    Args:
        patch_size: wanted patch in voxels, nnU-Net's own.
        spacing: mm per voxel; only its proportions matter.
        rules: the network's.
        patch_embed_stride: keep this one instead of choosing it.
    """
    # to a fifth: nnU-Net changes the spacing in small steps to find 3d_lowres, and the plan need not follow each
    relative = tuple(2 ** (round(4 * log2(float(s) / min(spacing))) / 4) for s in spacing)
    return _plan_tokens(tuple(int(n) for n in patch_size), relative, rules, patch_embed_stride)


def _merge_options(target: Size, stem: Size, token_spacing: tuple[float, ...], rules: TokenRules) -> list:
    """The sequences of merges that the network may have, fewest first."""
    if rules.isotropic:
        assert rules.num_stages is not None, "isotropic token rules need num_stages"
        return [((2,) * len(target),) * (rules.num_stages - 1)]
    most = MAX_MERGES if rules.num_stages is None else rules.num_stages - 1
    merges = choose_merge_strides([n / p for n, p in zip(target, stem, strict=True)], token_spacing, most)
    # deep supervision wants three strides, of which patch embedding is one unless it keeps every voxel
    fewest = most if rules.num_stages is not None else 1 if prod(stem) > 1 else 2
    merges += ((2,) * len(target),) * (fewest - len(merges))
    return [merges[:count] for count in range(fewest, len(merges) + 1)]


@lru_cache(maxsize=4096)
def _plan_tokens(
    target: Size, spacing: tuple[float, ...], rules: TokenRules, patch_embed_stride: Size | None
) -> TokenPlan:
    stem = patch_embed_stride or choose_patch_embed_stride(target, spacing, rules)
    token_spacing = tuple(s * p for s, p in zip(spacing, stem, strict=True))
    best: tuple[float, TokenPlan] | None = None
    for merges in _merge_options(target, stem, token_spacing, rules):
        step = tuple(map(prod, zip(stem, *merges, strict=True)))
        spacings = [token_spacing]
        for stride in merges:
            spacings.append(tuple(x * s for x, s in zip(spacings[-1], stride, strict=True)))
        for size in product(*(_sizes_near(n, s) for n, s in zip(target, step, strict=True))):
            stage_grids = token_grids(size, (stem, *merges))
            window_penalty, windows = rules.windows(stage_grids, tuple(spacings))
            deepest = prod(stage_grids[-1])
            if deepest < rules.min_deepest_tokens:
                continue
            penalty = sum(abs(log(n / t)) for n, t in zip(size, target, strict=True)) + 0.15 * window_penalty
            # the bottleneck should see the whole patch, but hold more than a handful of tokens
            penalty += 0.2 * max(0.0, log(deepest / MAX_WINDOW_TOKENS[len(target)])) + 0.1 * max(0.0, log(27 / deepest))
            if best is None or penalty < best[0] - 1e-9:
                best = penalty, TokenPlan(size, stem, merges, windows)
    assert best is not None, "no patch near the target has enough tokens"
    return best[1]


def shrink(patch_size: Sequence[int], reference: Sequence[float], factor: float = 0.9) -> tuple[int, ...]:
    """A smaller target: the axis that covers most of ``reference`` (the median image) gives way, as in nnU-Net."""
    ratios = [n / r if n > 1 else -inf for n, r in zip(patch_size, reference, strict=True)]
    axis = ratios.index(max(ratios))
    size = list(patch_size)
    size[axis] = max(1, min(size[axis] - 1, round(size[axis] * factor)))
    return tuple(size)
