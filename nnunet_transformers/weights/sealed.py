"""Files of weights and their description, with a hash over both, that are read without unpickling."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, uint8

from .file import load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from typing import Self  # Python 3.10 has none

PACKAGES = ("nnunet-transformers", "nnunetv2", "torch", "timm")
FORMAT = 1
WEIGHTS = "network_weights"


def package_versions() -> dict[str, str]:
    """Versions of what made a checkpoint."""
    return {name: version(name) for name in PACKAGES}


class WrongKindError(ValueError):
    """The file is whole, but of another kind."""


def content_hash(weights: Mapping[str, Tensor], description: Mapping[str, Any]) -> str:
    """SHA-256 of names, types, shapes and bytes of the weights and of their description."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.view(-1).view(uint8).numpy().tobytes())
    return digest.hexdigest()


def save_sealed(
    kind: str,
    weights: Mapping[str, Tensor],
    description: Mapping[str, Any],
    path: str | os.PathLike,
    more: Mapping[str, Any] | None = None,
) -> str:
    """Write a file whole or not at all.

    Args:
        kind: of the file, the entry that its description has.
        weights: by name.
        description: plain types.
        path: file to write.
        more: entries for other readers, not part of the hash.

    Returns:
        the content hash.

    Raises:
        OSError: if it cannot be written.
    """
    # through JSON: tuples become lists and anything that is no plain type is an error here, not at loading
    description = json.loads(json.dumps({**description, "format": FORMAT}))
    sha256 = content_hash(weights, description)
    save_checkpoint({WEIGHTS: dict(weights), **(more or {}), kind: {**description, "sha256": sha256}}, path)
    return sha256


def load_sealed(kind: str, path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file.

    Returns:
        weights and description.

    Raises:
        FileNotFoundError: if it is not there.
        WrongKindError: if it is a file of another kind.
        ValueError: if it is truncated, altered, or of another version.
    """
    content = load_checkpoint(path)
    description, weights = content.get(kind), content.get(WEIGHTS)
    if not isinstance(description, Mapping) or not isinstance(weights, Mapping) or "sha256" not in description:
        raise WrongKindError(f"{path} is no {kind} checkpoint (it has {', '.join(map(str, list(content)[:6]))})")
    description = dict(description)
    expected = description.pop("sha256")
    if description.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {description.get('format')}, this version reads {FORMAT}; update nnunet-transformers"
        )
    if content_hash(weights, description) != expected:
        raise ValueError(f"{path} was altered after it was written: its hash differs; get it again from its source")
    del description["format"]
    return dict(weights), description


def sealed_hash(path: str | os.PathLike) -> str:
    """The content hash that a file of ``load_sealed`` states."""
    return next(d["sha256"] for d in load_checkpoint(path).values() if isinstance(d, Mapping) and "sha256" in d)


@dataclass(frozen=True)
class SealedCheckpoint:
    """Weights and what is known of them, as a file of ``load_sealed``. A subclass adds fields of plain types.

    Attributes:
        kind: of the file, said by a subclass.
        tuples: fields that are tuples, which a file has as lists.
        weights: by name.
    """

    kind: ClassVar[str]
    tuples: ClassVar[tuple[str, ...]] = ()
    weights: Mapping[str, Tensor]

    def save(self, path: str | os.PathLike) -> str:
        """Write it whole or not at all.

        Returns:
            the content hash.

        Raises:
            OSError: if it cannot be written.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "weights"}
        description = {name: asdict(value) if is_dataclass(value) else value for name, value in values.items()}
        return save_sealed(self.kind, self.weights, description, path, self._more())

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Read it.

        Raises:
            FileNotFoundError: if it is not there.
            ValueError: if it is truncated, altered, or of another kind.
        """
        weights, description = load_sealed(cls.kind, path)
        restored = {name: tuple(description[name]) for name in cls.tuples if description[name] is not None}
        return cls(weights, **cls._restore({**description, **restored}))

    @classmethod
    def _restore(cls, description: dict[str, Any]) -> dict[str, Any]:
        """For a subclass: make of plain types what its fields are."""
        return description

    def _more(self) -> dict[str, Any] | None:
        """For a subclass: entries of the file for other readers."""
        return None
