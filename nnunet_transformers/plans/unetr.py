"""Planners for SwinUNETR and UNETR: ``nnUNetv2_plan_and_preprocess -d D -pl nnUNetPlannerSwinUNETR``."""

from __future__ import annotations

from .planner import TransformerPlanner
from .tiling import TokenRules, no_windows


class nnUNetPlannerSwinUNETR(TransformerPlanner):
    """SwinUNETR, plans ``nnUNetSwinUNETRPlans``: five strides of 2 on every axis, so multiples of 32."""

    network_name = "swin_unetr"
    token_rules = TokenRules(
        patch_embed_strides_2d=(2,),
        patch_embed_strides_3d=(2,),
        num_stages=5,
        isotropic=True,
        min_deepest_tokens=2,
        windows=no_windows,
    )


class nnUNetPlannerSwinUNETRV2(nnUNetPlannerSwinUNETR):
    """SwinUNETR-V2, plans ``nnUNetSwinUNETRV2Plans``."""

    network_name = "swin_unetr_v2"


class nnUNetPlannerUNETR(TransformerPlanner):
    """UNETR, plans ``nnUNetUNETRPlans``: tokens of 16 voxels on every axis."""

    network_name = "unetr"
    token_rules = TokenRules(
        patch_embed_strides_2d=(16,),
        patch_embed_strides_3d=(16,),
        num_stages=1,
        isotropic=True,
        min_deepest_tokens=2,
        windows=no_windows,
    )
