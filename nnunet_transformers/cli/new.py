"""Group ``new``: packages to start from."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from ._output import echo

commands = typer.Typer(help="Packages of one's own, to start from.", no_args_is_help=True)


@commands.callback()
def group() -> None:
    """Packages of one's own, to start from."""


@commands.command()
def network(
    name: Annotated[str, typer.Argument(help="Name of the network and its package, such as my_net.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write; NAME by default.")] = None,
) -> None:
    """Write a package of a network with planner, trainer and tests, which installs and trains at once."""
    from ..scaffold import write_package
    from ..scaffold.package import class_name

    folder = output or Path(name)
    for file in write_package(name, folder):
        echo(f"written: {folder / file}")
    planner = f"nnUNetPlanner{class_name(name)}"
    echo(f"next: pip install -e {quote(str(folder))}, then nnUNetv2_plan_and_preprocess -d D -pl {planner}")
