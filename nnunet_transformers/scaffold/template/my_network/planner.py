"""Planner: ``nnUNetv2_plan_and_preprocess -d D -pl nnUNetPlannerMyNetwork`` makes ``nnUNetMyNetworkPlans``."""

from __future__ import annotations

from nnunet_transformers.plans.planner import TransformerPlanner
from nnunet_transformers.plans.tiling import TokenRules, no_windows

from . import network  # noqa: F401  (registers the network)


class nnUNetPlannerMyNetwork(TransformerPlanner):
    """Patch, stages, strides, batch and memory for the data; ``token_rules`` state what the network requires."""

    network_name = "my_network"
    token_rules = TokenRules(
        patch_embed_strides_2d=(2,), patch_embed_strides_3d=(2,), min_deepest_tokens=2, windows=no_windows
    )
