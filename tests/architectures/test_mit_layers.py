"""MiT's layers against plain implementations, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_transformers.architectures.layers import (
    PositionEmbedding,
    SpatialReductionAttention,
    fit_position_embeddings,
    resize_position_embedding,
)


@st.composite
def grids_and_reductions(draw):
    ndim = draw(st.sampled_from([2, 3]))
    grid = draw(st.lists(st.integers(1, 7), min_size=ndim, max_size=ndim))
    reduction = draw(st.lists(st.integers(1, 4), min_size=ndim, max_size=ndim))
    return tuple(grid), tuple(reduction), draw(st.integers(0, 2))


def plain_attention(attention, tokens):
    """Compute the attention with the convolution itself, head by head."""
    length = torch.Size(attention.grid_size).numel()
    extra = tokens.shape[1] - length
    context = tokens
    if attention.sr is not None:
        grid = tokens[:, extra:].transpose(1, 2).unflatten(2, attention.grid_size)
        if not attention.reference_compat:
            for axis, (g, r) in enumerate(zip(attention.grid_size, attention.reduction, strict=True)):
                shape = list(grid.shape)
                shape[2 + axis] = -g % r
                grid = torch.cat([grid, grid.new_zeros(shape)], dim=2 + axis)
        reduced = attention.sr(grid).flatten(2).transpose(1, 2)
        context = attention.norm(torch.cat([tokens[:, :extra], reduced], dim=1))
    parts = (attention.q(tokens), *attention.kv(context).chunk(2, -1))
    heads = []
    for q, k, v in zip(*(part.chunk(attention.num_heads, -1) for part in parts), strict=True):
        heads.append((q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v)
    return attention.proj(torch.cat(heads, -1))


class TestSpatialReductionAttention:
    @settings(max_examples=60, deadline=None)
    @given(grids_and_reductions(), st.booleans(), st.booleans())
    def test_against_the_convolution(self, case, fused, compat):
        grid, reduction, extra = case
        attention = SpatialReductionAttention(6, 2, grid, reduction, extra > 0, compat).double()
        attention.fused_attn = fused
        tokens = torch.randn(2, extra + torch.Size(grid).numel(), 6, dtype=torch.float64)
        torch.testing.assert_close(attention(tokens), plain_attention(attention, tokens))

    @pytest.mark.parametrize("compat", [False, True])
    def test_tokens_that_enter_the_keys(self, compat):
        """Tokens 4 and 5 of an axis of 5 remain after a reduction of 3."""
        attention = SpatialReductionAttention(4, 1, (5, 3), (3, 3), reference_compat=compat).double()
        tokens = torch.randn(1, 15, 4, dtype=torch.float64, requires_grad=True)
        attention(tokens)[:, 0].square().sum().backward()
        influences = (tokens.grad.abs().sum(-1) > 0).view(5, 3).all(dim=1).tolist()
        assert influences == [True, True, True, not compat, not compat]

    def test_shapes_are_the_published_ones_where_the_reduction_fits(self):
        assert SpatialReductionAttention(8, 1, (8, 24, 24), (6, 6, 6)).sr.weight.shape == (8, 8, 6, 6, 6)
        assert SpatialReductionAttention(8, 1, (4, 24, 24), (6, 6, 6)).sr.weight.shape == (8, 8, 4, 6, 6)
        assert SpatialReductionAttention(8, 1, (4, 4), (1, 1)).sr is None


class TestPositionEmbedding:
    def test_adds_in_raster_order(self):
        embedding = PositionEmbedding((2, 3), 4)
        tokens = embedding(torch.zeros(2, 6, 4))
        assert torch.equal(tokens[1, 5], embedding.weight[0, 1, 2])

    def test_loads_what_was_saved_flat(self):
        embedding, saved = PositionEmbedding((2, 3), 4), torch.randn(1, 6, 4)
        embedding.load_state_dict({"weight": saved}, strict=True)
        assert torch.equal(embedding.weight.flatten(1, 2), saved)
        with pytest.raises(RuntimeError, match="size mismatch"):
            embedding.load_state_dict({"weight": torch.zeros(1, 7, 4)})

    @pytest.mark.parametrize("flat", [False, True])
    def test_resized_along_every_axis(self, flat):
        ramps = torch.stack(torch.meshgrid(*(torch.arange(n) + 0.5 for n in (4, 6, 8)), indexing="ij"), -1)[None]
        resized = resize_position_embedding(ramps.flatten(1, 3) if flat else ramps, (4, 6, 8), (2, 6, 16))
        assert resized.shape == (1, 2, 6, 16, 3)
        expected = F.interpolate(ramps.movedim(-1, 1), (2, 6, 16), mode="trilinear").movedim(1, -1)
        torch.testing.assert_close(resized, expected)
        # each axis keeps its own ramp
        assert resized[0, :, 0, 0, 0].tolist() == pytest.approx([1, 3])
        assert resized[0, 0, :, 0, 1].tolist() == pytest.approx([0.5, 1.5, 2.5, 3.5, 4.5, 5.5])
        assert resized[0, 0, 0, 1:-1, 2].diff().tolist() == pytest.approx([0.5] * 13)

    def test_same_grid_is_the_same(self):
        tensor = torch.randn(1, 4, 6, 3)
        assert torch.equal(resize_position_embedding(tensor, (4, 6), (4, 6)), tensor)

    def test_mistakes(self):
        with pytest.raises(ValueError, match=r"do not belong to grid \(2, 3\).*class token"):
            resize_position_embedding(torch.zeros(1, 7, 4), (2, 3), (4, 6))
        with pytest.raises(ValueError, match="2D to 2D or 3D to 3D"):
            resize_position_embedding(torch.zeros(1, 6, 4), (2, 3), (4, 6, 6))
        with pytest.raises(ValueError, match="is flattened to 7 tokens"):
            fit_position_embeddings({"weight": torch.zeros(1, 7, 4)}, PositionEmbedding((2, 3), 4))
