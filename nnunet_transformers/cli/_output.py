"""Lines for the terminal: all that commands print goes through here, as it may hold texts from files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from .._text import printable

TABLE_WIDTH = 130


def echo(message: object = "", error: bool = False, **style: Any) -> None:
    """Print a message, with what a terminal would obey made visible.

    Args:
        message: text of one line or several, or an object that is printed as such.
        error: print to stderr.
        style: style of ``typer.style``, such as ``fg`` and ``bold``.
    """
    typer.secho(printable(str(message)), err=error, **style)


def echo_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> None:
    """Print a table, at least 130 columns wide, as a narrow terminal wraps lines and would cut cells.

    Args:
        title: one line.
        headings: of the columns.
        rows: cells; a line break is kept.
        text_columns: number of columns that are aligned to the left; the others hold numbers.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title)
    for number, heading in enumerate(headings):
        is_text = number < text_columns
        table.add_column(escape(printable(heading)), justify="left" if is_text else "right", no_wrap=not is_text)
    for row in rows:
        table.add_row(*(escape(printable(cell)) for cell in row))
    Console(width=max(TABLE_WIDTH, Console().width)).print(table)
