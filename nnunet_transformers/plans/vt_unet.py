"""Planners for VT-UNet: ``nnUNetv2_plan_and_preprocess -d D -pl nnUNetPlannerVTUNetT``."""

from __future__ import annotations

from .planner import TransformerPlanner


class nnUNetPlannerVTUNetT(TransformerPlanner):
    """VT-UNet Tiny, plans ``nnUNetVTUNetTPlans``."""

    network_name = "vt_unet_tiny"


class nnUNetPlannerVTUNetS(TransformerPlanner):
    """VT-UNet Small, plans ``nnUNetVTUNetSPlans``."""

    network_name = "vt_unet_small"


class nnUNetPlannerVTUNetB(TransformerPlanner):
    """VT-UNet Base, plans ``nnUNetVTUNetBPlans``."""

    network_name = "vt_unet_base"
