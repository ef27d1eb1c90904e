"""Figure of a matcher's matches between two images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..data.cached_matcher import CachedMatcher
from ..matching.matcher import random_points

COLOUR = {True: "tab:green", False: "tab:red"}


def draw_matches(matcher: CachedMatcher, query: str, key: str, output: Path, points: int = 6, seed: int = 0) -> None:
    """Draw random points of the query image beside their matches in the key image, one point per row.

    Each image is shown in the slice of its first axis through the point. The title states the cycle error: the distance
    in mm between the point and the match of its match.

    Args:
        matcher: matcher over a folder of prepared images.
        query, key: image names.
        output: file to write, PNG or another of matplotlib's formats.
        points: number of points.
        seed: seed of the points.

    Raises:
        ValueError: if there is no such image.
    """
    for name in (query, key):
        if name not in matcher.images.shapes:
            known = ", ".join(matcher.images.names[:5])
            raise ValueError(f"no image {name!r} in {matcher.images.folder}, which has {known} ...")
    spacing = np.array(matcher.spacing)
    extents = {name: (np.array(matcher.images.shapes[name][1:]) - 1) * spacing for name in (query, key)}
    places = random_points(extents[query], points, np.random.default_rng(seed), 0.2)
    match = matcher.match(query, key, places)
    back = matcher.match(key, query, match.points)
    cycle = np.linalg.norm(back.points - places, axis=1)
    figure = Figure(figsize=(5.5, 2.6 * points), layout="constrained")
    axes = figure.subplots(points, 2, squeeze=False)
    for row, place, found, valid, error in zip(axes, places, match.points, match.valid, cycle, strict=True):
        for axis, name, point in zip(row, (query, key), (place, found), strict=True):
            voxel = np.clip(np.round(point / spacing), 0, np.array(matcher.images.shapes[name][1:]) - 1).astype(int)
            size = matcher.images.shapes[name][2:]
            image = matcher.images.read(name, (int(voxel[0]), 0, 0), size).mean(0)
            axis.imshow(image, cmap="gray", aspect=spacing[1] / spacing[2])
            axis.plot(voxel[2], voxel[1], "+", color=COLOUR[bool(valid)], markersize=14, markeredgewidth=2)
            axis.set_axis_off()
        row[0].set_title(f"{query}: {', '.join(f'{p:.0f}' for p in place)} mm", fontsize=8, parse_math=False)
        row[1].set_title(
            f"{key}: {'valid' if valid else 'not valid'}, back within {error:.1f} mm", fontsize=8, parse_math=False
        )
    figure.savefig(output, dpi=110)
