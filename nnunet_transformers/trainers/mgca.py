"""MGCA's recipe for segmentation, which its two networks share."""

from __future__ import annotations


class MGCARecipe:
    """Mixin for a trainer, listed before its class: AdamW at 5e-4, weight decay 1e-6, 50 epochs (supplement B.3).

    The supplement states no schedule, so the rate is fixed, and no clipping, so gradients are clipped at nnU-Net's 12.
    Loss, deep supervision, augmentation and the length of an epoch are nnU-Net's. The presets ``siim-*`` and ``rsna-*``
    have the supplement's loss, 10 focal + Dice, its epochs and its early stopping as well.
    """

    default_epochs = 50
    default_lr = 5e-4
    default_weight_decay = 1e-6
    warmup_fraction = 0.0
    lr_power = 0.0
    clip_grad_norm = 12.0
    layer_decay = 1.0
    frozen_fraction = 0.0
