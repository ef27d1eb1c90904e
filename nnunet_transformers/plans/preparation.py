"""What a plan and images that were prepared without it have to agree on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization

from .planned import PlannedConfiguration


def ct_ranges(plans: Mapping[str, Any] | None, schemes: Sequence[str]) -> list[list[float]] | None:
    """Return the lowest and highest intensity of each channel with CT normalisation; None if there is none.

    Args:
        plans: the plan; None if unknown.
        schemes: nnU-Net's normalisation scheme of each channel.
    """
    if plans is None or CTNormalization.__name__ not in schemes:
        return None
    statistics = plans["foreground_intensity_properties_per_channel"]
    ends = ("percentile_00_5", "percentile_99_5")
    chosen = [str(i) for i, scheme in enumerate(schemes) if scheme == CTNormalization.__name__]
    return [[round(statistics[channel][end], 2) for end in ends] for channel in chosen]


def differences(
    plan: PlannedConfiguration,
    spacing: Sequence[float] | None,
    normalization: Sequence[str],
    ranges: Sequence[Sequence[float]] | None,
) -> list[str]:
    """Return in words where images were prepared differently from a plan; what is unknown is not compared.

    Args:
        plan: planned configuration.
        spacing: mm per voxel and axis of the images.
        normalization: their normalisation schemes.
        ranges: as ``ct_ranges`` returns them.
    """
    configuration = plan.configuration
    schemes = configuration.normalization_schemes
    compared: tuple[tuple[str, Sequence[Any] | None, Sequence[Any] | None], ...] = (
        # of a 2D plan that in the plane
        ("spacing", spacing if spacing is None else spacing[-len(configuration.spacing) :], configuration.spacing),
        ("normalization", normalization or None, schemes),
        ("range of CT", ranges, ct_ranges(plan.plans, schemes)),
    )
    return [
        f"the images were prepared with {name} {list(prepared)}, the plan has {list(planned)}"
        for name, prepared, planned in compared
        if prepared is not None and planned is not None and list(prepared) != list(planned)
    ]
