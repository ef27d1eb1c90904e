"""Recipes: reading, base recipes, error messages."""

from __future__ import annotations

import pytest

from nnunet_transformers import classification, pretraining
from nnunet_transformers.pretraining.methods.alice import LOSSES, Alice
from nnunet_transformers.runs.recipe import list_recipes, read_recipe

PACKAGES = (pretraining.__name__, classification.__name__)
RECIPES = [(name, package) for package in PACKAGES for name in list_recipes(package)]


@pytest.mark.parametrize(("name", "package"), RECIPES)
def test_every_recipe_names_existing_arguments(name, package):
    recipe = read_recipe(name, package)
    for part in ("model", "data"):
        assert set(recipe.content[part].get("init_args", {})) <= set(recipe.parameters(part))


def test_base():
    base, ablation = (read_recipe(name, PACKAGES[0]) for name in ("alice", "alice_views"))
    assert ablation.part("model") is Alice
    changed = ablation.content["model"].pop("init_args"), base.content["model"].pop("init_args")
    assert ablation.content == base.content
    assert {key for key, value in changed[0].items() if changed[1][key] != value} == {"losses"}
    assert (changed[0]["losses"], changed[1]["losses"]) == (["views"], list(LOSSES))


def test_own_file(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("base: alice\nmodel: {init_args: {lr: 3e-4}}\n")
    recipe = read_recipe(str(own), PACKAGES[0])
    assert (recipe.name, recipe.part("model")) == (str(own), Alice)
    assert float(recipe.content["model"]["init_args"]["lr"]) == 3e-4


def test_mistakes(tmp_path):
    with pytest.raises(ValueError, match="there are qt_ssl_ct"):
        read_recipe("qt_ssl_cd", PACKAGES[0])
    own = tmp_path / "mine.yaml"
    for text, message in (
        ("", "holds no settings"),
        ("a: [", "is truncated or not a recipe in YAML"),
        ("base: alise", "no recipe and no file"),
        ('base: "a\\0"', "no recipe and no file"),
        ("base: [a]", "which is no recipe that it can start from"),
        (f"base: {own}", "which is no recipe that it can start from"),
    ):
        own.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_recipe(str(own), PACKAGES[0])
    own.write_text("model: {class_path: none.Such}\n")
    with pytest.raises(ValueError, match=r"names no class in model.class_path"):
        read_recipe(str(own), PACKAGES[0], trust=True).part("model")
