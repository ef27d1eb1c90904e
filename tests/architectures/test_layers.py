"""Layers against plain implementations, in float64."""

from __future__ import annotations

import copy
import pickle
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nnunet_transformers.architectures.layers import (
    FullResolutionBranch,
    PatchExpand,
    PatchMerging,
    RelativePositionBias,
    WindowAttention,
    WindowPartition,
    apply_in_chunks,
    patch_transpose,
    tokens_to_image,
)


def plain_windows(tokens, grid, window, shifted):
    """Pad, roll and cut with loops; also return the region of each token and whether it is padding."""
    window = [min(w, g) for w, g in zip(window, grid, strict=True)]
    shift = [w // 2 if shifted and w < g else 0 for w, g in zip(window, grid, strict=True)]
    padded = [-(-g // w) * w for w, g in zip(window, grid, strict=True)]
    windows = []
    for corner in product(*(range(0, p, w) for p, w in zip(padded, window, strict=True))):
        rows = []
        for offset in product(*(range(w) for w in window)):
            rolled = [c + o for c, o in zip(corner, offset, strict=True)]
            position = [(r + s) % p for r, s, p in zip(rolled, shift, padded, strict=True)]
            region = tuple(int(s > 0 and r >= p - s) for r, s, p in zip(rolled, shift, padded, strict=True))
            inside = all(x < g for x, g in zip(position, grid, strict=True))
            rows.append((position if inside else None, region))
        windows.append(rows)
    image = tokens.view(tokens.shape[0], *grid, -1)
    zero = torch.zeros_like(image[(slice(None), *(0 for _ in grid))])
    values = torch.stack(
        [torch.stack([image[(slice(None), *p)] if p else zero for p, _ in rows], 1) for rows in windows], 1
    )
    return values, windows


@st.composite
def grids_and_windows(draw):
    ndim = draw(st.sampled_from([2, 3]))
    grid = draw(st.lists(st.integers(1, 7), min_size=ndim, max_size=ndim))
    window = draw(st.lists(st.integers(1, 5), min_size=ndim, max_size=ndim))
    return tuple(grid), tuple(window), draw(st.booleans())


class TestWindowPartition:
    @settings(max_examples=60, deadline=None)
    @given(grids_and_windows())
    def test_against_plain_windows(self, case):
        grid, window, shifted = case
        partition = WindowPartition(grid, window, shifted, mask_padding=True)
        tokens = torch.randn(2, torch.Size(grid).numel(), 3, dtype=torch.float64)
        expected, layout = plain_windows(tokens, grid, window, shifted)
        windows = partition.partition(tokens)
        assert torch.equal(windows, expected)
        assert torch.equal(partition.reverse(windows), tokens)
        apart = [[[a[1] != b[1] or (b[0] is None and a is not b) for b in rows] for a in rows] for rows in layout]
        apart = torch.tensor(apart)
        mask = torch.zeros(apart.shape) if partition.mask is None else partition.mask[:, 0]
        assert torch.equal(mask, torch.zeros(apart.shape).masked_fill(apart, -torch.inf))

    def test_padding_takes_part_by_default(self):
        assert WindowPartition((5, 5), (4, 4), shifted=False).mask is None

    def test_constants_follow_the_module(self):
        module = torch.nn.Sequential(WindowPartition((5, 5), (4, 4), shifted=True))
        for moved in (copy.deepcopy(module).double(), pickle.loads(pickle.dumps(module))):
            assert torch.equal(moved[0].mask, module[0].mask.to(moved[0].mask.dtype))
        assert copy.deepcopy(module).double()[0].mask.dtype == torch.float64
        for layout in (torch.channels_last, torch.channels_last_3d):
            assert torch.equal(copy.deepcopy(module).to(memory_format=layout)[0].mask, module[0].mask)
        partition = module.to("meta")[0]
        assert all(t.is_meta for t in (partition.to_windows, partition.to_tokens, partition.mask))
        assert not module.state_dict()

    def test_no_shift_on_an_axis_that_the_window_spans(self):
        partition = WindowPartition((8, 3), (4, 4), shifted=True)
        assert partition.window_size == (4, 3)
        assert torch.equal(partition.to_windows[:3] // 3, torch.full((3,), 2))


class TestRelativePositionBias:
    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4)), min_size=2, max_size=3))
    def test_against_one_index(self, axes):
        window = tuple(w for w, _ in axes)
        table_window = tuple(w + extra for w, extra in axes)
        bias = RelativePositionBias(table_window, window, num_heads=2).double()
        positions = list(product(*(range(w) for w in window)))
        for (i, a), (j, b) in product(enumerate(positions), repeat=2):
            row = 0
            for x, y, w in zip(a, b, table_window, strict=True):
                row = row * (2 * w - 1) + x - y + w - 1
            assert torch.equal(bias()[:, i, j], bias.table[row])

    def test_released_behaviour_reads_the_first_rows(self):
        full = RelativePositionBias((7, 7), (7, 7), 2)
        clamped = RelativePositionBias((7, 7), (3, 4), 2, reference_compat=True)
        clamped.load_state_dict(full.state_dict())
        assert torch.equal(clamped(), full()[:, :12, :12])

    def test_cache_follows_the_table(self):
        bias = RelativePositionBias((3, 3), (3, 3), 2).eval()
        with torch.inference_mode():
            first = bias()
            assert bias() is first
            bias.table.add_(1)
            torch.testing.assert_close(bias(), first + 1)
            bias.load_state_dict({"table": torch.zeros_like(bias.table)})
            assert not bias().any()


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize("cross_attention", [False, True])
@pytest.mark.parametrize("grid", [(6, 9), (5, 4, 7)], ids=["2d", "3d"])
class TestWindowAttention:
    def attention(self, grid, shifted, mask_padding, cross_attention):
        partition = WindowPartition(grid, (3,) * len(grid), shifted, mask_padding)
        bias = RelativePositionBias((3,) * len(grid), partition.window_size, 2, init_std=1.0)
        return WindowAttention(8, 2, partition, bias, cross_attention).double()

    def test_fast_paths_against_matrix_products(self, grid, shifted, mask_padding, cross_attention):
        attention = self.attention(grid, shifted, mask_padding, cross_attention)
        results = {}
        for fused in (True, False):
            attention.fused_attn = fused
            torch.manual_seed(1)
            tokens = torch.randn(2, torch.Size(grid).numel(), 8, dtype=torch.float64, requires_grad=True)
            context = torch.randn_like(tokens).requires_grad_()
            attention.zero_grad()
            output = attention(tokens, context)
            output.square().sum().backward()
            with torch.no_grad():
                inference = attention(tokens, context)
            grads = [tokens.grad, *(p.grad for p in attention.parameters())]
            results[fused] = [output, inference, *grads, *([context.grad] if cross_attention else [])]
        torch.testing.assert_close(results[True], results[False], rtol=1e-8, atol=1e-10)

    def test_wrapped_tokens_do_not_meet(self, grid, shifted, mask_padding, cross_attention):
        """A changed token affects only tokens within a window's reach, never across the border, at any scores."""
        attention = self.attention(grid, shifted, mask_padding, cross_attention)
        tokens = 1e3 * torch.randn(1, torch.Size(grid).numel(), 8, dtype=torch.float64)
        context = torch.randn_like(tokens)
        changed = (context if cross_attention else tokens).clone()
        changed[:, 0] += 1e3
        with torch.no_grad():
            before = attention(tokens, context)
            after = attention(tokens, changed) if cross_attention else attention(changed, context)
        moved = ((after - before).abs().amax(-1) > 1e-9).view(grid)
        assert moved.any()
        far = tuple(slice(3, None) for _ in grid)
        assert not moved[far].any()


