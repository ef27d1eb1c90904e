"""Choose patch size, token strides, stages and windows together, so that windows tile every token grid exactly.

The rules are nnU-Net's for CNNs, applied to tokens: down-sample an axis while its spacing is within a factor of two of
the finest, keep the patch as large as in the CNN's plan, stop when the deepest grid is small. In addition windows have
to divide each grid: otherwise padding tokens are added, which cost as much as real ones (the published network at a
patch of 128^3 has 1.3 to 5.4 times as many tokens with them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import inf, log, log2, prod, sqrt
from operator import itemgetter

from ..architectures._arguments import token_grids
from ..architectures.layers.window_choice import choose_window

# fewest tokens on an axis that is merged, after merging; most down-samplings of the token grid
MIN_GRID = 2
MAX_MERGES = 4
# tokens of the deepest grid above which one more stage is better
GOOD_DEEPEST_TOKENS = {2: 8**2, 3: 350}
# penalty of a plan with two stages where the target has room for more: 0.4 million parameters in QT-UNet T
TWO_STAGES = 0.2
Size = tuple[int, ...]
Merges = tuple[Size, ...]


def tiling_windows(
    grid_sizes: tuple[Size, ...], token_spacings: tuple[tuple[float, ...], ...]
) -> tuple[float, tuple[Size, ...]]:
    """Choose the best window for each grid independently.

    Args:
        grid_sizes: tokens per axis of each stage.
        token_spacings: mm per token and axis of each stage.

    Returns:
        the mean penalty (0 is ideal) and the windows.
    """
    choices = [choose_window(g, s) for g, s in zip(grid_sizes, token_spacings, strict=True)]
    return sum(penalty for penalty, _ in choices) / len(choices), tuple(window for _, window in choices)


def no_windows(grid_sizes: tuple[Size, ...], token_spacings: tuple[tuple[float, ...], ...]) -> tuple[float, None]:
    """Choose no windows, for networks without windowed attention."""
    return 0.0, None


@dataclass(frozen=True)
class TokenRules:
    """Requirements of a network on its token grids.

    Attributes:
        patch_embed_strides_2d, patch_embed_strides_3d: possible voxels per token and axis, powers of two from coarse to
            fine. An axis with coarse voxels may have a smaller stride, down to 1.
        finest_tokens_2d, finest_tokens_3d: most tokens of the finest grid with which a smaller stride is chosen. In 3D
            the published QT-UNet's at its patch of 128^3 and stride 4, in 2D those of a 256^2 image at stride 4:
            with four times as many a step takes several times as long, and trainings at equal cost reach a lower Dice
            (benchmarks/results/accuracy.md).
        num_stages: number of resolutions, where it is fixed.
        isotropic: whether all axes have the coarsest stride and every stage halves them all, whatever the spacing.
        min_deepest_tokens: fewest tokens that the deepest grid may have.
        windows: chooses the window of each stage, as ``tiling_windows`` and ``no_windows``.
    """

    patch_embed_strides_2d: tuple[int, ...] = (4, 2, 1)
    patch_embed_strides_3d: tuple[int, ...] = (4, 2, 1)
    finest_tokens_2d: int = 64**2
    finest_tokens_3d: int = 32**3
    num_stages: int | None = None
    isotropic: bool = False
    min_deepest_tokens: int = 1
    windows: Callable[..., tuple[float, tuple[Size, ...] | None]] = tiling_windows

    def patch_embed_strides(self, ndim: int) -> tuple[int, ...]:
        """Possible strides in ``ndim`` dimensions, from coarse to fine."""
        return self.patch_embed_strides_3d if ndim == 3 else self.patch_embed_strides_2d

    def finest_tokens(self, ndim: int) -> int:
        """Token budget of the finest grid in ``ndim`` dimensions."""
        return self.finest_tokens_3d if ndim == 3 else self.finest_tokens_2d


@dataclass(frozen=True)
class TokenPlan:
    """A patch with its strides and windows.

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
        """Resolutions, including the bottleneck."""
        return len(self.merge_strides) + 1

    @property
    def grid_sizes(self) -> tuple[Size, ...]:
        """Tokens per axis of each stage."""
        return token_grids(self.patch_size, (self.patch_embed_stride, *self.merge_strides))


