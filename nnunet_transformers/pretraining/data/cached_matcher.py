"""Anatomical matching between prepared images, with the matcher's features cached on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._paths import inside
from ..._reading import reading
from ..matching import MATCHERS
from ..matching.matcher import AffineMapMatcher, Match, Volume, write_array
from .prepared_images import PreparedImages

SEPARATOR = "/"


class CachedMatcher:
    """Match points between prepared images.

    The folder of the images has a subfolder ``matching`` with one cache of features for each matcher and its arguments.

    Args:
        images: prepared images.
        matcher: one of ``MATCHERS``.
        arguments: arguments of the matcher; files among them are identified by their content.

    Attributes:
        images: prepared images.
        matcher: the matcher.
        spacing: mm per voxel and axis.
        folder: folder of the cache.

    Raises:
        ValueError: if there is no such matcher, or the images have no spacing.

    Examples:
        >>> matcher = CachedMatcher(PreparedImages(Path("prepared")), "affine")
        >>> match = matcher.match("case_0", "case_1", np.array([[30.0, 40.0, 50.0]]))
        >>> match.points.shape, match.valid.shape
        ((1, 3), (1,))
    """

    def __init__(self, images: PreparedImages, matcher: str, arguments: Mapping[str, Any] | None = None) -> None:
        if matcher not in MATCHERS:
            raise ValueError(f"matcher must be one of {', '.join(MATCHERS)}, got {matcher!r}")
        arguments = dict(arguments or {})
        self.images, self.matcher = images, MATCHERS[matcher](**arguments)
        self.spacing = images.index.spacing_of(3)
        self.folder = images.folder / "matching" / f"{matcher}_{_fingerprint(arguments)}"
        self.folder.mkdir(parents=True, exist_ok=True)
        if isinstance(self.matcher, AffineMapMatcher):
            self.matcher.folder = self.folder

    def features(self, name: str) -> dict[str, Any]:
        """Return the matcher's features of an image, from the cache if possible."""
        file = inside(self.folder, f"{name}.npz")
        if not file.is_file():
            shape = self.images.shapes[name][1:]
            volume = Volume(name, self.images.read(name, (0, 0, 0), shape).numpy(), self.spacing)
            write_array(_flatten(self.matcher.prepare(volume)), file)
        with (
            reading(file, "features of a matcher", "remove it"),
            np.load(file, allow_pickle=False) as content,
        ):
            return _nest(dict(content))

    def match(self, query: str, key: str, points: NDArray) -> Match:
        """Find points of the query image, (points, 3) in mm, in the key image."""
        return self.matcher.match(self.features(query), self.features(key), points)


def _fingerprint(arguments: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(arguments.items()):
        is_file = isinstance(value, str) and Path(value).is_file()
        digest.update(name.encode() + (Path(value).read_bytes() if is_file else json.dumps(value).encode()))
    return digest.hexdigest()[:12]


def _flatten(features: Mapping[str, Any], prefix: str = "") -> dict[str, NDArray]:
    flat: dict[str, NDArray] = {}
    for name, value in features.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}{SEPARATOR}")
        else:
            flat[prefix + name] = np.asarray(value)
    return flat


def _nest(flat: Mapping[str, NDArray]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split(SEPARATOR)
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = value
    return nested
