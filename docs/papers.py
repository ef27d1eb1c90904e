"""Write papers.md from papers.yaml, presets, recipes and trainers: `make papers`, or `python docs/papers.py`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from lightning import Trainer

from nnunet_transformers.architectures import get_network
from nnunet_transformers.discovery import TRAINERS
from nnunet_transformers.plans.presets import load_presets
from nnunet_transformers.runs.recipe import read_recipe
from nnunet_transformers.weights.timm_encoder import tagged

FOLDER = Path(__file__).parent
DATA, PAGE = FOLDER / "papers.yaml", FOLDER / "papers.md"
SOURCE = re.compile(r"(preset|pretraining|classification|detection|trainer|network) (\S+): (\S+)")
TAG = re.compile(r"timm tag (\w+)")
PRESETS = "preset "
HEAD = """# The papers, value by value

What each experiment of a paper is made with, here and by its authors. Those that a command writes as a plan:

    nnunet-transformers preset --list

Of each paper: what it states, what its authors' release does, what happens here, and why where that is neither. "-" is
what a source does not state. Values with a key are read from the [preset](presets.md), the recipe (`nnunet-transformers
pretrain recipes`, `classify recipes`, `detect recipes`) or the trainer that has them. Below stands every table of
experiments: the command that runs a row again, what it needs, and what there is not. `make papers` writes this page.
"""


def read() -> list[dict[str, Any]]:
    """Read the papers."""
    papers: list[dict[str, Any]] = yaml.safe_load(DATA.read_text(encoding="utf-8"))
    return papers


@cache
def recipe(package: str, name: str) -> Any:
    return read_recipe(name, f"nnunet_transformers.{package}")


def resolve(here: Any) -> Any:
    """Return the value that "here" stands for.

    Raises:
        KeyError: if nothing has that key.
    """
    if tag := TAG.fullmatch(str(here)):
        return f"`{tagged(tag[1])}`"
    if not (found := SOURCE.fullmatch(str(here))):
        return here
    kind, name, key = found.groups()
    if kind == "preset":
        preset = load_presets()[name]
        return look_up({**vars(preset), "training": preset.training}, key)
    if kind == "trainer":
        return getattr(getattr(import_module(TRAINERS[name]), name), key)
    if kind == "network":
        return get_network(name).all_arguments(3)[key]
    return of_recipe(kind, name, key)


def of_recipe(package: str, name: str, key: str) -> Any:
    """Return a setting of a recipe, or the default of the class that takes it."""
    found = recipe(package, name)
    if key == "patience":
        (stopping,) = (c for c in found.content["trainer"]["callbacks"] if "EarlyStopping" in c["class_path"])
        return stopping["init_args"]["patience"]
    try:
        return look_up(found.content, key)
    except KeyError:
        part, *_, argument = key.split(".")
        owner = Trainer if part == "trainer" else found.part(part)
        default = inspect.signature(owner).parameters[argument].default
        if default is inspect.Parameter.empty:
            raise
        # Lightning's own default
        return 1 if argument == "accumulate_grad_batches" else default


def look_up(content: Mapping[str, Any], key: str) -> Any:
    value: Any = content
    for part in key.split("."):
        value = value[part]
    # YAML 1.1 reads 1e-4 as text
    return float(value) if isinstance(value, str) and re.fullmatch(r"\d[\d.]*e-?\d+", value) else value


def text(value: Any) -> str:
    """Return a value as the page shows it; lists as "a x b" if whole, else as "a to b"."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return f"{value:g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        parts = [text(v) for v in value]
        if not all(isinstance(v, (int, float)) for v in value):
            return ", ".join(parts)
        is_size = all(isinstance(v, int) for v in value) and all(v > 0 for v in value) and len({*value}) < len(value)
        return " x ".join(parts) if is_size else " to ".join(parts)
    return " ".join(str(value).split())


def presets_of(row: Mapping[str, Any]) -> list[str]:
    """Return the presets of a table that its patterns match."""
    if not row["rerun"].startswith(PRESETS):
        return []
    patterns = row["rerun"].removeprefix(PRESETS).split(", ")
    return [name for name in load_presets() if any(fnmatchcase(name, pattern) for pattern in patterns)]


def command(row: Mapping[str, Any]) -> str:
    names = presets_of(row)
    if not names:
        return text(row["rerun"])
    more = f"; {len(names)} in all: `{row['rerun'].removeprefix(PRESETS)}`" if len(names) > 3 else ""
    shown = names[:1] if more else names
    return ", ".join(f"`nnunet-transformers preset {name} -d ID`" for name in shown) + more


def page() -> str:
    """Return the page."""
    lines = [HEAD]
    for paper in read():
        lines += [f"## {paper['name']}", "", f"{text(paper['source'])}.", ""]
        lines += ["| | paper | release | here | why |", "|---|---|---|---|---|"]
        for row in paper["values"]:
            cells = [row["what"], row["paper"], row["release"], resolve(row["here"]), row.get("why", "")]
            lines.append("| " + " | ".join(map(text, cells)) + " |")
        lines += ["", "| table | run again by | needs | not here |", "|---|---|---|---|"]
        for row in paper["tables"]:
            lines.append(f"| {row['what']} | {command(row)} | {text(row['needs'])} | {text(row['lacks'])} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
