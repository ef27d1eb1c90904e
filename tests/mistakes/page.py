"""Write docs/mistakes.md: `python -m tests.mistakes.page`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.conftest import light_nnunet
from tests.mistakes.world import Mistake, Said, build, read, run

PAGE = Path(__file__).parents[2] / "docs/mistakes.md"
HEAD = """# Ordinary mistakes, and what the commands say

Each command here is wrong. It is run as it stands, and its message is copied, in a folder `/home/me` with a dataset
that is planned but not preprocessed, its prepared images (`prepared`), an encoder, and a model of which one fold is
trained, on a machine without a GPU. [errors](errors.md) lists messages with their causes. A test runs all of this page
again; `python -m tests.mistakes.page` writes it, from `tests/mistakes/mistakes.yaml`.
"""


def lines(said: Mapping[Mistake, str]) -> Iterator[str]:
    """Yield the lines of the page.

    Args:
        said: the line of each mistake's message.
    """
    yield HEAD.rstrip()
    for group, mistakes in groupby(said, key=lambda mistake: mistake.group):
        yield f"\n## {group}"
        for mistake in mistakes:
            yield f"\n{mistake.mistake}\n"
            yield from (f"    {line}" for line in (*before(mistake), f"$ {mistake.command}", said[mistake]))


def before(mistake: Mistake) -> Iterator[str]:
    """Yield what is done before the command of a mistake."""
    yield from (f"$ unset {name}" for name in mistake.unset)
    yield from (f"$ export {name}={value}" for name, value in mistake.set.items())
    yield from (f"$ printf {text!r} > {name}" for name, text in mistake.write.items())


def write() -> None:
    """Make all mistakes and write the page."""
    with TemporaryDirectory() as folder, light_nnunet():
        build(Path(folder))
        said: dict[Mistake, Said] = {mistake: run(Path(folder), mistake) for mistake in read()}
    PAGE.write_text("\n".join(lines({m: s.line for m, s in said.items()})) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
