"""The network of a configuration whose ``patch_size`` was changed after planning, as nnU-Net's documentation advises.

The plan's ``arch_kwargs`` state the patch as well, and windows that tile its token grids. A configuration with another
``patch_size``, edited or by ``inherits_from``, gets a network for that patch: the same strides and stages, so that the
same weights fit, and windows that tile the new grids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..architectures._arguments import per_axis, per_stage, token_grids
from ..discovery import find
from .tiling import TokenRules, choose_windows

# arguments that a plan states of this package's networks and of those made like them, and of their windows
OF_NETWORKS = {"patch_size", "strides", "auxiliary_heads"}
OF_WINDOWS = {"window_sizes", "patch_embed_stride", "num_stages", "merge_strides"}


def architecture_for_patch(configuration: Mapping[str, Any], planner: str | None) -> dict[str, Any]:
    """Derive a configuration's ``architecture`` for its ``patch_size``.

    Args:
        configuration: of a plan, including inherited entries.
        planner: name of the planner that made the plan; nnU-Net's planners and unknown ones have the default rules.

    Returns:
        the entry as it is unless the two patches differ. Windows that did not tile the grids of the planned patch, as
        those of published networks, are kept.

    Raises:
        ValueError: if the network's total stride does not divide the patch; names both entries and the nearest sizes.
    """
    architecture: dict[str, Any] = configuration["architecture"]
    arguments = architecture["arch_kwargs"]
    if not arguments.keys() >= OF_NETWORKS:
        return architecture
    patch_size = [int(n) for n in configuration["patch_size"]]
    if list(arguments["patch_size"]) == patch_size:
        return architecture
    if len(patch_size) != len(arguments["patch_size"]):
        raise ValueError(
            f"patch_size {patch_size} has {len(patch_size)} numbers, the configuration has "
            f"{len(arguments['patch_size'])} axes"
        )
    try:
        changed = {"patch_size": patch_size, **_windows(arguments, patch_size, configuration["spacing"], planner)}
    except ValueError as error:
        raise ValueError(
            f"patch_size was changed from {list(arguments['patch_size'])} (architecture.arch_kwargs) to {patch_size} "
            f"(configuration), for which there is no such network: {error}"
        ) from error
    return {**architecture, "arch_kwargs": {**arguments, **changed}}


def _windows(
    arguments: Mapping[str, Any], patch_size: list[int], spacing: list[float], planner: str | None
) -> dict[str, Any]:
    """The argument ``window_sizes`` for a patch, if it is to change."""
    ndim = len(patch_size)
    token_grids(patch_size, arguments["strides"])
    if not arguments.keys() >= OF_WINDOWS:
        return {}
    stem = per_axis(arguments["patch_embed_stride"], ndim, "patch_embed_stride")
    count = int(arguments["num_stages"])
    strides = (stem, *per_stage(arguments["merge_strides"], count - 1, ndim, "merge_strides"))
    planned = zip(
        token_grids(arguments["patch_size"], strides),
        per_stage(arguments["window_sizes"], count, ndim, "window_sizes"),
        strict=True,
    )
    if any(grid % window for pair in planned for grid, window in zip(*pair, strict=True)):
        return {}
    rules = getattr(find(planner), "token_rules", TokenRules()) if planner else TokenRules()
    windows = choose_windows(patch_size, spacing, strides, rules)
    return {} if windows is None else {"window_sizes": [list(window) for window in windows]}
