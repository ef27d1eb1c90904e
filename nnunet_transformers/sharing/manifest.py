"""Manifest of a package: its files with sizes and hashes, and the check that a folder holds these and no others."""

from __future__ import annotations

import hashlib
import json
import stat
from dataclasses import dataclass
from pathlib import Path

from .._atomic import write_json
from .._paths import inside
from .contents import check_code, check_kinds

NAME = "manifest.json"
FORMAT = 1
# far above any package; anything larger is not read
MAX_MANIFEST_BYTES = 4_000_000
MAX_FILES = 10_000
# safetensors' own limit
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class Entry:
    """Size in bytes and SHA-256 of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Files of a package.

    Attributes:
        entries: entries by path inside the package, with forward slashes.
        sha256: SHA-256 of the manifest itself, which identifies the package's content.
    """

    entries: dict[str, Entry]
    sha256: str

    @property
    def bytes(self) -> int:
        """Total size of the files."""
        return sum(entry.bytes for entry in self.entries.values())


def file_hash(path: Path) -> str:
    """Compute the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(folder: Path) -> Manifest:
    """Write the manifest of all files in a folder, as the last step of making a package.

    Raises:
        OSError: if it cannot be written.
    """
    entries = {name: Entry((folder / name).stat().st_size, file_hash(folder / name)) for name in _files(folder)}
    files = {name: {"bytes": entry.bytes, "sha256": entry.sha256} for name, entry in sorted(entries.items())}
    write_json({"format": FORMAT, "files": files}, folder / NAME)
    return Manifest(entries, file_hash(folder / NAME))


def verify(folder: Path, sha256: str | None = None) -> Manifest:
    """Verify that a folder is an unchanged package, before anything in it is interpreted.

    Args:
        folder: folder of the package.
        sha256: SHA-256 of the manifest as published by its author; without it, the files are only compared with the
            manifest.

    Returns:
        the manifest.

    Raises:
        FileNotFoundError: if there is no package.
        ValueError: if a file was changed, is missing, does not belong there, is a link, of a kind that no package has,
            or code other than every package's; the message names it.
    """
    manifest = _read_manifest(folder)
    if sha256 is not None and manifest.sha256 != sha256.lower():
        raise ValueError(f"{folder} is another package: its manifest has SHA-256 {manifest.sha256}, not {sha256}")
    found = _files(folder)
    for name in sorted(set(found) - {NAME} - set(manifest.entries)):
        raise ValueError(f"{name} does not belong to the package in {folder}; remove it, or get the package again")
    check_kinds(manifest.entries, folder)
    for name, entry in manifest.entries.items():
        if name not in found:
            raise ValueError(f"{name} is missing in {folder}; get the package again from its source")
        size = (folder / name).stat().st_size
        if size != entry.bytes:
            raise ValueError(f"{name} in {folder} was changed: it has {size} bytes, not {entry.bytes}; get it again")
        if file_hash(folder / name) != entry.sha256:
            raise ValueError(f"{name} in {folder} was changed: its SHA-256 differs; get the package again")
        if name.endswith(".safetensors"):
            _check_header(folder / name, size)
    check_code(folder)
    return manifest


def _files(folder: Path) -> list[str]:
    """List the paths of all files below a folder; anything but plain files and folders is refused."""
    names = []
    for entry in folder.rglob("*"):
        name = entry.relative_to(folder).as_posix()
        mode = entry.lstat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise ValueError(f"{name} in {folder} is a link or not a plain file, which a package never has; remove it")
        if stat.S_ISREG(mode):
            names.append(name)
        if len(names) > MAX_FILES:
            raise ValueError(f"{folder} holds more than {MAX_FILES} files, which a package never has")
    return names


def _read_manifest(folder: Path) -> Manifest:
    path = folder / NAME
    if not path.is_file() or path.is_symlink():
        raise FileNotFoundError(f"{folder} is not a package: it has no {NAME}")
    size = path.stat().st_size
    if size > MAX_MANIFEST_BYTES:
        raise ValueError(f"{NAME} in {folder} was changed: it has {size} bytes, more than any package's; get it again")
    try:
        content = json.loads(path.read_bytes())
        stated = content["format"]
        entries = {str(name): Entry(int(e["bytes"]), str(e["sha256"])) for name, e in content["files"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{NAME} in {folder} was changed: it is not a list of files ({error!r})") from error
    if stated != FORMAT:
        raise ValueError(
            f"{folder} has format {stated}, this version reads format {FORMAT}; update nnunet-transformers"
        )
    for name in entries:
        try:
            inside(folder, name)
        except ValueError as error:
            raise ValueError(f"{NAME} in {folder} names a file outside of the package: {error}") from error
    return Manifest(entries, file_hash(path))


def _check_header(path: Path, size: int) -> None:
    """Raise ValueError if the header length of a safetensors file exceeds the file or safetensors' limit."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
        raise ValueError(
            f"{path.name} is not a safetensors file: its header of {length} bytes does not fit into {size}"
        )
