"""Commands ``push`` and ``pull``: encoder checkpoints and packages to and from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._output import echo

commands = typer.Typer()


@commands.command()
def push(
    source: Annotated[Path, typer.Argument(help="Encoder checkpoint of pretraining, or folder of a package.")],
    repository: Annotated[str, typer.Argument(help="owner/name on the hub; made if it is missing.")],
    private: Annotated[bool, typer.Option("--private", help="Make a private repository.")] = False,
    revision: Annotated[str, typer.Option(help="Branch to push to; made if it is missing.")] = "main",
    licence: Annotated[
        str, typer.Option("--licence", "--license", help="Licence of the weights; by default what a package states.")
    ] = "",
    dataset: Annotated[
        list[str] | None, typer.Option(help="Training data, on the hub or elsewhere; by default what a package states.")
    ] = None,
    keep_card: Annotated[bool, typer.Option("--keep-card", help="Leave the repository's README.md as it is.")] = False,
) -> None:
    """Push an encoder checkpoint or a package to the Hugging Face hub, with a model card."""
    from ..sharing import push as push_to_hub

    pushed = push_to_hub(source, repository, private, revision, licence, dataset or (), keep_card)
    echo(f"pushed: {pushed.address}, {pushed.bytes / 1e6:.1f} MB")
    echo(f"SHA-256, which `pull --sha256` compares: {pushed.sha256}")


@commands.command()
def pull(
    source: Annotated[str, typer.Argument(help="hf://owner/name, with /file and @revision where needed.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    sha256: Annotated[str | None, typer.Option(help="SHA-256 that the source states, as `push` prints it.")] = None,
) -> None:
    """Pull an encoder checkpoint or a package from the Hugging Face hub, and verify its hash."""
    from ..sharing import pull as pull_from_hub

    pulled = pull_from_hub(source, output, sha256)
    checked = "as stated" if sha256 else "compare it with its source's, or give it with --sha256"
    echo(f"pulled {pulled.fetched}")
    echo(f"SHA-256: {pulled.sha256} ({checked})")
    echo(f"written: {pulled.path}")
