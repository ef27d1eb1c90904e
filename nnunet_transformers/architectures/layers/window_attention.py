"""Multi-head self- and cross-attention inside windows."""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers import use_fused_attn
from torch import Tensor, nn

from ._export import is_exporting
from .flex_attention import biased_flex_attention
from .matrix_attention import matrix_attention
from .relative_position_bias import RelativePositionBias
from .window_partition import WindowPartition


class WindowAttention(nn.Module):
    """Windowed attention with relative position bias (https://arxiv.org/abs/2103.14030, section 3.2).

    Args:
        dim: channels.
        num_heads: attention heads; must divide ``dim``.
        partition: the windows; shared by all blocks that attend in the same ones.
        bias: relative position bias of this attention.
        cross_attention: queries from the tokens, keys and values from a context on the same grid.

    Raises:
        ValueError: if ``num_heads`` does not divide ``dim``.

    Attributes:
        fused_attn: use scaled_dot_product_attention, or for operation counters and export plain matrix products. Taken
            from ``timm.layers.set_fused_attn`` at construction.
        flex_attn: use FlexAttention, which ``set_flex_attention`` switches on.
    """

    flex_attn = False

    def __init__(
        self,
        dim: int,
        num_heads: int,
        partition: WindowPartition,
        bias: RelativePositionBias,
        cross_attention: bool = False,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide the {dim} channels of the stage")
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.cross_attention = cross_attention
        self.fused_attn = use_fused_attn()
        self.partition = partition
        self.bias = bias
        if cross_attention:
            self.q = nn.Linear(dim, dim)
            self.kv = nn.Linear(dim, 2 * dim)
        else:
            self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def _heads(self, windows: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(batch, windows, length, parts x channels) to ``parts`` of (batch, windows, heads, length, head_dim)."""
        heads = windows.unflatten(-1, (parts, self.num_heads, -1))
        return heads.permute(3, 0, 1, 4, 2, 5).unbind(0)

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """Attend within each window.

        Args:
            tokens: (batch, length, channels), in raster order.
            context: same shape; needed for cross-attention, unused otherwise.

        Returns:
            (batch, length, channels).

        Raises:
            ValueError: if cross-attention has no context.
        """
        return self.partition.reverse(self.proj(self._windows(tokens, context)))

    def attend(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """As ``forward``, without the output projection."""
        return self.partition.reverse(self._windows(tokens, context))

    def _windows(self, tokens: Tensor, context: Tensor | None) -> Tensor:
        """(batch, length, channels) to (batch, windows, window_length, channels), heads side by side."""
        windows = self.partition.partition(tokens)
        if self.cross_attention:
            if context is None:
                raise ValueError("cross-attention needs a context for keys and values")
            (q,) = self._heads(self.q(windows), 1)
            k, v = self._heads(self.kv(self.partition.partition(context)), 2)
        else:
            q, k, v = self._heads(self.qkv(windows), 3)
        return self._mix(q, k, v).transpose(2, 3).flatten(3)

    def _mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of (batch, windows, heads, length, head_dim)."""
        mask = self.partition.mask
        bias = self.bias(mask)
        # Every kernel broadcasts the bias over the batch axis only, so windows that share a bias join the batch
        # and windows with a mask of their own join the heads.
        start, end = (0, 1) if mask is None else (1, 2)
        lead = q.shape[start : end + 1]
        q, k, v = (t.flatten(start, end) for t in (q, k, v))
        bias = bias.reshape(1, -1, *bias.shape[-2:])
        # an exporter decomposes the fused kernel, whose memory layout it then gets wrong
        if self.flex_attn and not is_exporting():
            out = biased_flex_attention(q, k, v, bias[0], self.scale)
        elif self.fused_attn and not is_exporting():
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=self.scale)
        else:
            out = matrix_attention(q, k, v, self.scale, bias)
        return out.unflatten(start, lead)


def set_flex_attention(network: nn.Module, active: bool = True) -> None:
    """Let a network's window attention use FlexAttention in place of scaled_dot_product_attention, or not.

    It is one kernel for each shape, that torch.compile writes and that reads the bias. On a CPU it has no gradient.
    """
    for module in network.modules():
        if isinstance(module, WindowAttention):
            module.flex_attn = active
