"""Short names of the settings that people change, and the folder of a run that is given none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .recipe import Recipe

# short name, and the settings that it can stand for: the first that the recipe's method or data has
SHORT = {
    "folder": ("data.init_args.folder", "data.init_args.folder_3d", "data.init_args.folder_2d"),
    "network": ("model.init_args.network",),
    "epochs": ("trainer.max_epochs",),
    "batch-size": ("data.init_args.batch_size",),
    "lr": ("model.init_args.lr",),
    "workers": ("data.init_args.num_workers",),
    "output": ("trainer.default_root_dir",),
}
OUTPUT = SHORT["output"][0]


def long_names(recipe: Recipe, arguments: Sequence[str]) -> list[str]:
    """Replace short names by the settings that they stand for.

    Args:
        recipe: to which the arguments belong.
        arguments: of the command line; ``--epochs 50`` becomes ``--trainer.max_epochs 50``.

    Raises:
        ValueError: if the recipe has no such setting.
    """
    return [_long_name(recipe, word) for word in arguments]


def _long_name(recipe: Recipe, word: str) -> str:
    name, equals, value = word.removeprefix("--").partition("=")
    if not word.startswith("--") or name not in SHORT:
        return word
    for setting in SHORT[name]:
        part, _, argument = setting.partition(".init_args.")
        if not argument or argument in recipe.parameters(part):
            return f"--{setting}{equals}{value}"
    raise ValueError(f"--{name}: the recipe {recipe.name} has no {' or '.join(SHORT[name])}")


def given(recipe: Recipe, arguments: Sequence[str], setting: str) -> Any:
    """The value of a setting: the last of the arguments, in long names, or else the recipe's; None if there is none."""
    value: Any = recipe.content
    for key in setting.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, text = word.partition("=")
        if name == f"--{setting}":
            value = text if equals else following
    return value


def with_folder(recipe: Recipe, arguments: Sequence[str], kind: str, planned: str | None = None) -> list[str]:
    """Give a run a folder of its own in nnU-Net's results, unless it has one.

    Args:
        recipe: of the run.
        arguments: in long names.
        kind: folder of this kind of runs, such as ``pretraining``.
        planned: dataset, plan and configuration that the run follows, as parts of a path.

    Returns:
        the arguments, with ``$nnUNet_results/KIND/IMAGES/RECIPE``, where IMAGES is the name of the prepared folder, or
        what is planned.

    Raises:
        ValueError: if the folder is needed and nnUNet_results is not set.
    """
    if given(recipe, arguments, OUTPUT) is not None:
        return list(arguments)
    results = os.environ.get("nnUNet_results")
    if not results:
        raise ValueError("where to write is not known: export nnUNet_results, or give --output FOLDER")
    sources = (given(recipe, arguments, setting) for setting in (*SHORT["folder"], "data.init_args.table"))
    source = next((Path(os.path.abspath(str(source))) for source in sources if source), Path())
    images = source.stem if source.is_file() else source.name  # a folder's name may have a dot
    folder = Path(results).absolute() / kind / (planned or images) / Path(recipe.name).stem
    return [*arguments, f"--{OUTPUT}={folder}"]
