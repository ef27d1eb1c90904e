"""Planner for SETR-PUP: ``nnUNetv2_plan_and_preprocess -d D -pl nnUNetPlannerSETRPUP -c 2d``."""

from __future__ import annotations

from .planner import TransformerPlanner
from .tiling import TokenRules, no_windows


class nnUNetPlannerSETRPUP(TransformerPlanner):
    """SETR-PUP with ViT-B/16, plans ``nnUNetSETRPUPPlans``: 2D, tokens of 16 x 16 pixels as in pretrained ViTs."""

    network_name = "setr_pup"
    token_rules = TokenRules(
        patch_embed_strides_2d=(16,), num_stages=1, isotropic=True, min_deepest_tokens=2, windows=no_windows
    )


class nnUNetPlannerSETRPUPDINOv3S(nnUNetPlannerSETRPUP):
    """SETR-PUP with DINOv3's ViT-S/16, plans ``nnUNetSETRPUPDINOv3SPlans``."""

    network_name = "setr_pup_dinov3_small"


class nnUNetPlannerSETRPUPDINOv3B(nnUNetPlannerSETRPUP):
    """SETR-PUP with DINOv3's ViT-B/16, plans ``nnUNetSETRPUPDINOv3BPlans``."""

    network_name = "setr_pup_dinov3"
