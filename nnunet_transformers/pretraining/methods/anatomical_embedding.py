"""SAM: contrastive learning of points in two overlapping crops of one volume, for the anatomical matcher.

Yan et al., "SAM: Self-supervised learning of pixel-wise anatomical embeddings in radiological images",
https://arxiv.org/abs/2012.02383, section 3. Distances are in voxels of the prepared images and scale with their
spacing; the paper resamples to 2 mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from ...runs.schedules import polynomial_with_warmup
from ..data.index import PreparedIndex
from ..encoder_checkpoint import all_weights
from ..encoder_pretraining import EncoderPretraining
from ..losses import point_contrast
from ..matching import MatcherCheckpoint
from ..matching.embedding_network import AnatomyEmbedding, cell_positions, sample
from ..matching.placed_crop import PlacedCrop, shared_points

LEVELS = ("fine", "coarse")


class AnatomyMatching(EncoderPretraining):
    """Train the embedding network of the anatomical matcher.

    Args:
        channels, dim: arguments of ``AnatomyEmbedding``.
        points: number of random points of each crop; those inside the other crop are used.
        negative_radius: smallest distance of a negative from the point, in voxels.
        negatives: number of the hardest negatives of each point.
        temperature: temperature of the similarities.
        lr: initial learning rate of SGD with momentum 0.9; falls to 0 along a polynomial.
        weight_decay: weight decay of SGD.

    Attributes:
        averages_channels: the views are the mean over the image's channels.
    """

    averages_channels = True

    def __init__(
        self,
        channels: tuple[int, ...] = (24, 48, 96),
        dim: int = 64,
        points: int = 200,
        negative_radius: float = 10.0,
        negatives: int = 500,
        temperature: float = 0.5,
        lr: float = 0.02,
        weight_decay: float = 1e-4,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.embedding = AnatomyEmbedding(channels, dim)

    def losses(self, batch: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the fine and coarse loss of a batch of ``OverlappingViews``.

        Args:
            batch: two views; each has crops (batch, 1, *size), frames (batch, 2, 3), a crop's first voxel and step in
                voxels of the volume, and the numbers of the volumes (batch).
        """
        images, frames, (volumes, _) = zip(*batch, strict=True)
        number, volume_of = len(images[0]), volumes.tolist()
        grids = [level.unflatten(0, (2, number)) for level in self.embedding(torch.cat(images))]
        size = torch.tensor(images[0].shape[2:], device=images[0].device)
        losses = []
        for i in range(number):
            crops = [PlacedCrop([level[view, i] for level in grids], *frames[view][i]) for view in range(2)]
            # coarse cells of other volumes are negatives too, as in the paper: they separate the organs
            apart = [j for j in range(number) if volume_of[j] != volume_of[i]]
            others = [grids[1][view, j].flatten(1).T for view in range(2) for j in apart]
            for query, key in (crops, crops[::-1]):
                points, matches = shared_points(query, key, size, self.hparams.points)
                if len(points):
                    losses.append(self._contrast(query, key, points, matches, others))
        # DDP requires gradients even if no crops share a point
        terms = map(sum, zip(*losses, strict=True)) if losses else (0.0 * level.sum() for level in grids)
        features = grids[0][0].flatten(2).mT.flatten(0, 1)
        return {name: term / max(1, len(losses)) for name, term in zip(LEVELS, terms, strict=True)}, features

    def _contrast(
        self, query: PlacedCrop, key: PlacedCrop, points: Tensor, matches: Tensor, others: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return the fine and the coarse loss of points of the query and their matches in the key."""
        settings, losses = self.hparams, []
        for level, (own, grid, stride) in enumerate(zip(query.grids, key.grids, self.embedding.strides, strict=True)):
            cells = key.to_volume(cell_positions(grid.shape[1:], stride, key.first.device).to(key.first))
            losses.append(
                point_contrast(
                    sample(own, points, stride),
                    sample(grid, matches, stride),
                    grid.flatten(1).T,
                    torch.cdist(query.to_volume(points), cells),
                    settings.negative_radius,
                    settings.negatives,
                    settings.temperature,
                    torch.cat(list(others)) if level and others else None,
                )
            )
        return losses

    def create_optimizer(self) -> torch.optim.Optimizer:
        settings = self.hparams
        return torch.optim.SGD(self.parameters(), settings.lr, momentum=0.9, weight_decay=settings.weight_decay)

    def create_schedule(self, optimizer: torch.optim.Optimizer) -> LRScheduler:
        return polynomial_with_warmup(optimizer, self.trainer, warmup_epochs=0)

    def checkpoints(self, index: PreparedIndex, recipe: dict[str, Any]) -> dict[str, MatcherCheckpoint]:
        """Build ``matcher.pth``, which the matchers "embedding" and "hybrid" read."""
        settings = {"channels": list(self.hparams.channels), "dim": self.hparams.dim}
        spacing = getattr(self.datamodule, "spacing", None) or index.spacing_of(3)
        return {"matcher.pth": MatcherCheckpoint(all_weights(self.embedding), settings, spacing, recipe)}
