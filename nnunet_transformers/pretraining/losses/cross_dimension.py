"""UniMiSS's loss between slices and volumes (ECCV 2022, https://arxiv.org/abs/2112.09356, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from lightly.loss import DINOLoss
from torch import Tensor


class CrossDimensionLoss(DINOLoss):
    """DINO's loss between different views, summed over all pairs of target and online dimensionality.

    For volumes and their slices these are UniMiSS's four terms: volume to volume, slices to volume, slices to slices,
    volume to slices. All terms share one centre, which moves once per optimiser step, by ``move_center``; that of the
    release moves after each term.

    Args: as for lightly's ``DINOLoss``.

    Examples:
        >>> loss = CrossDimensionLoss(output_dim=8)
        >>> volumes, slices = [torch.zeros(2, 8)] * 2, [torch.zeros(2, 8)] * 2
        >>> loss([volumes, slices], [volumes, slices])  # four times ln(8)
        tensor(8.3178)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._means: list[Tensor] = []

    def forward(self, target: Sequence[Sequence[Tensor]], online: Sequence[Sequence[Tensor]]) -> Tensor:
        """Compute the loss of a batch.

        Args:
            target, online: logits of the target and of the online network, for each dimensionality one tensor
                (batch, output_dim) per view.
        """
        terms = [super(CrossDimensionLoss, self).forward(list(t), list(o)) for t, o in product(target, online)]
        if self.training:
            self._means.append(torch.stack([view.mean(0) for views in target for view in views]))
        return torch.stack(terms).sum()

    def update_center(self, teacher_out: Tensor) -> None:
        """Do nothing: ``DINOLoss.forward`` calls this for each term, but ``move_center`` moves the centre once."""

    def move_center(self) -> None:
        """Move the centre towards the mean of the target's logits since the last call, of all accumulated batches."""
        super().update_center(torch.stack(self._means))
        self._means.clear()
