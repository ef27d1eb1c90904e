"""Files below a folder that may be images, and why others are left alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path


def walk(folder: Path, left_out: Callable[[str], str] = lambda path: "") -> Iterator[tuple[str, str]]:
    """Yield each file below a folder, in order, with the reason to ignore it.

    Links to folders are followed, but not into a folder that contains them.

    Args:
        folder: folder to begin with.
        left_out: returns why a subfolder is not looked into, or nothing.

    Yields:
        path relative to the folder, with forward slashes, and the reason; empty for files to look at. Of a subfolder
        that is not looked into, its own.
    """
    seen = {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, followlinks=True):
        inner = []
        for name in sorted(folders):
            path = os.path.join(parent, name)
            real = os.path.realpath(path)
            if real in seen:
                yield os.path.relpath(path, folder), "a link to a folder that is read already"
            elif reason := left_out(path):
                yield os.path.relpath(path, folder), reason
            elif not os.access(path, os.R_OK | os.X_OK):
                yield os.path.relpath(path, folder), "a folder without permission to read"
            else:
                seen.add(real)
                inner.append(name)
        folders[:] = inner
        for name in sorted(names):
            path = os.path.join(parent, name)
            relative = os.path.relpath(path, folder).replace(os.sep, "/")
            is_hidden = any(part.startswith(".") for part in relative.split("/"))
            yield relative, "hidden" if is_hidden else _reason(Path(path))


def _reason(path: Path) -> str:
    """Why a file is not looked at; empty if it is."""
    if not path.exists():
        return "a link to nothing"
    if not path.is_file():
        return "no regular file"
    return ""
