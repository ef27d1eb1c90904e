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
def replacing(path: str | os.PathLike[str], is_shared: bool = False) -> Iterator[Path]:
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
        path: folder that is not there; or an empty one, which is filled as it is, as it may be a mount, and emptied by
            an error.
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
