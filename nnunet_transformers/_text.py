"""Texts from files, such as names of images and labels, for a terminal and for Markdown; times and sizes in words."""

from __future__ import annotations

import re
from collections.abc import Iterable

MINUTE, HOUR = 60.0, 3600.0
# underscores inside a word, which stay; what begins or ends something in Markdown (GitHub's), or an HTML tag or entity
MARKDOWN = re.compile(r"([^\W_]_+(?=[^\W_]))|[\\`*_\[\]<>|#~$&]")


def printable(text: str) -> str:
    r"""Replace what a terminal would obey or hide, such as escape codes and marks of direction, by its code.

    Line breaks and tabs are kept, as messages have them.

    Examples:
        >>> printable("liver\x1b[2J")
        'liver\\x1b[2J'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def code(text: object) -> str:
    """Show a text as code in one line of Markdown; backticks, which would end it, are left out.

    Examples:
        >>> code("case`.nii.gz")
        '`case.nii.gz`'
    """
    return f"`{_one_line(text).replace('`', '')}`"


def markdown(text: object) -> str:
    r"""Escape a text for one line of Markdown, where it is then shown as it is.

    Examples:
        >>> print(markdown("liver\n# <b>Benign</b>"))
        liver \# \<b\>Benign\</b\>
    """
    return MARKDOWN.sub(lambda match: match[1] or f"\\{match[0]}", _one_line(text))


def in_words(seconds: float) -> str:
    """Write a time in the unit that suits it.

    Examples:
        >>> in_words(5), in_words(90), in_words(5400)
        ('5 s', '1.5 min', '1.5 h')
    """
    if seconds < MINUTE:
        return f"{seconds:.0f} s"
    return f"{seconds / MINUTE:.1f} min" if seconds < HOUR else f"{seconds / HOUR:.1f} h"


def times(sizes: Iterable[object]) -> str:
    """Write the sizes of axes.

    Examples:
        >>> times([96, 128, 96])
        '96x128x96'
    """
    return "x".join(map(str, sizes))


def _one_line(text: object) -> str:
    return printable(" ".join(str(text).split()))
