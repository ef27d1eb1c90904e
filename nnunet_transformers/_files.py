"""Small files written whole or not at all."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_json(content: Any, path: Path) -> None:
    """Write ``content`` as JSON.

    Raises:
        OSError: if it cannot be written; ``path`` is then as it was.
        ValueError: if the content holds NaN or infinity, which JSON does not know.
    """
    write_text(json.dumps(content, indent=4, allow_nan=False) + "\n", path)


def write_text(text: str, path: Path) -> None:
    """Write a text under a temporary name beside ``path``, then rename it.

    Raises:
        OSError: if it cannot be written; ``path`` is then as it was.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise
