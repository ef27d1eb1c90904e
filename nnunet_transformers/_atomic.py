"""Write files and folders whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: str | os.PathLike[str], is_shared: bool = False) -> Iterator[Path]:
    """Yield a file beside ``path`` to write to, which replaces ``path`` at the end.

    An error removes the new file and leaves ``path`` unchanged.

    Args:
        path: file to write.
        is_shared: whether several processes may write it at the same time; each then writes a file of its own.
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
    """Yield a folder beside ``path`` to fill, which is renamed to ``path`` at the end; an error removes it.

    Args:
        path: folder that does not exist yet. An empty folder, which may be a mount, is filled in place and emptied
            after an error.
    """
    is_there = path.exists()
    filled = path if is_there else path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        filled.mkdir(parents=True, exist_ok=is_there)
        yield filled
        if not is_there:
            filled.rename(path)
    except BaseException:
        for content in [*filled.iterdir()] if is_there else [filled]:
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
