"""Focal loss in the place of the cross-entropy of nnU-Net's loss.

Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, equation 4, with its gamma of 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss
from torch import Tensor, nn

GAMMA = 2.0


class FocalLoss(RobustCrossEntropyLoss):
    """Mean of (1 - p)^2 times the cross-entropy, p the probability of the true class; of voxels that are not ignored.

    Args:
        ignore_index: label without a loss.
    """

    def __init__(self, ignore_index: int = -100) -> None:
        super().__init__(ignore_index=ignore_index, reduction="none")

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of logits (batch, classes, *size) and labels (batch, *size), with a channel or without."""
        entropy = super().forward(input, target)
        # 0 where ignored
        kept = (target != self.ignore_index).sum().clamp_min(1)
        return ((-torch.expm1(-entropy)) ** GAMMA * entropy).sum() / kept


class FocalLossOfRegions(nn.BCEWithLogitsLoss):
    """The same of regions, each voxel in or out of each.

    Args:
        reduction: mean, or none.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of logits and 0 or 1, both (batch, regions, *size)."""
        entropy = F.binary_cross_entropy_with_logits(input, target, reduction="none")
        focal = (-torch.expm1(-entropy)) ** GAMMA * entropy
        return focal.mean() if self.reduction == "mean" else focal


def focal_in_place_of(cross_entropy: nn.Module) -> nn.Module:
    """Return the focal loss with the settings of nnU-Net's cross-entropy, of labels or of regions."""
    if isinstance(cross_entropy, nn.BCEWithLogitsLoss):
        return FocalLossOfRegions(reduction=cross_entropy.reduction)
    assert isinstance(cross_entropy, RobustCrossEntropyLoss)
    return FocalLoss(cross_entropy.ignore_index)
