"""What the commands ``recipes`` print."""

from __future__ import annotations

from typing import Annotated

import typer

RecipeName = Annotated[str | None, typer.Argument(help="Recipe whose settings to print.")]


def describe_recipes(package: str, name: str | None) -> str:
    """List the recipes of a package with what they are for, or print all settings of one as YAML.

    Args:
        package: package with a folder ``recipes``, by its import name.
        name: recipe, by name or file.

    Raises:
        ValueError: if there is no such recipe.
    """
    import yaml

    from ..runs.recipe import read_recipe, recipe_purposes

    if name is not None:
        return yaml.safe_dump(read_recipe(name, package).content, sort_keys=False).rstrip()
    purposes = recipe_purposes(package)
    width = max(map(len, purposes))
    return "\n".join(f"{recipe:{width}}  {purpose}".rstrip() for recipe, purpose in purposes.items())
