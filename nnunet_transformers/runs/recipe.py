"""Recipes: YAML files with the settings of a method, its data and the trainer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.resources import files
from itertools import takewhile
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import yaml

from .._plugins import LOAD_ERRORS, declarations, declared
from .._reading import reading
from .gate import check_checkpoint, check_recipe

if TYPE_CHECKING:
    from importlib.abc import Traversable

BASE = "base"
ENDING = ".yaml"


@dataclass(frozen=True)
class Recipe:
    """Content of a recipe.

    Attributes:
        name: name of the recipe, or its file.
        content: settings of LightningCLI: ``seed_everything``, ``model``, ``data``, ``trainer``.
    """

    name: str
    content: dict[str, Any]

    def part(self, part: str) -> type:
        """Import the class of the method ("model") or of the data module ("data").

        Raises:
            ValueError: if the recipe names no class that can be imported.
        """
        try:
            module, _, name = self.content[part]["class_path"].rpartition(".")
            part_class: type = getattr(import_module(module), name)
            return part_class
        except (KeyError, TypeError, ValueError, ImportError, AttributeError) as error:
            raise ValueError(f"{self.name} names no class in {part}.class_path ({error!r})") from error

    def parameters(self, part: str) -> list[str]:
        """Return the names of the arguments of the method ("model") or of the data module ("data")."""
        return list(inspect.signature(self.part(part)).parameters)


def list_recipes(package: str) -> list[str]:
    """Return the names of the recipes in a package's folder ``recipes``, and of those that other packages declare."""
    return sorted(_recipe_files(package))


def recipe_purposes(package: str) -> dict[str, str]:
    """Return the first sentence of each recipe's first comment, by the recipe's name.

    Args:
        package: package with a folder ``recipes``, by its import name.
    """
    return {
        name: _first_sentence(file.read_text(encoding="utf-8")) for name, file in sorted(_recipe_files(package).items())
    }


def _first_sentence(text: str) -> str:
    comment = takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.strip("# ") for line in comment).partition(". ")[0].removesuffix(".")


def _recipe_files(package: str) -> dict[str, Traversable]:
    """Find the recipes by name: the package's own, then those of installed packages for the command of its name."""
    found = recipes_in(f"{package}.recipes")
    for declaration in declarations():
        if (declaration.kind, declaration.name) == ("recipes", package.rpartition(".")[2]):
            with suppress(*LOAD_ERRORS):  # doctor names it
                found = {**recipes_in(declaration.value), **found}
    return found


def recipes_in(folder: str) -> dict[str, Traversable]:
    """Find the recipes in a folder that is given as an import path; raises what importing it raises."""
    package, _, name = folder.rpartition(".")
    entries = (files(package).joinpath(name) if package else files(name)).iterdir()
    return {file.name.removesuffix(ENDING): file for file in entries if file.name.endswith(ENDING)}


def _with_method(content: dict[str, Any]) -> dict[str, Any]:
    """Replace the name of a method that an installed package declares by the path of its class."""
    model = content.get("model")
    path = model.get("class_path") if isinstance(model, Mapping) else None
    if not isinstance(path, str) or path not in (methods := declared("pretraining_methods")):
        return content
    return {**content, "model": {**content["model"], "class_path": methods[path].path}}


def read_recipe(name: str, package: str, trust: bool = False, derived: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe.

    A recipe with an entry ``base: OTHER`` starts from the settings of the recipe OTHER and overrides those that it
    specifies itself.

    Args:
        name: name of a recipe, of this package or of an installed plugin, or path of a YAML file.
        package: package with a folder ``recipes``, by its import name.
        trust: take a file that names any code, see ``check_recipe``.
        derived: recipes that start from this one.

    Raises:
        ValueError: if there is no such recipe and no such file (the message names the closest recipes), or the file
            is not YAML, holds no settings or names other code than this package's and that of installed plugins.

    Examples:
        >>> read_recipe("alice_views", "nnunet_transformers.pretraining").content["model"]["init_args"]["losses"]
        ['views']
    """
    known = dict(sorted(_recipe_files(package).items()))
    is_file = "\0" not in name and Path(name).is_file()
    if is_file:
        text = Path(name).read_text(encoding="utf-8", errors="replace")
    elif name in known:
        text = known[name].read_text(encoding="utf-8")
    else:
        close = get_close_matches(name, known, n=2) or known
        raise ValueError(f"no recipe and no file {name!r}; there are {', '.join(close)}")
    with reading(name, "a recipe in YAML"):
        content = yaml.safe_load(text)
        has_aliases = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text))
    if not isinstance(content, dict):
        raise ValueError(f"{name} holds no settings; the recipes of the package ({', '.join(known)}) are examples")
    base = content.pop(BASE, None)
    if not isinstance(base, (str, NoneType)) or base in (*derived, name):
        raise ValueError(f"{name} has {base!r} as {BASE}, which is no recipe that it can start from")
    content = _with_method(content)
    check_checkpoint(content, name)
    if is_file and not trust:
        if has_aliases:
            raise ValueError(f"{name} has YAML's aliases (*), which can stand for endless settings; write them out")
        check_recipe(content, name)
    return Recipe(
        name, content if base is None else _merge(read_recipe(base, package, trust, (*derived, name)).content, content)
    )


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged
