"""Every ordinary mistake ends with one line that says what to do, and the page of them is what the commands say."""

from __future__ import annotations

import re
from importlib.metadata import version

import pytest
from packaging.version import Version

from .page import PAGE, lines
from .world import Mistake, build, read, run

MISTAKES = read()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistakes")
    build(folder)
    return folder


@pytest.fixture(scope="module")
def said() -> dict[Mistake, str]:
    """The line of each mistake, once it was made."""
    return {}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.mistake.rstrip("."))
def test_a_mistake_is_one_line(mistake, world, said):
    result = run(world, mistake)
    said[mistake] = result.line
    assert result.code == 1, result.errors
    assert mistake.says in result.line
    assert result.line.startswith(("error: ", "nnunet-transformers: "))
    assert "Traceback" not in result.errors
    assert len(re.findall("^(?:error|usage):", result.errors, flags=re.MULTILINE | re.IGNORECASE)) <= 1
    # nnU-Net's trainer begins its log before it looks at the data
    assert mistake.command.startswith("nnUNetv2_train") or not result.left, "a mistake leaves files"


def test_there_are_many():
    assert len(MISTAKES) >= 100
    assert len({mistake.command for mistake in MISTAKES}) > len(MISTAKES) - 5


@pytest.mark.skipif(Version(version("typer")) < Version("0.29"), reason="older versions have other words")
def test_the_page_is_what_they_say(world, said):
    # run alone, or after only some of the tests above, it makes the others
    every = {mistake: said[mistake] if mistake in said else run(world, mistake).line for mistake in MISTAKES}
    assert PAGE.read_text(encoding="utf-8").splitlines() == "\n".join(lines(every)).splitlines(), (
        "write the page again: python -m tests.mistakes.page"
    )
