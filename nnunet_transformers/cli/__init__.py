"""Command ``nnunet-transformers``: one module per group of commands; a command imports its libraries when it runs."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from io import TextIOWrapper
from typing import Annotated, NoReturn

import typer

from .. import __version__
from .._processes import exit_with_parent_if_spawned
from . import (
    ablate,
    calibrate,
    classify,
    compare,
    demo,
    detect,
    doctor,
    evaluate,
    find_best,
    hub,
    models,
    new,
    package,
    predict,
    preset,
    pretrain,
    probe,
    weights,
)
from ._mistakes import PROGRAM, Commands, Interrupted, UsageError, system_line, usage_line
from ._options import missing_extra
from ._output import echo

exit_with_parent_if_spawned()

SOFTWARE_ERROR = 70  # of sysexits.h
ON_THEIR_FUTURE = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
INTERRUPTED = 130  # as shells end with SIGINT
BUG = (
    "this is a bug of nnunet-transformers. Please report the command and the lines above at "
    "https://github.com/nnunet-transformers/nnunet-transformers/issues"
)

app = typer.Typer(
    help="Transformer U-Nets for nnU-Net v2: checks, tables, released weights, reports and a demo. Train with "
    "nnU-Net's own command; predict with nnU-Net's, or faster with `predict`.",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(doctor.commands)
app.add_typer(models.commands)
app.add_typer(preset.commands)
app.add_typer(new.commands, name="new")
app.add_typer(weights.commands)
app.add_typer(pretrain.commands, name="pretrain")
app.add_typer(probe.commands, name="probe")
app.add_typer(classify.commands, name="classify")
app.add_typer(detect.commands, name="detect")
app.add_typer(predict.commands)
app.add_typer(evaluate.commands)
app.add_typer(compare.commands)
app.add_typer(find_best.commands)
app.add_typer(calibrate.commands)
app.add_typer(ablate.commands)
app.add_typer(package.commands, name="package")
app.add_typer(package.export_commands)
app.add_typer(hub.commands)
app.add_typer(demo.commands)


def print_version(is_asked: bool) -> None:
    """Print the version and end, where it is asked for."""
    if is_asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command.

    A user's mistake ends it with a line on stderr and exit code 1 instead of a traceback, Ctrl-C with a line and exit
    code 130. Any other error is a bug of this package: it shows its traceback and where to report it, with exit code
    70.
    """
    if isinstance(sys.stdout, TextIOWrapper):  # of an encoding that may lack a character of a name; as stderr does
        sys.stdout.reconfigure(errors="backslashreplace")
    if not sys.warnoptions:
        # what other libraries say of their own future is not about the user's data
        for category in ON_THEIR_FUTURE:
            warnings.filterwarnings("ignore", category=category)
        # in the processes that it starts, too
        os.environ.setdefault("PYTHONWARNINGS", ",".join(f"ignore::{c.__name__}" for c in ON_THEIR_FUTURE))
    try:
        code = app(prog_name=PROGRAM, standalone_mode=False)
    except UsageError as error:
        _end(usage_line(error), 1)
    except Interrupted as error:
        _end(f"interrupted{f'; {error}' if str(error) else ''}", INTERRUPTED)
    except (ValueError, OSError, RuntimeError, ModuleNotFoundError) as error:
        _end(missing_extra(error) or system_line(error) or str(error) or type(error).__name__, 1)
    except Exception as error:
        traceback.print_exception(error)
        _end(BUG, SOFTWARE_ERROR)
    sys.exit(code if isinstance(code, int) else 0)  # typer returns the code of an exit, or what the command returned


def _end(message: str, code: int) -> NoReturn:
    """End the command with a message in one line: those of libraries may have several."""
    echo(f"error: {' '.join(message.split())}", error=True, fg=typer.colors.RED)
    sys.exit(code)
