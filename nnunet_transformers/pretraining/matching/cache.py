"""What a matcher keeps of each volume, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.prepared_images import PreparedImages
from . import MATCHERS
from .matcher import AffineMapMatcher, Match, Volume, write_array

SEPARATOR = "/"


class CachedMatcher:
    """A matcher over a folder of prepared images.

    Args:
        images: prepared images.
        matcher: one of ``MATCHERS``.
        arguments: of the matcher; files in them count by their content.

    Raises:
        ValueError: if there is no such matcher.
    """

    def __init__(self, images: PreparedImages, matcher: str, arguments: Mapping[str, Any] | None = None) -> None:
        if matcher not in MATCHERS:
            raise ValueError(f"matcher must be one of {', '.join(MATCHERS)}, got {matcher!r}")
        arguments = dict(arguments or {})
        self.images, self.matcher = images, MATCHERS[matcher](**arguments)
        self.spacing = tuple(images.index["spacing"])
        self.folder = images.folder / "matching" / f"{matcher}_{_fingerprint(arguments)}"
        self.folder.mkdir(parents=True, exist_ok=True)
        if isinstance(self.matcher, AffineMapMatcher):
            self.matcher.folder = self.folder

    def features(self, name: str) -> dict[str, Any]:
        """What ``prepare`` gives for an image."""
        file = self.folder / f"{name}.npz"
        if not file.is_file():
            shape = self.images.shapes[name][1:]
            volume = Volume(name, self.images.read(name, (0, 0, 0), shape).numpy(), self.spacing)
            write_array(_flatten(self.matcher.prepare(volume)), file)
        with np.load(file, allow_pickle=False) as content:
            return _nest(dict(content))

    def match(self, query: str, key: str, points: NDArray) -> Match:
        """Find points, (points, 3) in mm, of one image in another."""
        return self.matcher.match(self.features(query), self.features(key), points)


def _fingerprint(arguments: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(arguments.items()):
        is_file = isinstance(value, str) and Path(value).is_file()
        digest.update(name.encode() + (Path(value).read_bytes() if is_file else json.dumps(value).encode()))
    return digest.hexdigest()[:12]


def _flatten(features: Mapping[str, Any], prefix: str = "") -> dict[str, NDArray]:
    flat = {}
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
