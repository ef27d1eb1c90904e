"""The plan that prepares a folder of images where no plan is given: median spacing, nnU-Net's normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import (
    channel_name_to_normalization_mapping,
    get_normalization_scheme,
)

CONFIGURATION = "pretraining"
# median share of an image inside of its non-zero box, below which nnU-Net normalises inside of the mask only
MASKED_BELOW = 3 / 4
# entry of the configuration of images that were shrunk
LONGEST = "longest_side"


def longest_side(plans: Mapping[str, Any] | None) -> int | None:
    """Return the pixels that a plan of ``own_plan`` shrinks the longest side of 2D images to; None if it does not."""
    configurations = (plans or {}).get("configurations", {}).values()
    return next((configuration[LONGEST] for configuration in configurations if LONGEST in configuration), None)


def is_shrunk(plans: Mapping[str, Any] | None) -> bool:
    """Whether a plan of ``own_plan`` shrinks 2D images whole, without cropping them."""
    return longest_side(plans) is not None


def own_plan(
    channels: Sequence[str],
    spacing: Sequence[float],
    intensities: Sequence[Mapping[str, float]],
    patch_size: Sequence[int],
    reader: str,
    cropped_share: float,
    window: Sequence[float] | None = None,
    longest: int | None = None,
) -> dict[str, Any]:
    """Return the part of a plan that nnU-Net's preprocessor reads.

    Args:
        channels: channel names, which state the normalisation as in nnU-Net.
        spacing: mm per voxel and axis; of two axes for images that are not resampled across slices.
        intensities: statistics of each channel by nnU-Net's names.
        patch_size: approximate size of the crops.
        reader: name of nnU-Net's reader of most images.
        cropped_share: median share of the images inside of their non-zero box.
        window: lowest and highest intensity of CT, others are clipped, such as -175 and 250 HU; by default the
            percentiles of the foreground.
        longest: pixels of the longest side that 2D images are shrunk to, see ``read_image``.
    """
    schemes = [CTNormalization if window is not None else get_normalization_scheme(channel) for channel in channels]
    statistics = [dict(channel) for channel in intensities]
    if window is not None:
        for channel in statistics:
            channel |= {"percentile_00_5": float(window[0]), "percentile_99_5": float(window[1])}
    is_masked = cropped_share < MASKED_BELOW
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": CONFIGURATION,
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 1,
        "patch_size": list(patch_size),
        "spacing": list(spacing),
        "normalization_schemes": [scheme.__name__ for scheme in schemes],
        "use_mask_for_norm": [
            is_masked and bool(s.leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true) for s in schemes
        ],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        "architecture": {"network_class_name": "", "arch_kwargs": {}, "_kw_requires_import": []},
        "batch_dice": False,
        **({} if longest is None else {LONGEST: longest}),
    }
    return {
        "dataset_name": "pretraining",
        "plans_name": "pretraining",
        "image_reader_writer": reader,
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {str(i): channel for i, channel in enumerate(statistics)},
        "configurations": {CONFIGURATION: configuration},
    }


def check_normalization(name: str) -> None:
    """Raise ValueError unless nnU-Net has a normalisation of this name."""
    if name not in channel_name_to_normalization_mapping:
        known = ", ".join(channel_name_to_normalization_mapping)
        raise ValueError(f"nnU-Net has no normalization {name!r}; it has {known}")


def chosen_spacing(
    found: Sequence[Sequence[float]], wanted: Sequence[float] | None, is_flat: bool, source: object
) -> list[float]:
    """Return the spacing to resample to: as wanted, or the median of the images.

    Slices of 2D images have no distance: of them only the last two axes count.

    Raises:
        ValueError: if ``wanted`` has another number of axes than the images.
    """
    if wanted is None:
        median = np.median(np.array(found), axis=0).tolist()
        return median[-2:] if is_flat else median
    if len(wanted) == 3 or (is_flat and len(wanted) == 2):
        return list(wanted[-2:] if is_flat else wanted)
    raise ValueError(f"--spacing {tuple(wanted)} must have 3 numbers, the axes of {source}")
