"""Tables as Markdown, CSV and LaTeX, from names that may hold anything."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .._text import markdown, printable

Cell = str | int | float

ENDINGS = (".md", ".csv", ".tex")
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
# what a spreadsheet takes for a formula
FORMULA = re.compile(r"[=+\-@]")


@dataclass(frozen=True)
class Table:
    """Table of texts and numbers.

    Attributes:
        title: one line.
        headings: of the columns.
        rows: cells; NaN is shown as "-".
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def texts(self) -> list[list[str]]:
        """Return the cells as they are shown, numbers with three decimals."""
        return [[shown(cell) for cell in row] for row in self.rows]

    def as_markdown(self) -> str:
        """Return a heading and a table; texts are escaped."""
        lines = [self.headings, ["---"] * len(self.headings)]
        texts = [[markdown(text) for text in row] for row in (self.headings, *self.texts())]
        lines = [texts[0], lines[1], *texts[1:]]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"## {markdown(self.title)}\n\n{table}\n"

    def as_csv(self) -> str:
        """Return all digits of numbers; a text that a spreadsheet would compute gets an apostrophe before it."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(self.headings)
        for row in self.rows:
            writer.writerow([_csv(cell) for cell in row])
        return buffer.getvalue()

    def as_latex(self) -> str:
        """Return a ``tabular`` with booktabs' rules; texts are escaped."""
        columns = "".join("l" if isinstance(cell, str) else "r" for cell in (self.rows or [self.headings])[0])
        lines = [" & ".join(map(_latex, row)) + r" \\" for row in (self.headings, *self.texts())]
        body = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
        title = f"% {printable(' '.join(self.title.split()))}"
        return f"{title}\n\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}\n"

    def as_text(self, path: Path) -> str:
        """Return the form that the ending of a file names.

        Raises:
            ValueError: if it is none of ``.md``, ``.csv`` and ``.tex``.
        """
        forms = {".md": self.as_markdown, ".csv": self.as_csv, ".tex": self.as_latex}
        if path.suffix.lower() not in forms:
            raise ValueError(f"{path} does not end in {', '.join(forms)}, the forms of a table")
        return forms[path.suffix.lower()]()


def shown(cell: Cell) -> str:
    """Show a number with three decimals, NaN as "-", and texts as they are."""
    if not isinstance(cell, float):
        return str(cell)
    if math.isnan(cell):
        return "-"
    return f"{cell:.1e}" if 0 < abs(cell) < 0.0005 else f"{cell:.3f}"


def _csv(cell: Cell) -> str:
    if isinstance(cell, str):
        return f"'{cell}" if FORMULA.match(cell) else cell
    return "" if isinstance(cell, float) and math.isnan(cell) else repr(cell)


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in printable(" ".join(text.split())))
