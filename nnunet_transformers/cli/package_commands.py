"""The group ``nnunet-transformers package``: make, verify, predict, estimate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand, TyperGroup

FOLDS = ("-f", "--folds")


def spread_folds(arguments: Sequence[str]) -> list[str]:
    """Allow -f 0 1 2, as nnU-Net's commands do, where click wants -f 0 -f 1 -f 2."""
    spread: list[str] = []
    in_folds = False
    for argument in arguments:
        is_fold = argument.isdigit() or argument == "all"
        if in_folds and is_fold and spread[-1] not in FOLDS:
            spread.append(FOLDS[0])
        in_folds = argument in FOLDS or (in_folds and is_fold)
        spread.append(argument)
    return spread


class FoldsCommand(TyperCommand):
    """A command with nnU-Net's way to name folds."""

    def parse_args(self, ctx, args):
        return super().parse_args(ctx, spread_folds(args))


class MakeByDefault(TyperGroup):
    """`package FOLDER -o DIR` is `package make FOLDER -o DIR`."""

    def parse_args(self, ctx, args):
        if args and args[0] not in (*self.commands, "--help"):
            args = ["make", *args]
        return super().parse_args(ctx, args)


package = typer.Typer(
    help="Trained models for others to run, without pickles.", cls=MakeByDefault, no_args_is_help=True
)

Folds = Annotated[list[str] | None, typer.Option(*FOLDS, help="Such as 0 1 2 3 4; all that are there by default.")]
Trust = Annotated[
    bool, typer.Option("--trust", help="Unpickle a checkpoint that cannot be read otherwise, which may run its code.")
]
Checkpoint = Annotated[str, typer.Option("--checkpoint", "-chk", help="Name of the checkpoints to take.")]
Device = Annotated[str, typer.Option("--device", "-device", help="auto, cuda, cpu or mps.")]
StepSize = Annotated[
    float, typer.Option("--step-size", "-step_size", min=0.01, max=1, help="Of the sliding window, in patches.")
]
DisableMirroring = Annotated[bool, typer.Option("--disable-tta", "--disable_tta", help="Predict without flips.")]


@package.command(cls=FoldsCommand)
def make(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders of results, .../TRAINER__PLANS__CONFIGURATION; several are an ensemble. With --from-zip "
            "their names in the zip, if it has several."
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = ...,
    folds: Folds = None,
    from_zip: Annotated[Path | None, typer.Option(help="Zip of nnUNetv2_export_model_to_zip.")] = None,
    previous_stage: Annotated[
        Path | None, typer.Option(help="Folder of the model before a cascade's; found beside it by default.")
    ] = None,
    checkpoint: Checkpoint = "checkpoint_final.pth",
    trust: Trust = False,
    licence: Annotated[str, typer.Option("--licence", "--license", help="Of the weights, for the card.")] = "",
    wheel: Annotated[list[Path] | None, typer.Option(help="File to install from, for what no registry has.")] = None,
) -> None:
    """Make a folder with all that inference needs: weights, plan, card, requirements, entry point, Dockerfile."""
    from .packages import make_and_explain

    options = (tuple(folds or ()), checkpoint, previous_stage, trust, licence, tuple(wheel or ()))
    make_and_explain(models or [], from_zip, output, options)


@package.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="The package.")],
    sha256: Annotated[str | None, typer.Option(help="Of its manifest, as its source states it.")] = None,
) -> None:
    """Check that every file is as it was made, none is missing and none was added."""
    from .packages import verify_and_explain

    verify_and_explain(folder, sha256)


@package.command(cls=FoldsCommand)
def predict(
    folder: Annotated[Path, typer.Argument(help="The package.")],
    images: Annotated[Path, typer.Argument(help="Folder of images, CASE_0000.ending and so on.")],
    output: Annotated[Path, typer.Argument(help="Folder for the segmentations.")],
    folds: Folds = None,
    save_probabilities: Annotated[
        bool, typer.Option("--save-probabilities", "--save_probabilities", "-npz", help="Write CASE.npz as well.")
    ] = False,
    step_size: StepSize = 0.5,
    disable_tta: DisableMirroring = False,
    device: Device = "auto",
    sha256: Annotated[str | None, typer.Option(help="Of the manifest, as the package's source states it.")] = None,
) -> None:
    """Segment a folder of images; cases that cannot be are named at the end, and the exit code is then 1."""
    from .packages import predict_and_explain

    arguments = (step_size, not disable_tta, tuple(folds or ()), sha256)
    raise typer.Exit(predict_and_explain(folder, images, output, save_probabilities, device, arguments))


@package.command(cls=FoldsCommand)
def estimate(
    folder: Annotated[Path, typer.Argument(help="The package.")],
    size: Annotated[str, typer.Option(help="Voxels per axis, such as 128,256,256; z first, 1 for 2D.")],
    spacing: Annotated[str | None, typer.Option(help="mm per voxel, in that order; the plan's by default.")] = None,
    folds: Folds = None,
    step_size: StepSize = 0.5,
    disable_tta: DisableMirroring = False,
    device: Device = "auto",
) -> None:
    """Time and memory for an image of a size, from its tiles and one timed pass."""
    from .packages import print_estimate

    print_estimate(folder, size, spacing, device, (step_size, not disable_tta, tuple(folds or ())))
