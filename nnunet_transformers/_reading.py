"""Read files of any origin: whatever a reader raises on a damaged file becomes one line that names the file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LONGEST_REASON = 300


class RefusedError(ValueError):
    """Raised for a file that is not accepted. The message is complete, and ``reading`` passes it on unchanged."""


@contextmanager
def reading(path: str | os.PathLike[str], what: str, advice: str = "") -> Iterator[None]:
    """Translate everything that a reader raises on a damaged file.

    Readers raise IndexError, TypeError, AssertionError, struct.error, RecursionError and many others, so that a list of
    types would always lack one. Put nothing but the reader inside: an error of one's own code would be translated too.

    Args:
        path: file that is read.
        what: what it should be, with its article, such as "a checkpoint".
        advice: what to do, a clause after the reason.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if it is truncated or something else; ``RefusedError`` is passed on.

    Examples:
        >>> with reading("plans.json", "a plan"):
        ...     json.loads("{")
        Traceback (most recent call last):
        ValueError: plans.json is truncated or not a plan: Expecting property name enclosed in double quotes: ...
    """
    try:
        yield
    except RefusedError:
        raise
    except Exception as error:
        # of open() and its like; errors of reading and seeking have no file name
        if isinstance(error, OSError) and error.filename is not None:
            raise
        reason = f"{first_line(error)}; {advice}" if advice else first_line(error)
        raise ValueError(f"{path} is truncated or not {what}: {reason}") from error


def read_json(path: str | os.PathLike[str], what: str = "a JSON file", advice: str = "") -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path, what, advice: as ``reading`` takes them.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if it is truncated, is no JSON or holds something else.
    """
    with reading(path, what, advice):
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}, not an object")
    return content


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none; unprintable characters are escaped.

    A KeyError's message is only the key, so its type comes first.
    """
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if not line or isinstance(error, (KeyError, StopIteration)):
        line = f"{type(error).__name__}: {line}".rstrip(": ")
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]}..."
