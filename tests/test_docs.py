"""Links and commands in the documentation are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from nnunet_transformers import cli
from nnunet_transformers.discovery import CLASSES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks/results").glob("*.md"))]
COMMAND = re.compile(r"nnunet-transformers ((?:[^`\n]|\\\n)+)")


def heading_anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in heading_anchors(file), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands(page):
    root = typer.main.get_command(cli.app)
    for given in COMMAND.findall(page.read_text()):
        command = root
        words = [w for w in re.split(r"[\s|]+", given.replace("\\\n", " ")) if w]
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        if command is root:
            assert not re.match(r"[a-z]+-?[a-z]* (--|-[a-z] )", given), f"{page.name}: no command in {given!r}"
            continue
        known = {option for parameter in command.params for option in parameter.opts}
        for word in words:
            option = word.split("=")[0]
            # what is Lightning's has a dot in its name
            if re.fullmatch(r"--?[a-z][\w-]*", option) and option != "--ckpt_path":
                assert option in known, f"{page.name}: {command.name} has no {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_trainers_and_planners(page):
    stock = {"nnUNetTrainer", "nnUNetPlannerResEncM", "nnUNetPlannerResEncL", "nnUNetTrainerMine"}
    for name in re.findall(r"\bnnUNet(?:Trainer|Planner)\w*", page.read_text()):
        # of a folder of results, TRAINER__PLANS__CONFIGURATION, the first part
        assert name.split("__")[0] in CLASSES or name in stock, f"{page.name} names {name}"
