"""Patch, strides and windows over random images."""

from __future__ import annotations

from itertools import product
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_transformers.architectures.layers.window_choice import MAX_WINDOW_TOKENS, choose_window
from nnunet_transformers.plans import tiling
from nnunet_transformers.plans.mit import MiTPlanner
from nnunet_transformers.plans.tiling import TokenRules, choose_patch_embed_stride, plan_tokens, shrink
from nnunet_transformers.plans.unet2022 import UNet2022Planner


@st.composite
def patches(draw):
    ndim = draw(st.sampled_from([2, 3]))
    largest = 800 if ndim == 2 else 320
    size = tuple(draw(st.lists(st.integers(8, largest), min_size=ndim, max_size=ndim)))
    spacing = tuple(draw(st.lists(st.floats(0.2, 10), min_size=ndim, max_size=ndim)))
    return size, spacing


@settings(max_examples=100, deadline=None)
@given(patches())
def test_windows_tile_every_grid(case):
    size, spacing = case
    tokens = plan_tokens(size, spacing)
    assert len(tokens.window_sizes) == len(tokens.grid_sizes) == tokens.num_stages
    for grid, window in zip(tokens.grid_sizes, tokens.window_sizes, strict=True):
        assert all(g % w == 0 for g, w in zip(grid, window, strict=True))
        assert prod(window) <= MAX_WINDOW_TOKENS[len(size)]
    strides = (tokens.patch_embed_stride, *tokens.merge_strides)
    assert len(strides) >= 2
    for axis, n in enumerate(tokens.patch_size):
        assert n == tokens.grid_sizes[-1][axis] * prod(s[axis] for s in strides)
        assert tokens.patch_embed_stride[axis] in (1, 2, 4)
        # close to nnU-Net's: within a fifth, or to the next multiple of the stride where that is coarse
        step = prod(s[axis] for s in strides)
        assert abs(n - size[axis]) <= max(0.2 * size[axis], step)


def test_sizes_near_a_target():
    """The neighbours, and what is within a fifth."""
    assert tiling._sizes_near(100, 10) == [80, 90, 100, 110, 120]
    assert tiling._sizes_near(100, 16) == [80, 96, 112]
    assert tiling._sizes_near(10, 16) == [16, 32]


@pytest.mark.parametrize("depth,stride", [(1.0, 4), (2**0.5, 4), (1.5, 2), (8**0.5, 2), (3.0, 1)])
def test_tokens_are_of_about_equal_length(depth, stride):
    """To within a factor of the root of 2, whatever the unit of length."""
    for unit in (1.0, 0.5):
        spacing = (unit * depth, unit, unit)
        assert choose_patch_embed_stride((160, 160, 160), spacing, TokenRules()) == (stride, 4, 4)


@pytest.mark.parametrize(
    "patch_size, stride",
    [
        ((128, 128), 2),
        ((160, 128), 4),
        ((256, 224), 4),
        ((64, 32), 1),
        ((64, 64, 64), 2),
        ((72, 64, 64), 4),
        ((32, 32, 32), 1),
    ],
)
def test_finer_tokens_are_for_small_patches(patch_size, stride):
    """To 64^2 tokens in 2D and 32^3 in 3D."""
    assert choose_patch_embed_stride(patch_size, (1,) * len(patch_size), TokenRules()) == (stride,) * len(patch_size)


def test_merges_follow_the_spacing_of_the_tokens():
    """A token of 2x4x4 voxels of 4x1x1 mm is 8 mm deep: the first merge leaves that axis alone."""
    tokens = plan_tokens((32, 128, 128), (4, 1, 1), patch_embed_stride=(2, 4, 4))
    assert tokens.merge_strides[:2] == ((1, 2, 2), (2, 2, 2))


