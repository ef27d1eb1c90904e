"""Leases: one process at a time writes to a folder."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

if sys.platform != "win32":
    import fcntl

# a holder on another machine is taken for dead when it has not renewed its lease for so many seconds
EXPIRES_AFTER = 60.0
RENEWED_EVERY = 5.0
_held: set[Path] = set()


class FolderInUse(OSError):
    """Another process writes to the folder."""


@contextmanager
def lease(folder: str | os.PathLike[str], file: str | os.PathLike[str]) -> Iterator[None]:
    """Be the only process that writes to a folder, for as long as the context lasts.

    The lease file names the holder, which renews its time of modification. The holder also has a lock on it, which the
    system takes back when the process dies: a lease of a dead process on this machine is taken over at once. One of
    another machine, or in another container, whose locks may not be visible here, is taken over when it was not renewed
    for ``EXPIRES_AFTER`` seconds. A process ID alone would prove nothing, as containers share them.

    Args:
        folder: folder to write; need not exist.
        file: lease file, the same for all who write to the folder; its folder is made.

    Raises:
        FolderInUse: if another process, or this one, holds the lease.
        OSError: if the lease cannot be written.
    """
    path, file = Path(folder).absolute(), Path(file).absolute()
    if file in _held:
        raise FolderInUse(f"{path} is being written by this process already; wait until it ends")
    descriptor = _acquire(file, path)
    _held.add(file)
    stop = Event()
    renewal = Thread(target=_renew, args=(file, stop), daemon=True)
    renewal.start()
    try:
        yield
    finally:
        stop.set()
        renewal.join()
        _held.discard(file)
        if sys.platform == "win32":  # where no open file can be removed
            os.close(descriptor)
        with suppress(OSError):
            file.unlink()
        if sys.platform != "win32":
            os.close(descriptor)


def _acquire(file: Path, path: Path) -> int:
    """Return the descriptor of the locked lease file.

    Raises:
        FolderInUse: if the lease is held.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            holder, is_locked = _read(descriptor), _lock(descriptor)
            if is_locked is False:
                raise FolderInUse(_in_use(path, holder))
            if holder and (is_locked is None or holder.get("host") != socket.gethostname()):
                _wait_for_expiry(file, path, holder)
            # whoever held the lease may have removed the file since it was opened
            if not _is_same_file(descriptor, file):
                os.close(descriptor)
                continue
            if holder:
                print(f"note: takes over {path} from {_name(holder)}, which did not end properly")
            content = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, json.dumps(content).encode())
            return descriptor
        except BaseException:
            with suppress(OSError):
                os.close(descriptor)
            raise


def _read(descriptor: int) -> dict[str, Any]:
    """Return who holds the lease; empty if nobody does, or the file is not readable as JSON."""
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        content = json.loads(os.read(descriptor, 4096))
        return content if isinstance(content, dict) else {}
    except ValueError:
        return {}


def _lock(descriptor: int) -> bool | None:
    """Lock the file; False if another process has locked it, None if the file system has no locks.

    The lock is POSIX's, which processes forked from the holder (the workers of a data loader) do not inherit.
    """
    if sys.platform == "win32":
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def _wait_for_expiry(file: Path, path: Path, holder: dict[str, Any]) -> None:
    """Wait until the lease has not been renewed for ``EXPIRES_AFTER`` seconds, by a clock of this machine alone."""
    renewed, start = _renewed(file), time.monotonic()
    if renewed is not None:
        print(f"{path} was last written by {_name(holder)}; waiting up to {EXPIRES_AFTER:.0f} s for a sign of it")
    while renewed is not None and time.monotonic() < start + EXPIRES_AFTER:
        time.sleep(min(1.0, EXPIRES_AFTER / 10))
        if _renewed(file) not in (renewed, None):
            raise FolderInUse(_in_use(path, holder))
        renewed = _renewed(file)


def _renewed(file: Path) -> float | None:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return None


def _is_same_file(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _renew(file: Path, stop: Event) -> None:
    while not stop.wait(RENEWED_EVERY):
        with suppress(OSError):
            os.utime(file)


def _name(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid')} on {holder.get('host')} (since {holder.get('since')})"


def _in_use(path: Path, holder: dict[str, Any]) -> str:
    return f"{path} is being written by {_name(holder)}; wait until it ends, or choose another folder"
