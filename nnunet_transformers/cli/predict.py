"""Command ``predict``: nnU-Net's prediction with batches of patches."""

from __future__ import annotations

from typing import Annotated

import typer

from ._options import Trust

commands = typer.Typer()


@commands.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def predict(
    context: typer.Context,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Patches per batch; chosen from memory and patch size by default.")
    ] = None,
    use_compile: Annotated[
        bool, typer.Option("--compile", help="Compile the network with torch.compile, as nnUNet_compile=1 does.")
    ] = False,
    save_uncertainty: Annotated[
        bool, typer.Option("--save_uncertainty", help="Write maps of entropy and of the folds' disagreement as well.")
    ] = False,
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="Scale logits by the temperature that `calibrate` stored.")
    ] = False,
    trust: Trust = False,
) -> None:
    """Run nnUNetv2_predict with batches of patches. Its arguments follow; with -m FOLDER instead of -d, -tr, -p and -c
    they are those of nnUNetv2_predict_from_modelfolder."""
    from ..inference import predict as run

    if {"-h", "--help"} & set(context.args):
        print(context.get_help())
    run(context.args, batch_size, use_compile, trust, save_uncertainty, calibrated)
