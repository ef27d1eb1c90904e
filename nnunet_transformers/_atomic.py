"""Write files and folders whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from ._lease import lease

if sys.platform != "win32":
    import fcntl

PARTIAL = ".partial"
_searched: set[Path] = set()


def check_place(path: str | os.PathLike[str]) -> None:
    """Check that a file can be written at ``path``; a command that computes for long asks at its start.

    Raises:
        FileNotFoundError: if its folder does not exist.
        IsADirectoryError: if it is a folder.
        PermissionError: if its folder cannot be written to.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to; make it, or name another")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the folder {path.parent} cannot be written to; name another for {path.name}")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a file beside ``path`` to write to, which replaces ``path`` at the end.

    Each writer has a file of its own, so of several at the same time the last one wins with a whole file. An error
    removes the new file and leaves ``path`` unchanged. What killed processes left in the folder is removed by the next
    process that writes there. A device or a pipe, such as /dev/null, is written to itself, as
    replacing would remove it.

    Args:
        path: file to write.

    Raises:
        OSError: as ``check_place``, or if the disk is full.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        yield path
        return
    check_place(path)
    _remove_orphans(path.parent.absolute())
    partial, descriptor = _new_partial(path)
    try:
        yield partial
        with open(partial, "r+b") as written:  # Windows syncs no file that is open for reading only
            os.fsync(written.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _new_partial(path: Path) -> tuple[Path, int | None]:
    """Create and lock a partial file of ``path``; return it and the descriptor that keeps the lock.

    On Windows, which locks nothing here and renames no open file, there is no descriptor.

    The random part of its name is the suffix, as ``torch.save`` writes the rest into the file.
    """
    while True:
        partial = path.with_name(f"{path.name}{PARTIAL}-{uuid4().hex[:8]}")
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if sys.platform == "win32":
            os.close(descriptor)
            return partial, None
        _try_lock(descriptor)
        # another process may have taken it for an orphan before it was locked
        if partial.exists():
            return partial, descriptor
        os.close(descriptor)


def _remove_orphans(folder: Path) -> None:
    """Remove the partial files that nobody has locked, as their writers are dead; once per process and folder."""
    if folder in _searched:
        return
    _searched.add(folder)
    for partial in folder.glob(f"*{PARTIAL}-{'[0-9a-f]' * 8}"):
        with suppress(OSError):
            descriptor = os.open(partial, os.O_RDWR)
            try:
                if _try_lock(descriptor):
                    partial.unlink()
            finally:
                os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    """Lock a file for as long as the descriptor is open; False if it is locked, or locks are not supported.

    Unlike the lock of a lease it survives that the file is opened and closed again, as ``torch.save`` does.
    """
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    """Write the entries of a folder to the disk, where the system can: a rename then survives a power cut."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder ``PATH.partial`` to fill, which is renamed to ``path`` at the end; an error removes it.

    Args:
        path: folder that does not exist yet. An empty folder, which may be a mount, is filled in place and emptied
            after an error.

    Raises:
        FolderInUse: if another process is making the folder.
        FileExistsError: if the folder was made in the meantime.
    """
    if path.exists():
        with _emptied_after_error(path):
            yield path
        return
    partial = path.with_name(f"{path.name}.partial")
    with lease(path, path.with_name(f"{path.name}.lease")):
        if partial.exists():
            print(f"note: removes {partial}, which a process that was killed has left")
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        try:
            yield partial
            if path.exists():
                raise FileExistsError(f"{path} was made by another process in the meantime; remove one of the two")
            partial.rename(path)
            _sync_folder(path.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def _emptied_after_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for content in [*folder.iterdir()]:
            shutil.rmtree(content, ignore_errors=True)
            with suppress(OSError):
                content.unlink()
        raise


def write_json(content: Any, path: Path) -> None:
    """Write ``content`` as JSON.

    Raises:
        OSError: if it cannot be written; ``path`` is then unchanged.
        ValueError: if the content holds NaN or infinity, which JSON does not have.
    """
    write_text(json.dumps(content, indent=4, allow_nan=False) + "\n", path)


def write_text(text: str, path: Path) -> None:
    """Write a text.

    Raises:
        OSError: if it cannot be written; ``path`` is then unchanged.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