def choose_patch_embed_stride(patch_size: Sequence[int], spacing: Sequence[float], rules: TokenRules) -> Size:
    """Choose voxels per token and axis: tokens of about equal length in mm on all axes, as fine as the budget allows.

    Args:
        patch_size: target patch in voxels.
        spacing: mm per voxel.
        rules: the network's requirements.
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
        # the image is too small for the network's finest stride: the patch grows to it
        stride = tuple(strides[-1] if s < 2 * min(spacing) else 1 for s in spacing)
    return stride


def choose_merge_strides(
    grid_size: Sequence[float],
    token_spacing: Sequence[float],
    max_merges: int = MAX_MERGES,
    most_per_axis: Sequence[int] | None = None,
) -> tuple[tuple[int, ...], ...]:
    """Choose strides that merge the axes whose token spacing is within a factor of two of the finest, as nnU-Net pools.

    Args:
        grid_size: tokens per axis of the finest grid.
        token_spacing: mm per token and axis.
        max_merges: most strides to return.
        most_per_axis: most merges of each axis; as many as there are by default.
    """
    grid, spacing = list(grid_size), list(token_spacing)
    left = list(most_per_axis or [max_merges] * len(grid))
    merges: list[tuple[int, ...]] = []
    while len(merges) < max_merges:
        able = [a for a in range(len(grid)) if grid[a] >= 2 * MIN_GRID and left[a]]
        if not able:
            break
        finest = min(spacing[a] for a in able)
        stride = tuple(2 if a in able and spacing[a] < 2 * finest else 1 for a in range(len(grid)))
        grid = [g / s for g, s in zip(grid, stride, strict=True)]
        spacing = [x * s for x, s in zip(spacing, stride, strict=True)]
        left = [n - (s > 1) for n, s in zip(left, stride, strict=True)]
        merges.append(stride)
    return tuple(merges)


def _sizes_near(target: int, step: int) -> list[int]:
    """Multiples of ``step`` around ``target``: the two neighbours and those within a fifth of it."""
    below = max(1, target // step)
    near = {below, below + 1}
    near |= {n for n in range(below - 2, below + 3) if n > 0 and abs(n * step / target - 1) <= 0.2}
    return [n * step for n in sorted(near)]


def plan_tokens(
    patch_size: Sequence[int],
    spacing: Sequence[float],
    rules: TokenRules = TokenRules(),
    patch_embed_stride: Size | None = None,
    max_stages: int | None = None,
) -> TokenPlan:
    """Choose a patch near ``patch_size`` and everything that follows from it.

    Args:
        patch_size: target patch in voxels, as nnU-Net plans it.
        spacing: mm per voxel; only its proportions matter.
        rules: the network's requirements.
        patch_embed_stride: use this stride instead of choosing one.
        max_stages: most resolutions, where the network has that many or can have fewer.
    """
    return _plan_tokens(
        tuple(int(n) for n in patch_size), _relative(spacing), rules, patch_embed_stride, max_stages or MAX_MERGES + 1
    )


def choose_windows(
    patch_size: Sequence[int], spacing: Sequence[float], strides: tuple[Size, ...], rules: TokenRules = TokenRules()
) -> tuple[Size, ...] | None:
    """Choose the windows of a patch whose strides are given.

    Args:
        patch_size: voxels per axis.
        spacing: mm per voxel; only its proportions matter.
        strides: of the patch embedding and the merges, per stage and axis.
        rules: the network's requirements.

    Returns:
        the window of each stage, None for a network without windows.

    Raises:
        ValueError: if the total stride does not divide the patch.
    """
    return rules.windows(token_grids(patch_size, strides), _token_spacings(_relative(spacing), strides))[1]


def _relative(spacing: Sequence[float]) -> tuple[float, ...]:
    # rounded to a fifth: nnU-Net searches the spacing of 3d_lowres in small steps, most of which the cache serves
    return tuple(2 ** (round(4 * log2(float(s) / min(spacing))) / 4) for s in spacing)


def _token_spacings(spacing: tuple[float, ...], strides: tuple[Size, ...]) -> tuple[tuple[float, ...], ...]:
    """Length of a token on each axis after each of the strides."""
    spacings = []
    for stride in strides:
        spacing = tuple(x * s for x, s in zip(spacing, stride, strict=True))
        spacings.append(spacing)
    return tuple(spacings)


def _merge_options(
    target: Size, stem: Size, token_spacing: tuple[float, ...], rules: TokenRules, max_stages: int
) -> list[tuple[Size, ...]]:
    """Possible sequences of merges, shortest first."""
    if rules.isotropic:
        assert rules.num_stages is not None, "isotropic token rules need num_stages"
        return [((2,) * len(target),) * (rules.num_stages - 1)]
    most = MAX_MERGES if rules.num_stages is None else rules.num_stages - 1
    merges = choose_merge_strides([n / p for n, p in zip(target, stem, strict=True)], token_spacing, most)
    # deep supervision needs three strides; the patch embedding is one of them unless its stride is 1
    fewest = most if rules.num_stages is not None else 1 if prod(stem) > 1 else 2
    merges += ((2,) * len(target),) * (fewest - len(merges))
    most = max(fewest, min(len(merges), max_stages - 1))
    return [merges[:count] for count in range(fewest, most + 1)]


def _deeper_options(target: Size, stem: Size, token_spacing: tuple[float, ...], max_stages: int) -> set[Merges]:
    """Possible sequences of at least two merges in which one axis, or axes of one length, are merged less often.

    Twenty thick slices are 10 tokens, then 5: a third grid of 2.5 would need four slices more or less.
    """
    grid = [n / p for n, p in zip(target, stem, strict=True)]
    options = set()
    for length, most in product({*grid}, range(MAX_MERGES)):
        per_axis = [most if n == length else MAX_MERGES for n in grid]
        merges = choose_merge_strides(grid, token_spacing, min(MAX_MERGES, max_stages - 1), per_axis)
        options |= {merges[:count] for count in range(2, len(merges) + 1)}
    return options


@lru_cache(maxsize=4096)
def _plan_tokens(
    target: Size, spacing: tuple[float, ...], rules: TokenRules, patch_embed_stride: Size | None, max_stages: int
) -> TokenPlan:
    stem = patch_embed_stride or choose_patch_embed_stride(target, spacing, rules)
    token_spacing = tuple(s * p for s, p in zip(spacing, stem, strict=True))
    penalty, best = _best_plan(
        target, spacing, stem, rules, _merge_options(target, stem, token_spacing, rules, max_stages)
    )
    if rules.num_stages is None and best.num_stages == 2:
        # little more than a few layers at one resolution, and a matter of a few slices
        deeper = _deeper_options(target, stem, token_spacing, max_stages)
        if deeper:
            found = _best_plan(target, spacing, stem, rules, deeper)
            _, best = min((penalty + TWO_STAGES, best), found, key=itemgetter(0))
    return best


def _best_plan(
    target: Size, spacing: tuple[float, ...], stem: Size, rules: TokenRules, options: Iterable[Merges]
) -> tuple[float, TokenPlan]:
    """Return the patch and the merges with the least penalty, and that."""
    candidates = []
    for merges in options:
        step = tuple(map(prod, zip(stem, *merges, strict=True)))
        for size in product(*(_sizes_near(n, s) for n, s in zip(target, step, strict=True))):
            tokens = TokenPlan(size, stem, merges, window_sizes=None)
            deepest = prod(tokens.grid_sizes[-1])
            if deepest >= rules.min_deepest_tokens:
                candidates.append((_penalty(size, target, deepest), tokens))
    assert candidates, "no patch near the target has enough tokens"

    def with_windows(penalty: float, tokens: TokenPlan) -> tuple[float, TokenPlan]:
        spacings = _token_spacings(spacing, (stem, *tokens.merge_strides))
        window_penalty, windows = rules.windows(tokens.grid_sizes, spacings)
        return penalty + 0.15 * window_penalty, replace(tokens, window_sizes=windows)

    # windows only add to the penalty, and choosing them takes most of the time: not for sizes that are worse without
    bound, _ = with_windows(*min(candidates, key=itemgetter(0)))
    best = inf, candidates[0][1]
    for penalty, tokens in candidates:
        if penalty <= min(bound, best[0]):
            found = with_windows(penalty, tokens)
            if found[0] < best[0] - 1e-9:
                best = found
    return best


def _penalty(size: Size, target: Size, deepest: int) -> float:
    """How far a patch is from the target, and its deepest number of tokens from one that is good; 0 is ideal."""
    penalty = sum(abs(log(n / t)) for n, t in zip(size, target, strict=True))
    # the bottleneck should see the whole patch, but hold more than a handful of tokens
    penalty += 0.2 * max(0.0, log(deepest / GOOD_DEEPEST_TOKENS[len(target)])) + 0.1 * max(0.0, log(27 / deepest))
    return penalty


def shrink(patch_size: Sequence[int], reference: Sequence[float], factor: float = 0.9) -> tuple[int, ...]:
    """Shrink the axis that covers most of ``reference`` (the median image) by ``factor``, as nnU-Net does."""
    ratios = [n / r if n > 1 else -inf for n, r in zip(patch_size, reference, strict=True)]
    axis = ratios.index(max(ratios))
    size = list(patch_size)
    size[axis] = max(1, min(size[axis] - 1, round(size[axis] * factor)))
    return tuple(size)