def test_window_attention_rejects_heads_that_do_not_divide():
    partition = WindowPartition((4, 4), (2, 2), shifted=False)
    with pytest.raises(ValueError, match="num_heads 3 does not divide the 8 channels"):
        WindowAttention(8, 3, partition, RelativePositionBias((2, 2), (2, 2), 3))


@pytest.mark.parametrize("grid,stride", [((4, 6), (2, 2)), ((4, 2, 6), (2, 2, 2)), ((3, 4, 6), (1, 2, 2))])
def test_merging_and_expanding_keep_neighbours_together(grid, stride):
    length, block = torch.Size(grid).numel(), torch.Size(stride).numel()
    merge = PatchMerging(grid, stride, dim=1, out_dim=block)
    merge.norm = torch.nn.Identity()
    merge.norm.normalized_shape = (block,)
    with torch.no_grad():
        merge.reduction.weight.copy_(torch.eye(block))
    tokens = torch.arange(length, dtype=torch.float32).view(1, length, 1)
    merged = merge(tokens)
    image = tokens.view(1, 1, *grid)
    unfolded = image
    for axis, s in enumerate(stride):
        unfolded = unfolded.unfold(2 + axis, s, s)
    expected = unfolded.reshape(1, merged.shape[1], block)
    assert torch.equal(merged.sort(-1).values, expected.sort(-1).values)
    if stride == (2, 2, 2):
        # neighbours in the released order: 000, 010, 001, 011, 100, 110, 101, 111
        assert torch.equal(merged[0, 0], expected[0, 0][[0, 2, 1, 3, 4, 6, 5, 7]])

    expand = PatchExpand(tuple(g // s for g, s in zip(grid, stride, strict=True)), stride, dim=block, out_dim=1)
    expand.norm = torch.nn.Identity()
    with torch.no_grad():
        expand.expand.weight.copy_(torch.eye(block))
    assert torch.equal(expand(expected), tokens)


def test_tokens_to_image_is_a_pixel_shuffle():
    tokens = torch.randn(2, 6, 2 * 2 * 5)
    image = tokens_to_image(tokens, (2, 3), (2, 2))
    channels_last = tokens.view(2, 2, 3, 4, 5).permute(0, 4, 3, 1, 2).reshape(2, 20, 2, 3)
    torch.testing.assert_close(image, F.pixel_shuffle(channels_last, 2))


@pytest.mark.parametrize("batch, length, elements", [(1, 7, 2**19), (2, 5, 2**20), (3, 9, 2**17), (2, 4, 8)])
def test_chunks_change_neither_outputs_nor_gradients(batch, length, elements):
    torch.manual_seed(0)
    function = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 3)).double()
    tokens = torch.randn(batch, length, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(batch, length, 3, dtype=torch.float64)
    inputs = (tokens, *function.parameters())
    whole = function(tokens)
    pieces = apply_in_chunks(function, tokens, elements)
    torch.testing.assert_close(pieces, whole)
    for ours, plain in zip(
        torch.autograd.grad((pieces * weights).sum(), inputs),
        torch.autograd.grad((whole * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("strict", [True, False])
def test_apply_in_chunks_is_exported_whole(strict):
    class Network(nn.Module):
        def forward(self, tokens):
            return apply_in_chunks(torch.sin, tokens, 2**24)

    tokens = torch.randn(1, 8, 2)
    program = torch.export.export(Network(), (tokens,), strict=strict)
    assert [n.target for n in program.graph.nodes if n.op == "call_function"] == [torch.ops.aten.sin.default]
    torch.testing.assert_close(program.module()(tokens), tokens.sin())


def test_a_chunk_is_no_larger_than_the_cache():
    lengths = []
    apply_in_chunks(lambda t: lengths.append(t.shape[1]) or t, torch.zeros(2, 100, 1), 2**14)
    assert sum(lengths) == 100 and max(lengths) == 2**20 // (2 * 2**14)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("grid, stride", [((3, 4), (2, 2)), ((2, 3, 4), (1, 2, 4))], ids=str)
def test_patch_transpose_is_a_transposed_convolution(grid, stride, channels_last):
    layer = patch_transpose(5, 3, stride, channels_last).double()
    x = torch.randn(2, 5, *grid, dtype=torch.float64, requires_grad=True)
    convolution = {2: F.conv_transpose2d, 3: F.conv_transpose3d}[len(grid)]
    plain = convolution(x, layer.weight, layer.bias, stride)
    ours = layer(x.movedim(1, -1)).movedim(-1, 1) if channels_last else layer(x)
    torch.testing.assert_close(ours, plain)
    weights, inputs = torch.randn_like(plain), (x, *layer.parameters())
    for one, other in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((plain * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("grid, stride", [((3, 4), (4, 4)), ((2, 3, 4), (1, 2, 2))], ids=str)
def test_full_resolution_branch_is_its_formula(grid, stride):
    """Tokens up-sampled, plus a convolution of the image; a convolution: in float64, in plain PyTorch."""
    ndim, kernel = len(grid), [3 if s > 1 else 1 for s in stride]
    branch = FullResolutionBranch(2, 6, 5, stride).double()
    for parameter in branch.parameters():
        nn.init.normal_(parameter)
    tokens = torch.randn(2, *grid, 6, dtype=torch.float64)
    image = torch.randn(2, 2, *(g * s for g, s in zip(grid, stride, strict=True)), dtype=torch.float64)
    convolve = {2: F.conv2d, 3: F.conv3d}[ndim]
    transpose = {2: F.conv_transpose2d, 3: F.conv_transpose3d}[ndim]
    state = branch.state_dict()

    def convolved(x, name):
        assert state[f"{name}.conv.weight"].shape[2:] == tuple(kernel)
        x = convolve(x, state[f"{name}.conv.weight"], padding=[k // 2 for k in kernel])
        x = F.instance_norm(x, weight=state[f"{name}.norm.weight"], bias=state[f"{name}.norm.bias"])
        return F.leaky_relu(x, 0.01)

    normalised = F.layer_norm(tokens, (6,), state["norm.weight"], state["norm.bias"]).movedim(-1, 1)
    up = transpose(normalised, state["up.weight"], state["up.bias"], stride)
    features = convolved(up + convolved(image, "image"), "fuse")
    assert features.shape == (2, 5, *image.shape[2:])
    torch.testing.assert_close(branch(tokens, image), features)


class TestCachedBias:
    def test_weights_changed_without_a_sign(self):
        """As teachers by ``.data``, and as fused optimisers: neither counts as a change of the tensor."""
        bias = RelativePositionBias((3, 3), (3, 3), 2)
        for is_training in (True, False):
            bias.train(is_training)
            with torch.no_grad():
                before = bias()
                bias.table.data.copy_(torch.randn_like(bias.table))
                assert not torch.equal(bias(), before)

    def test_is_kept_in_prediction(self):
        bias = RelativePositionBias((3, 3), (3, 3), 2).eval()
        with torch.inference_mode():
            assert bias() is bias()
            built = RelativePositionBias((3, 3), (3, 3), 2).eval()  # whose table counts no changes
            assert built().shape == bias().shape
