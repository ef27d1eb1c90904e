"""Train the anatomical embedding that matches volumes: two crops of one volume, the same places alike.

SAM (https://arxiv.org/abs/2012.02383, section 3), with distances in voxels of the prepared images in place of 2 mm
ones, so that they follow the data.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor
from torch.optim.lr_scheduler import PolynomialLR

from ...runs.callbacks import feature_spread
from ...runs.schedules import total_steps
from ..data.index import PreparedIndex
from ..matching import MatcherCheckpoint
from ..matching.embedding_network import AnatomyEmbedding, cell_positions, sample


class AnatomyMatching(LightningModule):
    """Contrast of places: a point of one crop against its own and distant ones of the other.

    Args:
        channels, dim: of the network.
        points: drawn in each crop; those that the other one holds are used.
        negative_radius: voxels; a place so far from a point is its negative.
        negatives: the hardest of them, for each point.
        temperature: of the similarities.
        lr: SGD's, with momentum 0.9, falling to 0 along a polynomial.
        weight_decay: SGD's.
    """

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

    def training_step(self, batch: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]], batch_index: int) -> Tensor:
        """Loss of pairs of crops.

        Args:
            batch: two views, each (batch, 1, *size) and where its voxels lie, (batch, 2, 3): the first voxel and the
                step from one to the next, in voxels of the volume.
        """
        images, frames = zip(*batch, strict=True)
        views = [side.chunk(2) for side in self.embedding(torch.cat(images))]
        size = torch.tensor(images[0].shape[2:], device=images[0].device)
        losses = []
        for i in range(len(images[0])):
            # coarse cells of other volumes are negatives too, as in the paper: they tell the organs apart
            elsewhere = [views[1][side][j].flatten(1).T for side in (0, 1) for j in range(len(images[0])) if j != i]
            for query, key in ((0, 1), (1, 0)):
                points = torch.rand(self.hparams.points, 3, device=size.device) * (size - 1)
                places = frames[query][i, 0] + frames[query][i, 1] * points
                found = (places - frames[key][i, 0]) / frames[key][i, 1]
                inside = ((found >= 0) & (found <= size - 1)).all(dim=1)
                if inside.any():
                    sides = [([level[side][i] for level in views], frames[side][i]) for side in (query, key)]
                    losses.append(self._contrast(*sides, points[inside], found[inside], places[inside], elsewhere))
        # a batch without a common place still has to give every process a gradient
        fine, coarse = map(sum, zip(*losses, strict=True)) if losses else [0.0 * level[0].sum() for level in views]
        logged = {"fine": fine / max(1, len(losses)), "coarse": coarse / max(1, len(losses))}
        loss = logged["fine"] + logged["coarse"]
        logged |= {"loss": loss, "feature_spread": feature_spread(views[0][0].flatten(2).mT.flatten(0, 1))}
        self.log_dict(logged, prog_bar=True, sync_dist=True, batch_size=len(images[0]))
        return loss

    def _contrast(
        self,
        query: tuple[list[Tensor], Tensor],
        key: tuple[list[Tensor], Tensor],
        points: Tensor,
        found: Tensor,
        places: Tensor,
        elsewhere: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Fine and coarse loss of points, given in voxels of the query, of the key and of the volume."""
        levels, frame = key
        losses = []
        for level, stride in enumerate(self.embedding.strides):
            wanted = sample(query[0][level], points, stride)
            positive = (wanted * sample(levels[level], found, stride)).sum(1, keepdim=True)
            cells = cell_positions(levels[level].shape[1:], stride).to(frame)
            distance = torch.cdist(places, frame[0] + frame[1] * cells)
            similarity = wanted @ levels[level].flatten(1)
            similarity = similarity.masked_fill(distance < self.hparams.negative_radius, -torch.inf)
            if level and elsewhere:
                similarity = torch.cat([similarity, wanted @ torch.cat(elsewhere).T], dim=1)
            hardest = similarity.topk(min(self.hparams.negatives, similarity.shape[1]), dim=1).values
            logits = torch.cat([positive, hardest], dim=1) / self.hparams.temperature
            losses.append(F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device)))
        return losses[0], losses[1]

    def configure_optimizers(self) -> dict[str, Any]:
        settings = self.hparams
        optimizer = torch.optim.SGD(self.parameters(), settings.lr, momentum=0.9, weight_decay=settings.weight_decay)
        scheduler = PolynomialLR(optimizer, total_steps(self.trainer), power=0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def checkpoints(self, index: PreparedIndex, recipe: dict[str, Any]) -> dict[str, MatcherCheckpoint]:
        """The embedding, see ``methods.qt_ssl``."""
        weights = {n: v.detach().cpu() for n, v in self.embedding.state_dict().items()}
        settings = {"channels": list(self.hparams.channels), "dim": self.hparams.dim}
        return {"matcher.pth": MatcherCheckpoint(weights, settings, index.spacing_of(3), recipe)}
