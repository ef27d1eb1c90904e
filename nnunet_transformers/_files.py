"""Files and folders written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: str | os.PathLike, is_shared: bool = False) -> Iterator[Path]:
    """A file beside ``path`` to write to, which takes its place at the end; an error removes it and leaves ``path``.

    Args:
        path: file to write.
        is_shared: several processes may write it at the same time; each then has a file of its own.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial" if is_shared else f"{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` to fill, which takes its name at the end; an error removes it.

    Args:
        path: folder that is not there, or is empty.
    """
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        if path.exists():
            path.rmdir()
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_json(content: Any, path: Path) -> None:
    """Write ``content`` as JSON.

    Raises:
        OSError: if it cannot be written; ``path`` is then as it was.
        ValueError: if the content holds NaN or infinity, which JSON does not know.
    """
    write_text(json.dumps(content, indent=4, allow_nan=False) + "\n", path)


def write_text(text: str, path: Path) -> None:
    """Write a text.

    Raises:
        OSError: if it cannot be written; ``path`` is then as it was.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
