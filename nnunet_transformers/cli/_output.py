"""Lines for the terminal: all that commands print goes through here, as it may hold texts from files."""

from __future__ import annotations

from typing import Any

import typer

from .._text import printable


def echo(message: object = "", error: bool = False, **style: Any) -> None:
    """Print a message, with what a terminal would obey made visible.

    Args:
        message: text of one line or several, or an object that is printed as such.
        error: print to stderr.
        style: style of ``typer.style``, such as ``fg`` and ``bold``.
    """
    typer.secho(printable(str(message)), err=error, **style)
