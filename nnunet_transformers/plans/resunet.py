"""Planner for ResUnet: ``nnUNetv2_plan_and_preprocess -d D -pl nnUNetPlannerResUnet``."""

from __future__ import annotations

from .planner import TransformerPlanner
from .tiling import TokenRules, no_windows


class nnUNetPlannerResUnet(TransformerPlanner):
    """ResUnet, plans ``nnUNetResUnetPlans``: a stem and four stages."""

    network_name = "resunet_50"
    token_rules = TokenRules(
        patch_embed_strides_2d=(2,), patch_embed_strides_3d=(2,), num_stages=5, min_deepest_tokens=2, windows=no_windows
    )
