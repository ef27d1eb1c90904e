"""Recipes: YAML files that name a method, its data and every value of a paper's table."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

BASE = "base"


@dataclass(frozen=True)
class Recipe:
    """What a recipe says.

    Attributes:
        name: of the recipe, or its file.
        content: settings of LightningCLI.
    """

    name: str
    content: dict[str, Any]

    def part(self, part: str) -> type:
        """Its method ("model") or its data.

        Raises:
            ValueError: if it names none that can be imported.
        """
        try:
            module, _, name = self.content[part]["class_path"].rpartition(".")
            part_class: type = getattr(import_module(module), name)
            return part_class
        except (KeyError, TypeError, ValueError, ImportError, AttributeError) as error:
            raise ValueError(f"{self.name} names no class in {part}.class_path ({error!r})") from error

    def parameters(self, part: str) -> list[str]:
        """Names of what its method or data take."""
        return list(inspect.signature(self.part(part)).parameters)


def list_recipes(package: str) -> list[str]:
    """Names of the recipes in a package's folder ``recipes``."""
    return sorted(p.name.removesuffix(".yaml") for p in files(package).joinpath("recipes").iterdir())


def read_recipe(name: str, package: str) -> Recipe:
    """Read a recipe.

    One that says ``base: another`` has what the other has, but for what it says itself.

    Args:
        name: of a recipe, or a file of one's own.
        package: that has recipes.

    Raises:
        ValueError: if it is neither, and names the closest recipes; or if the file holds no settings.
    """
    known = list_recipes(package)
    if Path(name).is_file():
        text = Path(name).read_text(encoding="utf-8")
    elif name in known:
        text = files(package).joinpath("recipes").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    else:
        close = get_close_matches(name, known, n=2) or known
        raise ValueError(f"no recipe and no file {name!r}; there are {', '.join(close)}")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{name} holds no settings; the recipes of the package ({', '.join(known)}) are examples")
    base = content.pop(BASE, None)
    return Recipe(name, content if base is None else _merge(read_recipe(base, package).content, content))


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged
