"""Alice's losses and its conditional semantic alignment (Jiang et al., ICCV 2023; section 3 and its release)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightly.models.modules.center import Center
from torch import Tensor, nn


def cosine_loss(online: Tensor, target: Tensor) -> Tensor:
    """BYOL's loss, 2 - 2 cos, averaged (https://arxiv.org/abs/2006.07733, eq. 2).

    Args:
        online, target: (..., dim); the target gets no gradient.
    """
    return (2 - 2 * F.cosine_similarity(online, target.detach(), dim=-1)).mean()


def info_nce_loss(online: Tensor, target: Tensor, temperature: float = 0.2) -> Tensor:
    """Tell a row's target among those of its group (https://arxiv.org/abs/1807.03748), the paper's alternative.

    Args:
        online, target: (batch, dim), the batch is the group, or (batch, tokens, dim), each sample is one; the target
            gets no gradient.
        temperature: of the similarities.
    """
    online, target = F.normalize(online, dim=-1), F.normalize(target.detach(), dim=-1)
    similarities = online @ target.transpose(-1, -2) / temperature
    rows = similarities.flatten(0, -2)
    targets = torch.arange(similarities.shape[-2], device=rows.device).expand(similarities.shape[:-1]).flatten()
    return F.cross_entropy(rows, targets)


class CentredCrossEntropy(nn.Module):
    """The release's loss: DINO's cross-entropy (https://arxiv.org/abs/2104.14294) between rows that belong together.

    Args:
        dim: of a row.
        student_temperature, teacher_temperature: of the softmaxes.
        center_momentum: of the mean of the teacher's rows, which is taken off them; it moves after each call.
    """

    def __init__(
        self,
        dim: int,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.01,
        center_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.center = Center((1, dim), momentum=center_momentum)

    def forward(self, online: Tensor, target: Tensor) -> Tensor:
        """(..., dim) both; the target gets no gradient."""
        target = target.detach().flatten(0, -2)
        wanted = ((target - self.center.value) / self.teacher_temperature).softmax(dim=-1)
        self.center.update(target)
        return F.cross_entropy(online.flatten(0, -2) / self.student_temperature, wanted)


def masked_reconstruction_loss(
    prediction: Tensor, image: Tensor, mask: Tensor, epsilon: float = 1e-6, normalise: bool = True
) -> Tensor:
    """Mean squared error over masked cells (https://arxiv.org/abs/2111.06377, section 3).

    Args:
        prediction, image: (batch, channels, *size).
        mask: (batch, *grid) of cells that divide the image, true where it was masked.
        epsilon: added to a cell's variance.
        normalise: take off each cell's mean and divide by its standard deviation in the target.
    """
    grid = mask.shape[1:]
    prediction, target = _cells(prediction, grid), _cells(image, grid)
    if normalise:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + epsilon).sqrt()
    error = (prediction - target).square().mean(-1)
    mask = mask.flatten(1).to(error.dtype)
    return (error * mask).sum() / mask.sum().clamp(min=1)


def _cells(image: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(batch, channels, *size) to (batch, cells, channels * voxels of a cell)."""
    batch, channels, *size = image.shape
    split = [n for g, s in zip(grid, size, strict=True) for n in (g, s // g)]
    ndim = len(size)
    image = image.reshape(batch, channels, *split)
    cells, voxels = [2 + 2 * axis for axis in range(ndim)], [3 + 2 * axis for axis in range(ndim)]
    return image.permute(0, *cells, 1, *voxels).flatten(1 + ndim).flatten(1, ndim)


class CASA(nn.Module):
    """Conditional anatomical semantic alignment: what the same queries find in the student's and teacher's tokens.

    Args:
        dim: of queries and keys.
        released: the release's block, with heads, an output projection, the queries added and norms after, in place of
            the paper's one head, whose result stands by itself.
        num_heads, head_dim, mlp_dim: of the released block.
        dropout: of the released block.
    """

    def __init__(
        self,
        dim: int,
        released: bool = False,
        num_heads: int = 8,
        head_dim: int = 64,
        mlp_dim: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.released, self.num_heads = released, num_heads if released else 1
        inner = num_heads * head_dim if released else dim
        self.q, self.k, self.v = (nn.Linear(dim, inner, bias=False) for _ in range(3))
        if released:
            self.proj = nn.Linear(inner, dim, bias=False)
            self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim), nn.ReLU(), nn.Linear(mlp_dim, dim))
            self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
            self.dropout = nn.Dropout(dropout)
        else:
            self.norm_q, self.norm_kv = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """(batch, queries, dim) and (batch, tokens, dim) to (batch, queries, dim)."""
        if not self.released:
            return self._attend(self.norm_q(queries), self.norm_kv(tokens))
        queries = self.norm1(queries + self.dropout(self.proj(self._attend(queries, tokens))))
        return self.norm2(queries + self.dropout(self.mlp(queries)))

    def _attend(self, queries: Tensor, tokens: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, x in ((self.q, queries), (self.k, tokens), (self.v, tokens))
        )
        dropout = self.dropout.p if self.released and self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2).flatten(2)
