"""Planners for UNet-2022: ``nnUNetv2_plan_and_preprocess -d D -pl nnUNetPlannerUNet2022T``."""

from __future__ import annotations

from typing import Any, ClassVar

from ..architectures.unet2022 import published_windows
from .planner import TransformerPlanner
from .tiling import Size, TokenRules, tiling_windows


def published_or_tiling_windows(
    grid_sizes: tuple[Size, ...], token_spacings: tuple[tuple[float, ...], ...]
) -> tuple[float, tuple[Size, ...]]:
    """Choose the paper's windows where its rule applies, else tiling windows; as ``TokenRules.windows``."""
    windows = published_windows(grid_sizes)
    return (0.0, windows) if windows else tiling_windows(grid_sizes, token_spacings)


class UNet2022Planner(TransformerPlanner):
    """Base of the sizes: four stages; in 2D stride 4 up to patches of about 384, else 8 (the published rule)."""

    token_rules = TokenRules(
        patch_embed_strides_2d=(8, 4, 2),
        patch_embed_strides_3d=(4, 2),
        finest_tokens_2d=96**2,
        num_stages=4,
        windows=published_or_tiling_windows,
    )


class nnUNetPlannerUNet2022T(UNet2022Planner):
    """UNet-2022 Tiny, plans ``nnUNetUNet2022TPlans``. Without drop path, which was measured for this size alone."""

    network_name = "unet2022_tiny"
    network_overrides: ClassVar[dict[str, Any]] = {"drop_path_rate": 0.0}


class nnUNetPlannerUNet2022B(UNet2022Planner):
    """UNet-2022 Base, plans ``nnUNetUNet2022BPlans``."""

    network_name = "unet2022_base"


class nnUNetPlannerUNet2022L(UNet2022Planner):
    """UNet-2022 Large, plans ``nnUNetUNet2022LPlans``."""

    network_name = "unet2022_large"
