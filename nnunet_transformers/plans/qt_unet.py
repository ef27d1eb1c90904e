"""Planners for QT-UNet: ``nnUNetv2_plan_and_preprocess -d D -pl nnUNetPlannerQTUNetT``."""

from __future__ import annotations

from typing import Any, ClassVar

from .planner import TransformerPlanner


class QTUNetPlanner(TransformerPlanner):
    """Base of the sizes: pre-norm, tiling windows and a branch at full resolution.

    benchmarks/results/hippocampus.md and benchmarks/results/accuracy.md compare them with what is published.
    """

    network_overrides: ClassVar[dict[str, Any]] = {"norm_placement": "pre", "full_resolution_channels": 16}


class nnUNetPlannerQTUNetT(QTUNetPlanner):
    """QT-UNet Tiny, plans ``nnUNetQTUNetTPlans``. Without drop path, which was measured for this size alone."""

    network_name = "qt_unet_tiny"
    network_overrides: ClassVar[dict[str, Any]] = {"drop_path_rate": 0.0}


class nnUNetPlannerQTUNetS(QTUNetPlanner):
    """QT-UNet Small, plans ``nnUNetQTUNetSPlans``."""

    network_name = "qt_unet_small"


class nnUNetPlannerQTUNetB(QTUNetPlanner):
    """QT-UNet Base, plans ``nnUNetQTUNetBPlans``."""

    network_name = "qt_unet_base"
