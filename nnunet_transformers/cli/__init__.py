"""Command ``nnunet-transformers``: one module per group of commands; a command imports its libraries when it runs."""

from __future__ import annotations

import sys

import typer

from . import classify, demo, doctor, evaluate, models, package, predict, preset, pretrain, probe, weights
from ._options import missing_extra

app = typer.Typer(
    help="Transformer U-Nets for nnU-Net v2: checks, tables, released weights, reports and a demo. Train with "
    "nnU-Net's own command; predict with nnU-Net's, or faster with `predict`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(doctor.commands)
app.add_typer(models.commands)
app.add_typer(preset.commands)
app.add_typer(weights.commands)
app.add_typer(pretrain.commands, name="pretrain")
app.add_typer(probe.commands, name="probe")
app.add_typer(classify.commands, name="classify")
app.add_typer(predict.commands)
app.add_typer(evaluate.commands)
app.add_typer(package.commands, name="package")
app.add_typer(package.export_commands)
app.add_typer(demo.commands)


def main() -> None:
    """Run the command; a user's mistake ends it with a line on stderr and exit code 1 instead of a traceback."""
    try:
        app()
    except (ValueError, OSError, RuntimeError, ModuleNotFoundError) as error:
        typer.secho(f"error: {missing_extra(error) or error}", fg=typer.colors.RED, err=True)
        sys.exit(1)
