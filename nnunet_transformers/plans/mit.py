"""Planners for MiT: ``nnUNetv2_plan_and_preprocess -d D -pl nnUNetPlannerMiT7``."""

from __future__ import annotations

from .planner import TransformerPlanner
from .tiling import TokenRules, no_windows


class MiTPlanner(TransformerPlanner):
    """Base of the sizes: four stages, spatial-reduction attention instead of windows."""

    token_rules = TokenRules(
        patch_embed_strides_2d=(4, 2),
        patch_embed_strides_3d=(4, 2),
        num_stages=4,
        min_deepest_tokens=2,
        windows=no_windows,
    )


class nnUNetPlannerMiT7(MiTPlanner):
    """MiT-7, plans ``nnUNetMiT7Plans``."""

    network_name = "mit_7"


class nnUNetPlannerMiT22(MiTPlanner):
    """MiT-22, plans ``nnUNetMiT22Plans``."""

    network_name = "mit_22"
