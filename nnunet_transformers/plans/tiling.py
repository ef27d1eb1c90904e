"""Choose patch size, token strides, stages and windows together, so that windows tile every token grid exactly.

nnU-Net's rules for CNNs, said of tokens: down-sample an axis while its spacing is within a factor of two of the
finest, keep the patch as large as its CNN plan has it, stop when the deepest grid is small. On top of them comes what
attention needs: a window that divides each grid, since a window that does not pads the grid with tokens that cost as
much as real ones (1.3 to 5.4 times as many in the published network at a patch of 128^3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import inf, log, log2, prod, sqrt

# tokens in a window: about the published 7^3 at most, and rather 6^3, as attention's cost grows with them; in 2D fewer
# reach as far
MAX_WINDOW_TOKENS = {2: 256, 3: 350}
GOOD_WINDOW_TOKENS = {2: 14**2, 3: 6**3}
# tokens of the finest grid up to which a smaller patch-embedding stride is affordable: in 3D the published network's
# count at its published patch of 128^3 and stride 4, in 2D that of a 512^2 image at stride 4
FINEST_TOKENS = {2: 128**2, 3: 32**3}
MIN_GRID = 2
MAX_MERGES = 4


@dataclass(frozen=True)
class TokenPlan:
    """Everything that ties a patch to its token grids.

    Attributes:
        patch_size: voxels per axis.
        patch_embed_stride: voxels per token and axis, each 1, 2 or 4.
        merge_strides: tokens merged after each stage but the last, per axis.
        window_sizes: attention window of each stage, per axis; divides the stage's grid.
    """

    patch_size: tuple[int, ...]
    patch_embed_stride: tuple[int, ...]
    merge_strides: tuple[tuple[int, ...], ...]
    window_sizes: tuple[tuple[int, ...], ...]

    @property
    def num_stages(self) -> int:
        return len(self.merge_strides) + 1

    @property
    def grid_sizes(self) -> tuple[tuple[int, ...], ...]:
        """Tokens per axis of each stage."""
        return grids(divide(self.patch_size, self.patch_embed_stride), self.merge_strides)

    @property
    def strides(self) -> tuple[tuple[int, ...], ...]:
        """Down-sampling per stage as nnU-Net's plans have it; voxel tokens need no entry for patch embedding."""
        full_resolution = (1,) * len(self.patch_size)
        stem = () if self.patch_embed_stride == full_resolution else (self.patch_embed_stride,)
        return (full_resolution, *stem, *self.merge_strides)


