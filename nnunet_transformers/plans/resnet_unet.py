"""Planner for the U-Net with a ResNet: ``nnUNetv2_plan_and_preprocess -d D -pl nnUNetPlannerResNet50UNet -c 2d``."""

from __future__ import annotations

from .planner import TransformerPlanner
from .tiling import TokenRules, no_windows


class nnUNetPlannerResNet50UNet(TransformerPlanner):
    """U-Net with ResNet-50, plans ``nnUNetResNet50UNetPlans``: 2D, the ResNet's five strides of 2 on both axes."""

    network_name = "resnet50_unet"
    token_rules = TokenRules(
        patch_embed_strides_2d=(2,), num_stages=5, isotropic=True, min_deepest_tokens=2, windows=no_windows
    )
