"""Texts from files, such as names of images and labels, for a terminal and for Markdown."""

from __future__ import annotations

import re

# what begins or ends something in Markdown (GitHub's), or an HTML tag or entity
MARKDOWN = re.compile(r"[\\`*_\[\]<>|#~$&]")


def printable(text: str) -> str:
    r"""Replace what a terminal would obey or hide, such as escape codes and marks of direction, by its code.

    Line breaks and tabs are kept, as messages have them.

    Examples:
        >>> printable("liver\x1b[2J")
        'liver\\x1b[2J'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def markdown(text: object) -> str:
    r"""Escape a text for one line of Markdown, where it is then shown as it is.

    Examples:
        >>> print(markdown("liver\n# <b>Benign</b>"))
        liver \# \<b\>Benign\</b\>
    """
    return MARKDOWN.sub(r"\\\g<0>", printable(" ".join(str(text).split())))
