"""Planners for MedNeXt: ``nnUNetv2_plan_and_preprocess -d D -pl nnUNetPlannerMedNeXtS``."""

from __future__ import annotations

from .planner import TransformerPlanner
from .tiling import TokenRules, no_windows


class MedNeXtPlanner(TransformerPlanner):
    """Base of the sizes: up to four strides that follow the spacing, as nnU-Net plans its CNN."""

    token_rules = TokenRules(
        patch_embed_strides_2d=(1,), patch_embed_strides_3d=(1,), min_deepest_tokens=2, windows=no_windows
    )


class nnUNetPlannerMedNeXtS(MedNeXtPlanner):
    """MedNeXt-S with kernels of 3, plans ``nnUNetMedNeXtSPlans``."""

    network_name = "mednext_s"


class nnUNetPlannerMedNeXtB(MedNeXtPlanner):
    """MedNeXt-B with kernels of 3, plans ``nnUNetMedNeXtBPlans``."""

    network_name = "mednext_b"


class nnUNetPlannerMedNeXtM(MedNeXtPlanner):
    """MedNeXt-M with kernels of 3, plans ``nnUNetMedNeXtMPlans``."""

    network_name = "mednext_m"


class nnUNetPlannerMedNeXtL(MedNeXtPlanner):
    """MedNeXt-L with kernels of 3, plans ``nnUNetMedNeXtLPlans``."""

    network_name = "mednext_l"


class nnUNetPlannerMedNeXtSK5(MedNeXtPlanner):
    """MedNeXt-S with kernels of 5, plans ``nnUNetMedNeXtSK5Plans``."""

    network_name = "mednext_s_k5"


class nnUNetPlannerMedNeXtBK5(MedNeXtPlanner):
    """MedNeXt-B with kernels of 5, plans ``nnUNetMedNeXtBK5Plans``."""

    network_name = "mednext_b_k5"


class nnUNetPlannerMedNeXtMK5(MedNeXtPlanner):
    """MedNeXt-M with kernels of 5, plans ``nnUNetMedNeXtMK5Plans``."""

    network_name = "mednext_m_k5"


class nnUNetPlannerMedNeXtLK5(MedNeXtPlanner):
    """MedNeXt-L with kernels of 5, plans ``nnUNetMedNeXtLK5Plans``."""

    network_name = "mednext_l_k5"
