"""Anatomical matching between prepared images, with the matcher's features and maps cached on disk."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom

from ..._paths import inside
from ..._reading import reading
from ..matching import MATCHERS
from ..matching.matcher import AffineMapMatcher, Match, Volume, write_array
from .image_store import identity
from .prepared_images import PreparedImages

SEPARATOR = "/"
# file of the small features of an image; written last, it names the large ones, which have files of their own
SMALL, LARGE = "small.npz", "large"
# bytes from which a feature has a file that is mapped into memory instead of read
LARGE_BYTES = 2**20


class CachedMatcher:
    """Match points between prepared images.

    The matcher sees volumes at its own spacing, 2 mm, or those of the embedding's training. The cache has a folder for
    each matcher and its arguments, with ``features`` of images and ``maps`` of pairs, under their names and a hash of
    their files. A pair whose map is known needs no features. The folder of the images is only read.

    Args:
        images: prepared images.
        matcher: one of ``MATCHERS``.
        arguments: arguments of the matcher; files among them are identified by their content.
        cache: folder to write to; by default ``PREPARED.matching`` beside the folder of the images.

    Attributes:
        images: prepared images.
        matcher: the matcher.
        spacing: mm per voxel and axis.
        folder: folder of the matcher in the cache.

    Raises:
        ValueError: if there is no such matcher, or the images have no spacing.

    Examples:
        >>> matcher = CachedMatcher(PreparedImages(Path("prepared")), "affine")
        >>> match = matcher.match("case_0", "case_1", np.array([[30.0, 40.0, 50.0]]))
        >>> match.points.shape, match.valid.shape
        ((1, 3), (1,))
    """

    def __init__(
        self,
        images: PreparedImages,
        matcher: str,
        arguments: Mapping[str, Any] | None = None,
        cache: Path | None = None,
    ) -> None:
        if matcher not in MATCHERS:
            raise ValueError(f"matcher must be one of {', '.join(MATCHERS)}, got {matcher!r}")
        arguments = dict(arguments or {})
        parameters = inspect.signature(MATCHERS[matcher]).parameters.values()
        if lacking := [p.name for p in parameters if p.default is p.empty and p.name not in arguments]:
            raise ValueError(f"the matcher {matcher} needs {lacking[0]}, given by matcher_arguments (docs/alice.md)")
        self.images, self.matcher = images, MATCHERS[matcher](**arguments)
        self.spacing = images.index.spacing_of(3)
        place = images.folder.absolute()
        root = cache or place.with_name(f"{place.name}.matching")
        self.folder = root / f"{matcher}_{_fingerprint(arguments, self.matcher.version)}"
        self._maps: dict[tuple[str, str], tuple[NDArray, float]] = {}
        self._hashes: dict[str, str] = {}

    def features(self, name: str) -> dict[str, Any]:
        """Return the matcher's features of an image, from the cache if possible; large ones are mapped into memory."""
        folder = inside(self.folder / "features", name)
        folder = folder.with_name(f"{folder.name}.{self._hash(name)}")
        if not (folder / SMALL).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            _write(_flatten(self.matcher.prepare(self.volume(name))), folder)
        with reading(folder, "features of a matcher", "remove it"):
            with np.load(folder / SMALL, allow_pickle=False) as content:
                flat = dict(content)
            for key in flat.pop(LARGE).tolist():
                flat[key] = np.load(_large(folder, key), mmap_mode="r", allow_pickle=False)
        return _nest(flat)

    def _hash(self, name: str) -> str:
        """Hash what identifies an image and what its voxels mean: another one may have taken its name since."""
        if name not in self._hashes:
            case = self.images.cases[name]
            meaning = repr((self.spacing, case.scale, case.shift)).encode()
            self._hashes[name] = hashlib.sha256(meaning + identity(self.images.folder, case)).hexdigest()[:8]
        return self._hashes[name]

    def volume(self, name: str) -> Volume:
        """Read an image at the spacing of the matcher, where that is coarser; first and last voxels stay in place."""
        size = self.images.shapes[name][1:]
        image = self.images.read(name, (0, 0, 0), size).numpy()
        extent = (np.array(size) - 1) * self.spacing
        factors = []
        for length, n, own, wanted in zip(extent, size, self.spacing, self.matcher.spacing, strict=True):
            factors.append(min(1.0, (round(length / wanted) + 1) / n) if wanted > own else 1.0)
        if min(factors) == 1:
            return Volume(name, image, self.spacing)
        grey = zoom(image.mean(axis=0, dtype=np.float32), factors, order=1)
        spacing = extent / np.maximum(np.array(grey.shape) - 1, 1)
        return Volume(name, grey[None], tuple(np.maximum(spacing, 1e-6).tolist()))

    def match(self, query: str, key: str, points: NDArray) -> Match:
        """Find points of the query image, (points, 3) in mm, in the key image."""
        if isinstance(self.matcher, AffineMapMatcher):
            extent = (np.array(self.images.shapes[key][1:]) - 1) * self.spacing
            back = None if self.matcher.cycle_error is None else self._map(key, query)[0]
            return self.matcher.mapped(*self._map(query, key), points, extent, back)
        return self.matcher.match(self.features(query), self.features(key), points)

    def _map(self, query: str, key: str) -> tuple[NDArray, float]:
        """Return the affine map between two images, and the score of its fit."""
        if (query, key) not in self._maps:
            assert isinstance(self.matcher, AffineMapMatcher)
            file = inside(self.folder / "maps", f"{query}/{key}")
            file = file.with_name(f"{file.name}.{self._hash(query)}{self._hash(key)}.npy")
            if not file.is_file():
                matrix, score = self.matcher.affine_map(self.features(query), self.features(key))
                file.parent.mkdir(parents=True, exist_ok=True)
                write_array(np.vstack([matrix, np.full((1, 4), score)]), file)
            with reading(file, "a map of a matcher", "remove it"):
                kept = np.load(file, allow_pickle=False)
                self._maps[query, key] = kept[:4], float(kept[4, 0])
        return self._maps[query, key]


def _fingerprint(arguments: Mapping[str, Any], version: int) -> str:
    digest = hashlib.sha256(b"" if version == 1 else str(version).encode())
    for name, value in sorted(arguments.items()):
        is_file = isinstance(value, str) and Path(value).is_file()
        digest.update(name.encode() + (Path(value).read_bytes() if is_file else json.dumps(value).encode()))
    return digest.hexdigest()[:12]


def _large(folder: Path, key: str) -> Path:
    return folder / f"{key.replace(SEPARATOR, '.')}.npy"


def _write(flat: Mapping[str, NDArray], folder: Path) -> None:
    """Write features, the small ones last: several processes may write the same image."""
    large = {key: value for key, value in flat.items() if value.nbytes >= LARGE_BYTES}
    for key, value in large.items():
        write_array(value, _large(folder, key))
    small = {key: value for key, value in flat.items() if key not in large}
    write_array({**small, LARGE: np.array(list(large), dtype=str)}, folder / SMALL)


def _flatten(features: Mapping[str, Any], prefix: str = "") -> dict[str, NDArray]:
    flat: dict[str, NDArray] = {}
    for name, value in features.items():
        name = quote(name, safe="")  # landmarks such as L4/L5
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}{SEPARATOR}")
        else:
            flat[prefix + name] = np.asarray(value)
    return flat


def _nest(flat: Mapping[str, NDArray]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = map(unquote, path.split(SEPARATOR))
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = value
    return nested
