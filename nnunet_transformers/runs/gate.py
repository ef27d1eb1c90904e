"""The gate for recipes: LightningCLI imports and calls what a recipe names, so a file may name only parts of a run.

A recipe that somebody else may have written is checked when it is read. jsonargparse, which builds a run from it, also
imports classes from strings, from files that strings name, and from YAML inside strings; hence a recipe is checked
against what recipes hold, and not searched for what they must not. Arguments of the command line are the user's own.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import yaml
from lightning import LightningDataModule, LightningModule, Trainer

from .._declared import find_class

OWN = ("nnunet_transformers",)
KEY = re.compile(r"[^\W\d]\w*")
# Lightning's parts that take no functions or classes and send nothing
CALLBACKS = ("EarlyStopping", "LearningRateMonitor", "ModelCheckpoint", "ModelSummary", "Timer", "TQDMProgressBar")
LOGGERS = ("CSVLogger", "TensorBoardLogger")
LIGHTNING = re.compile(
    rf"((lightning\.pytorch|pytorch_lightning)\.(callbacks|loggers)\.(\w+\.)?)?({'|'.join((*CALLBACKS, *LOGGERS))})"
)
# entries of the trainer that hold classes, and the names that they also take
CLASSES = {
    "accelerator": r"auto|cpu|gpu|cuda|mps",
    "callbacks": None,
    "logger": None,
    "plugins": None,
    "profiler": r"simple|advanced|pytorch",
    "strategy": r"auto|ddp\w*|fsdp\w*",
}
PARTS: dict[str, type] = {"model": LightningModule, "data": LightningDataModule}
ENTRIES = ("base", *PARTS, "trainer", "ckpt_path", "seed_everything")
TRUST = "give --trust only if you know who made it"


class _Refusal(ValueError):
    """What a file names and where, without the file."""


def check_checkpoint(content: Mapping[str, Any], source: str) -> None:
    """Refuse a recipe that resumes from an address, which Lightning would unpickle, whoever made the recipe.

    Args:
        content: settings of the recipe.
        source: its name, for the message.

    Raises:
        ValueError: if it does.
    """
    path = content.get("ckpt_path")
    if isinstance(path, str) and ("://" in path or "::" in path):
        raise ValueError(f"{source} resumes from {path!r}; download the checkpoint, and give --ckpt_path FILE yourself")


def check_recipe(content: Mapping[str, Any], source: str) -> None:
    """Refuse a recipe that makes Lightning import or call anything but parts of a run.

    Args:
        content: settings of the recipe.
        source: its name, for the message.

    Raises:
        ValueError: if an entry names other code, or is not an entry of a recipe; the message names it.
    """
    try:
        for key, value in content.items():
            if key in PARTS:
                _check_part(key, value)
            elif key == "trainer":
                _check_trainer(value)
            elif key == "ckpt_path":
                if value not in (None, "last"):
                    raise _Refusal(f"{value!r} as {key}")
            elif key == "seed_everything":
                _check_values(value, key)
            # Lightning's own record of a run, config.yaml, states what it did not use as null
            elif value is not None:
                raise _Refusal(f"the entry {key!r}" + _closest(key, ENTRIES))
    except _Refusal as refusal:
        raise ValueError(
            f"{source} has {refusal}, which is part of neither this package nor an installed plugin, or no entry of a "
            f"recipe; {TRUST}"
        ) from refusal


def check_arguments(arguments: Mapping[str, Any], source: str) -> None:
    """Refuse arguments from a file, such as a plan, from which jsonargparse would build objects, not plain types.

    Args:
        arguments: arguments by name, of JSON's types.
        source: name of the file, for the message.

    Raises:
        ValueError: if one names a class, or holds YAML in a string; the message names it.
    """
    try:
        _check_values(arguments, "arguments")
    except _Refusal as refusal:
        raise ValueError(f"{source} has {refusal}, which is no plain value; correct or remove it") from refusal


def _check_values(value: Any, where: str) -> None:
    """Check that jsonargparse takes a value as it is."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key in ("class_path", "init_args", "dict_kwargs") or not KEY.fullmatch(str(key)):
                raise _Refusal(f"the entry {f'{where}.{key}'!r}")
            _check_values(inner, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check_values(inner, where)
    elif isinstance(value, str) and ("://" in value or "::" in value or _is_structured(value)):
        raise _Refusal(f"{value!r} in {where}")


def _is_structured(text: str) -> bool:
    """Tell whether a text is more than one value of YAML."""
    try:
        return isinstance(yaml.safe_load(text), (dict, list))
    except RecursionError:
        return True
    except (yaml.YAMLError, ValueError):  # the latter for a date such as 2024-13-01
        return False


def _check_part(part: str, value: Any) -> None:
    """Check method or data module."""
    path = _check_class(part, value)
    if path is not None and not _is_part(path, PARTS[part]):
        raise _Refusal(f"{path!r} as {part}")


def _check_trainer(value: Any) -> None:
    known = inspect.signature(Trainer).parameters
    if not isinstance(value, Mapping):
        raise _Refusal(f"{value!r} as trainer")
    for key, inner in value.items():
        if key not in known:
            raise _Refusal(f"the entry {f'trainer.{key}'!r}" + _closest(key, known))
        if key not in CLASSES:
            _check_values(inner, f"trainer.{key}")
            continue
        for entry in inner if isinstance(inner, list) else [inner]:
            _check_plugin(key, entry)


def _closest(key: object, known: Iterable[str]) -> str:
    close = get_close_matches(str(key), known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _check_plugin(key: str, value: Any) -> None:
    """Check a callback, logger or another part of the trainer."""
    names = CLASSES[key]
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        if names is None or not re.fullmatch(names, value):
            raise _Refusal(f"{value!r} in trainer.{key}")
        return
    path = _check_class(f"trainer.{key}", value)
    if path is None or not (LIGHTNING.fullmatch(path) or _is_part(path, object)):
        raise _Refusal(f"{path!r} in trainer.{key}")


def _check_class(where: str, value: Any) -> str | None:
    """Check a class and its arguments but for the class itself, whose import path is returned; None without one."""
    if not isinstance(value, Mapping) or not set(value) <= {"class_path", "init_args"}:
        raise _Refusal(f"{value!r} as {where}")
    if "init_args" in value:
        if not isinstance(value["init_args"], Mapping):
            raise _Refusal(f"{value['init_args']!r} as {where}.init_args")
        _check_values(value["init_args"], f"{where}.init_args")
    path = value.get("class_path")
    if path is not None and not isinstance(path, str):
        raise _Refusal(f"{path!r} as {where}")
    return path


def _is_part(path: str, base: type) -> bool:
    found = find_class(path, OWN)
    return found is not None and issubclass(found, base)
