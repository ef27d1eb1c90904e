"""The frame of the pages: one HTML file without scripts that loads nothing, for any width, readable by keyboard."""

from __future__ import annotations

import html
from collections.abc import Sequence

from ..._text import printable
from ..tables import Table, shown
from .palette import distinct_colours

# pages obey nothing but their own style, whatever the names of cases, labels and datasets hold
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --text: #222; --page: #fff; --note: #595959; --line: #ddd; --strong: #444; }
@media (prefers-color-scheme: dark) {
  :root { --text: #ddd; --page: #181818; --note: #a0a0a0; --line: #3a3a3a; --strong: #999; }
  .plot { filter: invert(.9) hue-rotate(180deg); }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 1000px;
  margin: 2em auto; padding: 0 1em; overflow-wrap: break-word; }
h1 { font-size: 1.5em; margin-bottom: 0; } h2 { font-size: 1.15em; margin-top: 2em; }
h3 { font-size: 1em; margin: 1.8em 0 0; } p.note { color: var(--note); margin-top: .2em; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; overflow-wrap: normal; }
th, td { padding: .25em .9em; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th.text, td.text, th:first-child, td:first-child { text-align: left; }
tr.mean td { font-weight: 600; border-top: 2px solid var(--strong); }
.facts td { white-space: normal; } .facts th { vertical-align: top; font-weight: 600; }
figure { margin: 1em 0; } img { max-width: 100%; } img.plot { width: 100%; max-width: 36em; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22em), 1fr)); gap: 0 1em; }
.key { display: flex; flex-wrap: wrap; gap: .1em 1.2em; padding: 0; list-style: none; }
.key span { display: inline-block; width: .9em; height: .9em; margin-right: .4em; vertical-align: -.1em;
  border: 1px solid #999; print-color-adjust: exact; }
"""


def escape(text: object) -> str:
    """Escape a text for HTML, in attributes too, with unprintable characters made visible."""
    return html.escape(printable(str(text)), quote=True)


def document(title: str, body: str, style: str = "") -> str:
    """Return a whole page.

    Args:
        title: plain text, which is escaped here.
        body: HTML.
        style: CSS besides that of all pages.
    """
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>
<style>{STYLE}{style}</style></head>
<body>
{body}
</body></html>
"""


def key_of(names: Sequence[str], colours: Sequence[str] = (), title: str = "") -> str:
    """Return the key of the colours, by default those of labels in this order."""
    colours = colours or distinct_colours(len(names))
    entries = (
        f"<li><span style='background:{colour}'></span>{escape(name)}</li>"
        for colour, name in zip(colours, names, strict=True)
    )
    head = f"<li>{escape(title)}:</li>" if title else ""
    return f"<ul class='key'>{head}{''.join(entries)}</ul>"


def scrolling(table: str, name: str) -> str:
    """Put a table into a frame that scrolls sideways where it is too wide, by the arrow keys as well."""
    return f"<div class='scroll' tabindex='0' role='region' aria-label='{escape(name)}'>{table}</div>"


def table_of(table: Table) -> str:
    """Return a table with its title as a heading; texts to the left, numbers to the right."""
    is_text = [bool(table.rows) and isinstance(cell, str) for cell in (table.rows or [table.headings])[0]]

    def row(cells: Sequence[str], tag: str) -> str:
        classes = (" class='text'" if text else "" for text in is_text)
        return "".join(f"<{tag}{c}>{escape(cell)}</{tag}>" for c, cell in zip(classes, cells, strict=True))

    rows = "".join(f"<tr>{row([shown(cell) for cell in cells], 'td')}</tr>" for cells in table.rows)
    content = f"<table><tr>{row(table.headings, 'th')}</tr>{rows}</table>"
    return f"<h2>{escape(table.title)}</h2>{scrolling(content, table.title)}"
