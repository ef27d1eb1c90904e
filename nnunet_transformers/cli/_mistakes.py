"""What a user's mistake is told in: one line, with the closest of what there is."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

import typer
from typer.core import TyperGroup

PROGRAM = "nnunet-transformers"
# click's or typer's own, depending on typer's version
UsageError: Any = typer.BadParameter.__base__
# what people look for here and nnU-Net has
OF_NNUNET = {
    "train": "nnUNetv2_train",
    "plan": "nnUNetv2_plan_experiment",
    "preprocess": "nnUNetv2_preprocess",
    "plan-and-preprocess": "nnUNetv2_plan_and_preprocess",
    "ensemble": "nnUNetv2_ensemble",
}


class Interrupted(Exception):
    """Raised for Ctrl-C, which typer would end without a word; the message says how to go on, if there is a way."""


class Commands(TyperGroup):
    """All commands. Ctrl-C in one of them becomes ``Interrupted``."""

    # Any: typer's context, which is click's or typer's own depending on its version
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted(str(error)) from error
        except UsageError as error:
            if error.ctx is None:  # of an option without its value
                error.ctx = _context(ctx, sys.argv[1:])
            raise


def _context(context: Any, words: Sequence[str]) -> Any:
    """The context of the command that these words name."""
    for word in words:
        if (command := getattr(context.command, "commands", {}).get(word)) is None:
            break
        context = type(context)(command, parent=context, info_name=word)
    return context


def usage_line(error: Any) -> str:
    """Return one line for a ``UsageError``: what is wrong with the words of a command, and where its help is.

    Args:
        error: as typer raises it.
    """
    context = error.ctx
    path = context.command_path if context is not None else PROGRAM
    if type(error).__name__ == "NoArgsIsHelpError":  # typer has printed the help
        return f"`{path}` needs one of its commands, which are listed above"
    return f"{_what(error, path)}; see `{path} --help`"


def system_line(error: BaseException) -> str | None:
    """Return one line for what the system says of a file, such as that it is not there; None for other errors."""
    if not isinstance(error, OSError) or error.strerror is None or error.filename is None:
        return None
    return f"{error.strerror[:1].lower()}{error.strerror[1:]}: {error.filename}"


def _what(error: Any, path: str) -> str:
    text = " ".join(error.format_message().split()).rstrip(".")
    command = error.ctx.command if error.ctx is not None else None
    if name := getattr(error, "option_name", None):
        if text.startswith("No such option"):
            return f"{path} has no option {name}" + _closest_option(name, command)
    elif named := re.match(r"No such command '([^']*)'", text):
        return f"{path} has no command {named[1]!r}" + _closest_command(named[1], command)
    return text[:1].lower() + text[1:]


def _closest_option(name: str, command: Any) -> str:
    known = [option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)]
    if close := get_close_matches(name, known, n=2):
        return f"; did you mean {' or '.join(close)}?"
    if hasattr(command, "commands"):
        return "; options come after the name of a command"
    return ""


def _closest_command(name: str, group: Any) -> str:
    if stock := OF_NNUNET.get(name.replace("_", "-")):
        return f"; it is nnU-Net's own: {stock}"
    known = dict(_commands(group))
    if elsewhere := [path for path in known if path.endswith(f" {name}")]:
        return f"; did you mean {' or '.join(elsewhere)}?"
    close = get_close_matches(name, known, n=2)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _commands(group: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all commands of a group by their words, such as "pretrain fit"."""
    for name, command in group.commands.items():
        yield f"{above}{name}", command
        if hasattr(command, "commands"):
            yield from _commands(command, f"{above}{name} ")
