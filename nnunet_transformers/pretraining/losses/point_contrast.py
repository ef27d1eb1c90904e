"""Contrastive loss of points (SAM, https://arxiv.org/abs/2012.02383, section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def point_contrast(
    points: Tensor,
    matches: Tensor,
    cells: Tensor,
    distances: Tensor,
    negative_radius: float,
    negatives: int,
    temperature: float,
    others: Tensor | None = None,
) -> Tensor:
    """Contrast the embeddings of points with those of their matches in another view and of the hardest negatives.

    Args:
        points: (points, dim), embeddings of length 1.
        matches: (points, dim), embeddings of the same positions in the other view.
        cells: (cells, dim), all embeddings of the other view.
        distances: (points, cells), distance of each point from each cell.
        negative_radius: smallest distance of a negative.
        negatives: number of the hardest negatives of each point.
        temperature: temperature of the similarities.
        others: (number, dim), further negatives, such as embeddings of other volumes.

    Returns:
        InfoNCE loss (https://arxiv.org/abs/1807.03748), the mean over the points.

    Examples:
        >>> points = torch.eye(2)
        >>> distances = torch.tensor([[0.0, 9.0], [9.0, 0.0]])
        >>> point_contrast(points, points, points, distances, 5.0, 1, 1.0)  # ln(1 + exp(-1))
        tensor(0.3133)
    """
    positive = (points * matches).sum(1, keepdim=True)
    similarity = (points @ cells.T).masked_fill(distances < negative_radius, -torch.inf)
    if others is not None:
        similarity = torch.cat([similarity, points @ others.T], dim=1)
    hardest = similarity.topk(min(negatives, similarity.shape[1]), dim=1).values
    logits = torch.cat([positive, hardest], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
