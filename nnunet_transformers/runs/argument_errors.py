"""What jsonargparse says of an option, in one line: it writes a page on all types that it has tried."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from difflib import get_close_matches

from lightning import Trainer

from .options import SHORT
from .recipe import Recipe

PARTS = ("model", "data")
OTHERS = ("ckpt_path", "seed_everything")
LONGEST = 300
# types as people call them; None is no value to give
PLAIN = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "a text", "NoneType": ""}
HELP = "`recipes NAME` prints all settings of a recipe"


def in_one_line(message: str, recipe: Recipe, given: Sequence[str]) -> str:
    """Name the option that jsonargparse refuses, and the closest one or what it takes.

    Args:
        message: its message.
        recipe: of the run.
        given: arguments as the user wrote them.
    """
    if unknown := re.match(r"unrecognized arguments: (\S+)", message):
        return _unknown(unknown[1].partition("=")[0], recipe)
    if without := re.match(r"argument (\S+?):? expected (?:one|at least one) argument", message):
        return f"{_without_value(given) or without[1]} needs a value"
    keys = re.findall(r'(?:Parser key|Key) "([^"]+)"', message)
    if refused := re.search(r"Option '([^']+)' is not accepted|Key '([^']+)' is not expected", message):
        name = refused[1] or refused[2]
        part = next((key for key in keys if key in PARTS), "")
        return _unknown(f"--{part}.init_args.{name}" if part else f"--{name}", recipe)
    if keys:
        setting = f"{keys[0]}.init_args.{'.'.join(keys[1:])}" if keys[0] in PARTS and len(keys) > 1 else keys[-1]
        values = [value for value in re.findall(r"(?:Got|Given) value: (.*)", message) if "NestedArg(" not in value]
        taken = [t for t in map(_plain, re.findall(r"Expected an? (.*?)(?:\. Got value.*)?$", message, re.M)) if t]
        if values and taken:
            return f"{_as_given(setting, given)} takes {' or '.join(dict.fromkeys(taken))}, not {values[-1]!r}"
    text = " ".join(message.split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _unknown(option: str, recipe: Recipe) -> str:
    if not option.startswith("-"):
        return f"{option!r} belongs to no option; {HELP}"
    settings = [f"{part}.init_args.{name}" for part in PARTS for name in recipe.parameters(part)]
    settings += [f"trainer.{name}" for name in inspect.signature(Trainer).parameters] + [*OTHERS, *SHORT]
    close = get_close_matches(option, [f"--{setting}" for setting in settings], n=2)
    advice = f"did you mean {' or '.join(close)}?" if close else HELP
    return f"the recipe {recipe.name} has no option {option}; {advice}"


def _without_value(given: Sequence[str]) -> str | None:
    """The first option that is followed by another one, or by nothing."""
    for word, following in zip(given, [*given[1:], "--"], strict=True):
        if word.startswith("--") and "=" not in word and following.startswith("--"):
            return word
    return None


def _as_given(setting: str, given: Sequence[str]) -> str:
    """The option of a setting by the name that the user chose for it."""
    names = {word.partition("=")[0] for word in given}
    short = (f"--{name}" for name, settings in SHORT.items() if setting in settings)
    return next((name for name in short if name in names), f"--{setting}")


def _plain(kind: str) -> str:
    """The name of a type as people write it; empty for None, which is no value to give."""
    if kind.startswith(("path ", "dot import path ")):
        return "a file or class"
    plain = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", kind)
    plain = re.sub(r"typing\.Literal\[(.*)\]", r"\1", plain)
    return PLAIN.get(plain, plain)
