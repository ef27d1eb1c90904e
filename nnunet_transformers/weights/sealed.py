"""Sealed checkpoints: one file of weights, their description and a hash over both, read without unpickling.

A kind of checkpoint is a subclass of ``SealedCheckpoint`` in any module; ``load`` recognises the kind of a file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

from torch import Tensor, uint8

from .file import WEIGHTS, load_checkpoint, save_checkpoint
from .limits import check_finite

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on

PACKAGES = ("nnunet-transformers", "nnunetv2", "torch", "timm")
# rule of the hash; files written before it have none, and are verified by the rule of that time
SEAL = 2

_kinds: dict[str, type[SealedCheckpoint]] = {}


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that a checkpoint depends on, by name."""
    return {name: version(name) for name in PACKAGES}


def content_hash(content: Mapping[str, Any]) -> str:
    """Compute the SHA-256 of the whole content of a file: weights in the entry ``WEIGHTS``, plain types in the others.

    The length of every part precedes it, so that no byte can move from one part into the next.

    Raises:
        TypeError: if the content holds anything else, or mappings whose keys are not texts.
    """
    weights = content[WEIGHTS]
    rest = {name: value for name, value in content.items() if name != WEIGHTS}
    _check_plain(rest)
    digest = hashlib.sha256(f"nnunet_transformers, seal {SEAL}".encode())

    def update(*parts: bytes | memoryview) -> None:
        for part in parts:
            digest.update(memoryview(part).nbytes.to_bytes(8, "little"))
            digest.update(part)

    update(json.dumps(rest, sort_keys=True).encode(), str(len(weights)).encode())
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        shape = json.dumps(list(value.shape)).encode()
        update(name.encode(), str(value.dtype).encode(), shape, value.view(-1).view(uint8).numpy().data)
    return digest.hexdigest()


def _check_plain(value: Any) -> None:
    """Check that JSON tells a value from every other: keys are texts, and there are lists but no tuples."""
    if type(value) is dict and all(type(key) is str for key in value):
        for inner in value.values():
            _check_plain(inner)
    elif type(value) is list:
        for inner in value:
            _check_plain(inner)
    elif value is not None and type(value) not in (bool, int, float, str):
        raise TypeError(f"a {type(value).__name__} is no plain type")