@settings(max_examples=10, deadline=None)
@given(patches())
def test_no_patch_near_it_is_better(case):
    """Windows are chosen for few of the patches that come into question; the others' would not do."""
    target, spacing = case
    spacing = tiling._relative(spacing)
    plan = plan_tokens(target, spacing)
    stem = plan.patch_embed_stride

    def penalty(size, merges):
        strides = (stem, *merges)
        grids = tuple(
            tuple(n // prod(s[a] for s in strides[: i + 1]) for a, n in enumerate(size)) for i in range(len(strides))
        )
        lengths = tuple(
            tuple(x * prod(s[a] for s in strides[: i + 1]) for a, x in enumerate(spacing)) for i in range(len(strides))
        )
        windows = sum(choose_window(grid, length)[0] for grid, length in zip(grids, lengths, strict=True)) / len(grids)
        return tiling._penalty(size, target, prod(grids[-1])) + 0.15 * windows

    merges = tiling._merge_options(
        target, stem, tuple(x * s for x, s in zip(spacing, stem, strict=True)), TokenRules(), tiling.MAX_MERGES + 1
    )
    others = [
        (penalty(size, option), len(option))
        for option in merges
        for size in product(*(tiling._sizes_near(n, prod(s[a] for s in (stem, *option))) for a, n in enumerate(target)))
    ]
    least, merged = min(others)
    if merged > 1:
        assert penalty(plan.patch_size, plan.merge_strides) == pytest.approx(least, abs=1e-8)
    else:  # two stages: a deeper plan may be as much worse
        assert penalty(plan.patch_size, plan.merge_strides) <= least + tiling.TWO_STAGES + 1e-8


@pytest.mark.parametrize("spacing", [(3, 1.2, 1.2), (2.5, 1, 1), (1, 1, 1)])
@pytest.mark.parametrize("size", [(20, 96, 96), (48, 56, 56), (80, 56, 56), (72, 72, 72)])
def test_room_for_three_stages_is_used(size, spacing):
    """Two are 0.4 million parameters in QT-UNet T, and were planned for some numbers of slices between others."""
    plan = plan_tokens(size, spacing)
    assert plan.num_stages >= 3
    assert prod(plan.patch_size) == pytest.approx(prod(size), rel=0.5)


def test_an_axis_of_odd_length_is_left_alone():
    plan = plan_tokens((20, 96, 96), (3, 1.2, 1.2))
    assert plan.patch_size == (20, 96, 96)
    assert plan.grid_sizes == ((10, 24, 24), (5, 12, 12), (5, 6, 6), (5, 3, 3))


@settings(max_examples=100, deadline=None)
@given(patches())
def test_coarse_axis_is_kept(case):
    size, spacing = case
    stride = plan_tokens(size, spacing).patch_embed_stride
    for (a, s), (b, t) in zip(zip(stride, spacing, strict=True), zip(stride, spacing, strict=True), strict=True):
        if s >= 4 * t:
            assert a <= b
    coarse = max(range(len(size)), key=lambda axis: spacing[axis])
    if spacing[coarse] >= 4 * min(spacing):
        assert stride[coarse] == 1 or stride[coarse] < max(stride)


def test_small_isotropic_patch():
    tokens = plan_tokens((40, 56, 40), (1, 1, 1))
    assert tokens.patch_size == (40, 56, 40)
    assert tokens.patch_embed_stride == (2, 2, 2)
    assert tokens.grid_sizes == ((20, 28, 20), (10, 14, 10), (5, 7, 5))
    assert tokens.window_sizes == ((5, 7, 5),) * 3


@pytest.mark.parametrize("size,window", [((96, 96, 96), (6, 6, 6)), ((112, 112, 112), (7, 7, 7)), ((512, 512), (8, 8))])
def test_large_patch_keeps_the_published_stride(size, window):
    tokens = plan_tokens(size, (1,) * len(size))
    assert tokens.patch_size == size
    assert set(tokens.patch_embed_stride) == {4}
    assert tokens.window_sizes[0] == window


@pytest.mark.parametrize("size,grid", [((512, 512), (8, 8)), ((256, 224), (8, 7)), ((320, 320), (5, 5))])
def test_deepest_grid_in_2d(size, grid):
    """It holds at most 8x8 tokens where one more stage is possible, though a window could hold all of 16x16."""
    assert plan_tokens(size, (1, 1)).grid_sizes[-1] == grid


def test_shrink_takes_the_axis_that_covers_most():
    assert shrink((100, 100, 100), (100, 200, 300)) == (90, 100, 100)
    assert shrink((1, 8, 8), (1, 80, 80)) == (1, 7, 8)


@settings(max_examples=100, deadline=None)
@given(patches())
def test_fixed_number_of_stages(case):
    size, spacing = case
    tokens = plan_tokens(size, spacing, MiTPlanner.token_rules)
    assert len(tokens.merge_strides) == 3
    assert tokens.window_sizes is None
    assert 2 <= max(tokens.patch_embed_stride) <= 4
    assert prod(tokens.grid_sizes[-1]) >= 2
    for n, *strides in zip(tokens.patch_size, tokens.patch_embed_stride, *tokens.merge_strides, strict=True):
        assert n % prod(strides) == 0


@pytest.mark.parametrize(
    "size,stride,windows",
    [
        (224, 4, [7, 7, 14, 7]),
        (320, 4, [10, 10, 20, 10]),
        (512, 8, [8, 8, 16, 8]),
        # r of 12 is beyond the published rule: divisors of 96, 48, 24 and 12
        (384, 4, [8, 8, 8, 12]),
    ],
)
def test_published_configurations_of_unet2022(size, stride, windows):
    tokens = plan_tokens((size, size), (1, 1), UNet2022Planner.token_rules)
    assert tokens.patch_size == (size, size)
    assert tokens.patch_embed_stride == (stride, stride)
    assert tokens.window_sizes == tuple((w, w) for w in windows)


def test_strides_of_unet2022_in_3d():
    for size, spacing in (((96, 192, 192), (1, 1, 1)), ((40, 224, 224), (2.5, 0.8, 0.8))):
        assert max(plan_tokens(size, spacing, UNet2022Planner.token_rules).patch_embed_stride) == 4


def test_rectangular_patch_of_unet2022():
    tokens = plan_tokens((320, 224), (1, 1), UNet2022Planner.token_rules)
    assert tokens.window_sizes == ((10, 7), (10, 7), (20, 14), (10, 7))
