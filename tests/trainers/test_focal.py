"""The focal loss against its formula, where nnU-Net has cross-entropy."""

from __future__ import annotations

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from nnunet_transformers.trainers.focal import focal_in_place_of


def focal(probability):
    return -((1 - probability) ** 2) * probability.log()


def test_labels_some_ignored():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 4, (2, 1, 4, 5)).double()  # 3 is ignored
    loss = DC_and_CE_loss({"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}, ignore_label=3)
    found = focal_in_place_of(loss.ce)(logits, target[:, 0])
    labels = target[:, 0].long()
    true = logits.softmax(1).gather(1, labels.clamp_max(2)[:, None])[:, 0]
    expected = focal(true)[labels < 3].mean()
    torch.testing.assert_close(found, expected)
    found.backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("ignore", [False, True])
def test_regions(ignore):
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 4, 5, dtype=torch.float64)
    target = torch.randint(0, 2, (2, 2 + ignore, 4, 5)).double()
    loss = DC_and_BCE_loss(
        {},
        {"batch_dice": True, "do_bg": True, "ddp": False},
        use_ignore_label=ignore,
        dice_class=MemoryEfficientSoftDiceLoss,
    )
    loss.ce, loss.weight_ce, loss.weight_dice = focal_in_place_of(loss.ce), 10, 0
    p = logits.sigmoid()
    terms = focal(torch.where(target[:, :2] == 1, p, 1 - p))
    kept = 1 - target[:, 2:] if ignore else torch.ones_like(p[:, :1])
    # nnU-Net divides by the voxels, not by their regions, where some are ignored
    expected = 10 * ((terms * kept).sum() / kept.sum() if ignore else terms.mean())
    found = loss(logits, target)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
