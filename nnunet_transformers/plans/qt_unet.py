"""Planners for QT-UNet: ``nnUNetv2_plan_and_preprocess -d D -pl nnUNetPlannerQTUNetT``."""

from __future__ import annotations

from .base import TransformerPlanner


class nnUNetPlannerQTUNetT(TransformerPlanner):
    """QT-UNet Tiny, plans ``nnUNetQTUNetTPlans``."""

    network_name = "qt_unet_tiny"


class nnUNetPlannerQTUNetS(TransformerPlanner):
    """QT-UNet Small, plans ``nnUNetQTUNetSPlans``."""

    network_name = "qt_unet_small"


class nnUNetPlannerQTUNetB(TransformerPlanner):
    """QT-UNet Base, plans ``nnUNetQTUNetBPlans``."""

    network_name = "qt_unet_base"