def divide(size: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    return tuple(n // s for n, s in zip(size, stride, strict=True))


def grids(finest: tuple[int, ...], merge_strides: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """The finest grid and those after each merge."""
    result = [finest]
    for stride in merge_strides:
        result.append(divide(result[-1], stride))
    return tuple(result)


def choose_patch_embed_stride(patch_size: Sequence[int], spacing: Sequence[float]) -> tuple[int, ...]:
    """Voxels per token and axis: tokens about as long in mm on every axis, as fine as the budget allows.

    Args:
        patch_size: wanted patch in voxels.
        spacing: mm per voxel.
    """

    def stride_for(base: int) -> tuple[int, ...]:
        token = 1.001 * base * min(spacing) * sqrt(2)
        return tuple(
            max((p for p in (1, 2, 4) if p <= base and p * s <= token and n >= p * 4), default=1)
            for n, s in zip(patch_size, spacing, strict=True)
        )

    stride = stride_for(4)
    for base in (2, 1):
        finer = stride_for(base)
        if prod(n / p for n, p in zip(patch_size, finer, strict=True)) > FINEST_TOKENS[len(patch_size)]:
            break
        stride = finer
    return stride


def choose_merge_strides(
    grid_size: Sequence[float], token_spacing: Sequence[float], max_merges: int = MAX_MERGES
) -> tuple[tuple[int, ...], ...]:
    """Merge the axes whose token spacing is within a factor of two of the finest, as nnU-Net pools."""
    grid, spacing, merges = list(grid_size), list(token_spacing), []
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


@lru_cache(maxsize=4096)
def choose_window(grid_size: tuple[int, ...], token_spacing: tuple[float, ...]) -> tuple[float, tuple[int, ...]]:
    """The window that divides the grid, holds about ``GOOD_WINDOW_TOKENS`` and is near a cube in mm.

    Returns:
        its penalty (0 is ideal) and the window.
    """
    best = (inf, grid_size)
    limit = MAX_WINDOW_TOKENS[len(grid_size)]
    divisors = [[d for d in range(1, min(g, limit) + 1) if g % d == 0] for g in grid_size]
    for window in product(*divisors):
        tokens = prod(window)
        if tokens > limit:
            continue
        if window == grid_size:
            return 0.0, window
        # deviation from a cube in mm; an axis that the window spans entirely is not to blame for being short
        edges = [log(w * s) for w, s in zip(window, token_spacing, strict=True)]
        mean = sum(edges) / len(edges)
        shape = sum(
            max(0.0, e - mean) if w == g else abs(e - mean) for e, w, g in zip(edges, window, grid_size, strict=True)
        )
        best = min(best, (abs(log(tokens / GOOD_WINDOW_TOKENS[len(window)])) + shape, window))
    return best


def _sizes_near(target: int, step: int) -> list[int]:
    """Multiples of ``step`` around ``target``: the two next to it and those within a fifth of it."""
    below = max(1, target // step)
    near = {below, below + (target % step > 0)}
    near |= {n for n in range(below - 2, below + 3) if n > 0 and abs(n * step / target - 1) <= 0.2}
    return [n * step for n in sorted(near)]


def plan_tokens(
    patch_size: Sequence[int], spacing: Sequence[float], patch_embed_stride: tuple[int, ...] | None = None
) -> TokenPlan:
    """Choose a patch near ``patch_size`` and everything that follows from it.

    Args:
        patch_size: wanted patch in voxels, nnU-Net's own.
        spacing: mm per voxel; only its proportions matter.
        patch_embed_stride: keep this one instead of choosing it.
    """
    # to a fifth: nnU-Net changes the spacing in small steps to find 3d_lowres, and the plan need not follow each
    relative = tuple(2 ** (round(4 * log2(float(s) / min(spacing))) / 4) for s in spacing)
    return _plan_tokens(tuple(int(n) for n in patch_size), relative, patch_embed_stride)


@lru_cache(maxsize=4096)
def _plan_tokens(
    target: tuple[int, ...], spacing: tuple[float, ...], patch_embed_stride: tuple[int, ...] | None
) -> TokenPlan:
    stem = patch_embed_stride or choose_patch_embed_stride(target, spacing)
    token_spacing = tuple(s * p for s, p in zip(spacing, stem, strict=True))
    all_merges = choose_merge_strides([n / p for n, p in zip(target, stem, strict=True)], token_spacing)
    # deep supervision wants three strides, of which patch embedding is one unless it keeps every voxel
    fewest = 1 if prod(stem) > 1 else 2
    if len(all_merges) < fewest:
        all_merges += ((2,) * len(target),) * (fewest - len(all_merges))

    best: tuple[float, TokenPlan] | None = None
    for count in range(fewest, len(all_merges) + 1):
        merges = all_merges[:count]
        step = tuple(map(prod, zip(stem, *merges, strict=True)))
        for size in product(*(_sizes_near(n, s) for n, s in zip(target, step, strict=True))):
            stage_grids = grids(divide(size, stem), merges)
            spacings = [token_spacing]
            for stride in merges:
                spacings.append(tuple(x * s for x, s in zip(spacings[-1], stride, strict=True)))
            choices = [choose_window(g, s) for g, s in zip(stage_grids, spacings, strict=True)]
            deepest = prod(stage_grids[-1])
            penalty = sum(abs(log(n / t)) for n, t in zip(size, target, strict=True))
            penalty += 0.15 * sum(p for p, _ in choices) / len(choices)
            # the bottleneck should see the whole patch, but hold more than a handful of tokens
            penalty += 0.2 * max(0.0, log(deepest / MAX_WINDOW_TOKENS[len(target)])) + 0.1 * max(0.0, log(27 / deepest))
            if best is None or penalty < best[0] - 1e-9:
                best = penalty, TokenPlan(size, stem, merges, tuple(w for _, w in choices))
    return best[1]


def shrink(patch_size: Sequence[int], reference: Sequence[float], factor: float = 0.9) -> tuple[int, ...]:
    """A smaller target: the axis that covers most of ``reference`` (the median image) gives way, as in nnU-Net."""
    ratios = [n / r if n > 1 else -inf for n, r in zip(patch_size, reference, strict=True)]
    axis = ratios.index(max(ratios))
    size = list(patch_size)
    size[axis] = max(1, min(size[axis] - 1, round(size[axis] * factor)))
    return tuple(size)
