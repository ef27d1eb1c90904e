"""MGCA's recipe for segmentation, which its two networks share."""

from __future__ import annotations


class MGCARecipe:
    """AdamW at 5e-4, weight decay 1e-6, 50 epochs (supplement B.3), before a trainer's class.

    The supplement names no schedule, so the rate is fixed, and no clip, so that it is nnU-Net's 12. nnU-Net's are loss
    (the supplement has 10 focal + Dice), deep supervision, augmentation, the length of an epoch, and the end: there is
    no early stop, which the supplement has after 10 epochs without a lower validation loss.
    """

    default_epochs = 50
    default_lr = 5e-4
    default_weight_decay = 1e-6
    warmup_fraction = 0.0
    lr_power = 0.0
    clip_grad_norm = 12.0
