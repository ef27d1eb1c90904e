"""Planners for Primus: ``nnUNetv2_plan_and_preprocess -d D -pl nnUNetPlannerPrimusV3S -c 3d_fullres``."""

from __future__ import annotations

from .planner import TransformerPlanner
from .tiling import TokenRules, no_windows


class PrimusPlanner(TransformerPlanner):
    """Base of the sizes: 3D, tokens of 8 voxels on each axis. nnU-Net's own trainers for Primus take its plans too."""

    token_rules = TokenRules(
        patch_embed_strides_3d=(8,), num_stages=1, isotropic=True, min_deepest_tokens=2, windows=no_windows
    )


class nnUNetPlannerPrimusV3S(PrimusPlanner):
    """Primus V3 S, plans ``nnUNetPrimusV3SPlans``."""

    network_name = "primus_v3_s"


class nnUNetPlannerPrimusV3M(PrimusPlanner):
    """Primus V3 M, plans ``nnUNetPrimusV3MPlans``."""

    network_name = "primus_v3_m"


class nnUNetPlannerPrimusV3L(PrimusPlanner):
    """Primus V3 L, plans ``nnUNetPrimusV3LPlans``."""

    network_name = "primus_v3_l"


class nnUNetPlannerPrimusV2S(PrimusPlanner):
    """Primus V2 S, plans ``nnUNetPrimusV2SPlans``."""

    network_name = "primus_v2_s"


class nnUNetPlannerPrimusV2M(PrimusPlanner):
    """Primus V2 M, plans ``nnUNetPrimusV2MPlans``."""

    network_name = "primus_v2_m"


class nnUNetPlannerPrimusV2L(PrimusPlanner):
    """Primus V2 L, plans ``nnUNetPrimusV2LPlans``."""

    network_name = "primus_v2_l"
