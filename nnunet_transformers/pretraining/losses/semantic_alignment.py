"""Alice's cross-subject feature alignment with its attention block CASA.

Jiang et al., "Anatomical Invariance Modeling and Semantic Alignment for Self-supervised Learning in 3D Medical Image
Analysis", ICCV 2023, section 3, and the authors' release.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from lightly.models.modules.center import Center
from torch import Tensor, nn


def cosine_loss(online: Tensor, target: Tensor) -> Tensor:
    """Compute BYOL's loss, the mean of 2 - 2 cos (https://arxiv.org/abs/2006.07733, eq. 2).

    Args:
        online, target: (..., dim); the target gets no gradient.

    Examples:
        >>> cosine_loss(torch.eye(3), 2 * torch.eye(3)), cosine_loss(torch.eye(3), -torch.eye(3))
        (tensor(0.), tensor(4.))
    """
    return (2 - 2 * F.cosine_similarity(online, target.detach(), dim=-1)).mean()


def info_nce_loss(online: Tensor, target: Tensor, temperature: float = 0.2) -> Tensor:
    """Compute InfoNCE (https://arxiv.org/abs/1807.03748), which contrasts each row's target with the other rows'.

    Args:
        online, target: (batch, dim), contrasted within the batch, or (batch, tokens, dim), contrasted within each
            sample; the target gets no gradient.
        temperature: of the similarities.

    Examples:
        >>> info_nce_loss(torch.ones(4, 8), torch.ones(4, 8))  # ln(4)
        tensor(1.3863)
    """
    online, target = F.normalize(online, dim=-1), F.normalize(target.detach(), dim=-1)
    similarities = online @ target.transpose(-1, -2) / temperature
    rows = similarities.flatten(0, -2)
    targets = torch.arange(similarities.shape[-2], device=rows.device).expand(similarities.shape[:-1]).flatten()
    return F.cross_entropy(rows, targets)


class CentredCrossEntropy(nn.Module):
    """Alice's release's loss: DINO's cross-entropy (https://arxiv.org/abs/2104.14294) between corresponding rows.

    Args:
        dim: channels of a row.
        student_temperature, teacher_temperature: temperatures of the online and of the target network's softmax.
        center_momentum: momentum of the centre, the running mean that is subtracted from the target's rows. It moves
            after each call in training mode.

    Examples:
        >>> loss = CentredCrossEntropy(dim=4)
        >>> loss(torch.zeros(2, 4), torch.randn(2, 4))  # ln(4)
        tensor(1.3863)
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
        """Compute the loss of rows (..., dim); the target gets no gradient."""
        target = target.detach().flatten(0, -2)
        probabilities = ((target - self.center.value) / self.teacher_temperature).softmax(dim=-1)
        if self.training:
            self.center.update(target)
        return F.cross_entropy(online.flatten(0, -2) / self.student_temperature, probabilities)

    def without_rows(self) -> None:
        """Take part in the centre's move, which is that of all processes, without a row: its mean is the centre."""
        if self.training:
            self.center.update(self.center.value)


# losses between rows (..., dim) of the online and of the target network, by dim
SIMILARITIES: dict[str, Callable[[int], Callable[[Tensor, Tensor], Tensor]]] = {
    "cosine": lambda dim: cosine_loss,
    "info_nce": lambda dim: info_nce_loss,
    "centred": CentredCrossEntropy,
}


class CASA(nn.Module):
    """Conditional anatomical semantic alignment (CASA, section 3.3, eq. 3 and 4): cross-attention to projected tokens.

    The same queries attend to the tokens of the online and of the target network, and the loss aligns the outputs.

    Args:
        dim: channels of queries and tokens.
        released: use the release's block, which has several heads, a residual connection and post-norm, instead of the
            paper's single head without residual connection.
        num_heads, head_dim, mlp_dim, dropout: hyper-parameters of the released block.

    Examples:
        >>> CASA(dim=16)(torch.randn(2, 8, 16), torch.randn(2, 27, 16)).shape
        torch.Size([2, 8, 16])
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
        self.proj = nn.Linear(inner, dim, bias=not released)  # the paper's zeta
        if released:
            self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim), nn.ReLU(), nn.Linear(mlp_dim, dim))
            self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
            self.dropout = nn.Dropout(dropout)
        else:
            self.norm_q, self.norm_kv = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """Attend from queries (batch, queries, dim) to tokens (batch, tokens, dim).

        Returns:
            (batch, queries, dim).
        """
        if not self.released:
            return self.proj(self._attend(self.norm_q(queries), self.norm_kv(tokens)))
        queries = self.norm1(queries + self.dropout(self.proj(self._attend(queries, tokens))))
        return self.norm2(queries + self.dropout(self.mlp(queries)))

    def _attend(self, queries: Tensor, tokens: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, x in ((self.q, queries), (self.k, tokens), (self.v, tokens))
        )
        dropout = self.dropout.p if self.released and self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2).flatten(2)