def _hash_without_seal(weights: Mapping[str, Tensor], description: Mapping[str, Any]) -> str:
    """Compute the hash of files written before 0.3, over the weights and the description alone."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.view(-1).view(uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class SealedCheckpoint:
    """Weights and their description. A subclass adds fields of plain types.

    A subclass that defines ``kind`` is registered under it and must define ``format`` as well.

    Attributes:
        kind: name of the file's entry that holds the description.
        format: version of this kind's layout, to be raised when older versions cannot read new files.
        earlier: formats before it that have the same fields or that ``_restore`` converts.
        remedy: advice for users who pass another file.
        tuples: names of the fields that are tuples, which a file stores as lists.
        weights: tensors by name.

    Examples:
        >>> @dataclass(frozen=True)
        ... class Atlas(SealedCheckpoint):
        ...     kind = "atlas"
        ...     format = 1
        ...     spacing: tuple[float, ...]
        ...     tuples = ("spacing",)
        >>> Atlas({"mean": mean}, spacing=(1.0, 1.0, 3.0)).save("atlas.pth")
        >>> Atlas.load("atlas.pth").spacing
        (1.0, 1.0, 3.0)
    """

    kind: ClassVar[str]
    format: ClassVar[int]
    earlier: ClassVar[tuple[int, ...]] = ()
    remedy: ClassVar[str] = ""
    tuples: ClassVar[tuple[str, ...]] = ()
    weights: Mapping[str, Tensor]

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "kind" not in vars(cls):
            return
        if "format" not in vars(cls):
            raise TypeError(f"{cls.__qualname__} defines kind {cls.kind!r} but no format")
        other = _kinds.setdefault(cls.kind, cls)
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"kind {cls.kind!r} of {cls.__qualname__} is already that of {other.__qualname__}")
        _kinds[cls.kind] = cls

    @cached_property
    def sha256(self) -> str:
        """Content hash, which the file stores."""
        return content_hash(self._content())

    def save(self, path: str | os.PathLike[str]) -> str:
        """Write the checkpoint, whole or not at all.

        Returns:
            the content hash.

        Raises:
            OSError: if it cannot be written.
            TypeError: if a field holds more than plain types.
        """
        content = self._content()
        sha256 = content_hash(content)
        content[self.kind]["sha256"] = sha256
        save_checkpoint(content, path)
        return sha256

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a checkpoint of this kind; errors as for the function ``load``."""
        return load(path, cls)

    def _content(self) -> dict[str, Any]:
        """Return the content of the file, except for the hash."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "weights"}
        plain = {n: asdict(v) if is_dataclass(v) and not isinstance(v, type) else v for n, v in values.items()}
        entries = {**self._other_entries(), self.kind: {**plain, "format": self.format, "seal": SEAL}}
        # through JSON: tuples become lists, and other than plain types fail here rather than at loading
        return {WEIGHTS: dict(self.weights), **json.loads(json.dumps(entries))}

    @classmethod
    def _restore(cls, description: dict[str, Any]) -> dict[str, Any]:
        """Convert plain types to those of the fields; for subclasses to override."""
        return description

    def _other_entries(self) -> dict[str, Any]:
        """Return entries of the file for other readers, of plain types; for subclasses to override."""
        return {}


First = TypeVar("First", bound=SealedCheckpoint)
Second = TypeVar("Second", bound=SealedCheckpoint)
Third = TypeVar("Third", bound=SealedCheckpoint)


@overload
def load(path: str | os.PathLike[str]) -> SealedCheckpoint: ...


@overload
def load(path: str | os.PathLike[str], expected: type[First]) -> First: ...


@overload
def load(path: str | os.PathLike[str], expected: tuple[type[First], type[Second]]) -> First | Second: ...


@overload
def load(
    path: str | os.PathLike[str], expected: tuple[type[First], type[Second], type[Third]]
) -> First | Second | Third: ...


def load(
    path: str | os.PathLike[str],
    expected: type[SealedCheckpoint] | tuple[type[SealedCheckpoint], ...] = SealedCheckpoint,
) -> SealedCheckpoint:
    """Read a checkpoint once, recognise its kind by its content and verify its hash.

    Args:
        path: file to read.
        expected: class or classes that the caller accepts; by default every kind whose module has been imported.

    Returns:
        the checkpoint, an instance of the class of its kind.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is truncated, altered, of another kind, or of a format that this version does not read, or its
            weights hold NaN or infinity.
    """
    return restore(path, load_checkpoint(path), expected)


def restore(
    path: str | os.PathLike[str],
    content: Mapping[str, Any],
    expected: type[SealedCheckpoint] | tuple[type[SealedCheckpoint], ...] = SealedCheckpoint,
) -> SealedCheckpoint:
    """Restore a checkpoint from the content of its file; arguments and errors as for ``load``."""
    classes = expected if isinstance(expected, tuple) else (expected,)
    wanted = list(dict.fromkeys(kind for c in classes for kind, other in _kinds.items() if issubclass(other, c)))
    found = kind_of(content, wanted)
    if found not in wanted:
        needed, keys = _alternatives(wanted), ", ".join(map(str, list(content)[:6]))
        if found is None:
            message = f"{path} is not a checkpoint of kind {needed} (it has {keys})"
        else:
            message = f"{path} is not a checkpoint of kind {needed} (its kind is {found})"
        remedies = dict.fromkeys(_kinds[kind].remedy for kind in wanted if _kinds[kind].remedy)
        raise ValueError(". ".join([message, *remedies]))
    weights, description, kind_class = content[WEIGHTS], dict(content[found]), _kinds[found]
    _check_format(path, description["format"], kind_class)
    if not _is_intact(content, found):
        raise ValueError(f"{path} was altered after it was written: its hash differs; get it again from its source")
    check_finite(weights, path)
    stated = description.pop("sha256")
    for name in ("format", "seal"):
        description.pop(name, None)
    try:
        restored = {n: tuple(description[n]) for n in kind_class.tuples if description[n] is not None}
        checkpoint = kind_class(dict(weights), **kind_class._restore({**description, **restored}))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"the description in {path} is not that of kind {found}: {error}; write it again") from error
    vars(checkpoint)["sha256"] = stated  # just verified; the property would compute it again
    return checkpoint


def kind_of(content: Mapping[str, Any], wanted: Sequence[str] = ()) -> str | None:
    """Recognise the kind of a file by its content, a wanted kind if there are several; None if there is none."""
    weights = content.get(WEIGHTS)
    if not isinstance(weights, Mapping):
        return None
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()):
        return None
    kinds = [k for k, v in content.items() if isinstance(v, Mapping) and {"sha256", "format"} <= v.keys()]
    return next((kind for kind in kinds if kind in wanted), next(iter(kinds), None))


def _check_format(path: str | os.PathLike[str], stated: Any, kind_class: type[SealedCheckpoint]) -> None:
    known = (*kind_class.earlier, kind_class.format)
    # 1 == True, and a comparison with a tensor is a tensor
    if type(stated) is not int or stated not in known:
        is_newer = type(stated) is int and stated > kind_class.format
        raise ValueError(
            f"{path} has format {stated!r} of kind {kind_class.kind}, this version reads format "
            f"{_alternatives([*map(str, known)])}; {'update nnunet-transformers' if is_newer else 'write it again'}"
        )


def _is_intact(content: Mapping[str, Any], kind: str) -> bool:
    """Tell whether content has the hash that its entry ``kind`` states; what cannot be hashed was not written here."""
    entry = dict(content[kind])
    stated = entry.pop("sha256")
    try:
        if "seal" in entry:
            return bool(entry["seal"] == SEAL and content_hash({**content, kind: entry}) == stated)
        return bool(_hash_without_seal(content[WEIGHTS], entry) == stated)
    except (TypeError, ValueError, RuntimeError):
        return False


def _alternatives(names: Sequence[str]) -> str:
    """Join names: "a, b or c"."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
