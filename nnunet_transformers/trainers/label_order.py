"""Axes along which labels lie in an order, as left and right do, which a mirrored image does not have."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

# least mean distance of two centres in standard deviations, less two standard errors: at 1, five of six cases have
# their order
LEAST_DISTANCE = 1.0
# cases that have both labels, below which the standard deviation is no more than a guess
FEWEST_CASES = 10


def ordered_axes(cases: Iterable[Mapping[Hashable, NDArray[np.floating]]]) -> dict[int, tuple[Hashable, Hashable]]:
    """Find the axes along which two labels lie in the same order in five of six cases or more.

    Args:
        cases: of each case the centre of each label, in voxels.

    Returns:
        for each such axis, from 0, the pair of labels whose order is the clearest.
    """
    cases = list(cases)
    clearest: dict[int, tuple[float, tuple[Hashable, Hashable]]] = {}
    for pair in combinations(dict.fromkeys(label for centres in cases for label in centres), 2):
        first, second = pair
        distances = [centres[second] - centres[first] for centres in cases if first in centres and second in centres]
        if len(distances) < FEWEST_CASES:
            continue
        standardised = np.abs(np.mean(distances, axis=0)) / np.maximum(np.std(distances, axis=0), 1e-6)
        # two of its standard errors below
        certain = standardised - 2 * np.sqrt((1 + standardised**2 / 2) / len(distances))
        for axis, distance in enumerate(certain.tolist()):
            if distance >= max(LEAST_DISTANCE, clearest.get(axis, (0.0,))[0]):
                clearest[axis] = distance, pair
    return {axis: pair for axis, (_, pair) in sorted(clearest.items())}


def label_centres(properties: Mapping[str, object]) -> dict[Hashable, NDArray[np.floating]]:
    """Centre (z, y, x) of each label or region of a preprocessed case, of the voxels that nnU-Net has drawn from it.

    What is annotated, which nnU-Net draws from too where a label is ignored, is no such region.
    """
    locations = properties["class_locations"]
    assert isinstance(locations, Mapping)
    return {
        label: np.mean(voxels, axis=0)[1:]
        for label, voxels in locations.items()
        if len(voxels) and not (isinstance(label, tuple) and -1 in label)
    }
