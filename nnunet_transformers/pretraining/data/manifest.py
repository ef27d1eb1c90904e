"""The manifest of a prepared folder: one line of JSON for each image, appended when the image is stored or skipped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..._reading import reading

MANIFEST = "manifest.jsonl"


def read_lines(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a folder's manifest; none if there is no manifest.

    A last line without an end, which a killed process has left, is not there.

    Raises:
        ValueError: if another line is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            with reading(path, f"a manifest of prepared images in line {number}", "prepare them again"):
                content = json.loads(line)
                if not isinstance(content, dict):
                    raise TypeError(f"it holds a {type(content).__name__}, not an object")
            yield content


class Manifest:
    """Append lines to the manifest of a folder, which is made with the first of them.

    Lines are kept until ``commit``, so that what they describe can be written to the disk first.

    Args:
        folder: folder that is or will be prepared.

    Examples:
        >>> manifest = Manifest(Path("prepared"))
        >>> manifest.add({"stored": "case_0", "shape": [1, 40, 50, 60]})
        >>> manifest.commit()
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._waiting: list[dict[str, Any]] = []
        self._is_whole = False

    def add(self, line: dict[str, Any]) -> None:
        """Add a line."""
        self._waiting.append(line)

    def commit(self) -> None:
        """Write the added lines to the disk; after an error, such as a full disk, the next call writes them again.

        Raises:
            OSError: if they cannot be written.
        """
        if not self._waiting:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / MANIFEST
        if not self._is_whole:
            _remove_torn_line(path)
        self._is_whole = False  # until all is written
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in self._waiting)
        with open(path, "ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        self._is_whole = True
        self._waiting.clear()


def _remove_torn_line(path: Path) -> None:
    """Remove what a killed process, or one whose disk was full, has written of a line."""
    if not path.is_file() or not (size := path.stat().st_size):
        return
    with open(path, "rb+") as file:
        start = size
        while start > 0:
            start = max(0, start - 2**16)
            file.seek(start)
            end = file.read(2**16).rfind(b"\n")
            if end >= 0:
                file.truncate(start + end + 1)
                return
        file.truncate(0)
