"""Group ``package`` (make, verify, predict, estimate, export) and ``export-stock``: trained models to hand on."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ._options import TorchDevice, Trust, chosen_device
from ._output import echo

if TYPE_CHECKING:
    from ..sharing import CaseResult

FOLDS = ("-f", "--folds")


def spread_folds(arguments: Sequence[str]) -> list[str]:
    """Rewrite nnU-Net's form ``-f 0 1 2`` to click's form ``-f 0 -f 1 -f 2``."""
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
    """Command that takes folds as nnU-Net's commands do."""

    # Any: typer's context, which is click's or typer's own depending on its version
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread_folds(args))


class MakeByDefault(TyperGroup):
    """Group that takes ``package FOLDER -o DIR`` as ``package make FOLDER -o DIR``; a misspelt command stays one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            is_misspelt = get_close_matches(args[0], self.commands) and not Path(args[0]).exists()
            args = args if is_misspelt else ["make", *args]
        return super().parse_args(ctx, args)


commands = typer.Typer(
    help="Trained models as packages to hand on, without pickles.", cls=MakeByDefault, no_args_is_help=True
)
export_commands = typer.Typer()

PackageFolder = Annotated[Path, typer.Argument(help="Folder of the package.")]
Folds = Annotated[list[str] | None, typer.Option(*FOLDS, help="Folds, such as 0 1 2 3 4; all by default.")]
Checkpoint = Annotated[str, typer.Option("--checkpoint", "-chk", help="Name of the checkpoints to take.")]
StepSize = Annotated[
    float,
    typer.Option("--step-size", "-step_size", min=0.01, max=1, help="Step of the sliding window, in patches."),
]
DisableMirroring = Annotated[bool, typer.Option("--disable-tta", "--disable_tta", help="Predict without flips.")]
ManifestHash = Annotated[str | None, typer.Option(help="SHA-256 of the manifest, as the package's source states it.")]


@commands.command(cls=FoldsCommand)
def make(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders of results, .../TRAINER__PLANS__CONFIGURATION; several are an ensemble. With --from-zip "
            "their names in the zip, if it has several."
        ),
    ] = None,
    folds: Folds = None,
    from_zip: Annotated[Path | None, typer.Option(help="Zip file written by nnUNetv2_export_model_to_zip.")] = None,
    previous_stage: Annotated[
        Path | None, typer.Option(help="Folder of a cascade's first model; found beside it by default.")
    ] = None,
    checkpoint: Checkpoint = "checkpoint_final.pth",
    trust: Trust = False,
    licence: Annotated[str, typer.Option("--licence", "--license", help="Licence of the weights, for the card.")] = "",
    sockets: Annotated[
        Path | None, typer.Option(help="JSON of the interfaces of an algorithm on grand-challenge.org.")
    ] = None,
    wheel: Annotated[list[Path] | None, typer.Option(help="Wheel to install from, if no registry has it.")] = None,
) -> None:
    """Make a package for inference: weights, plan, card, requirements, entry point, Dockerfile."""
    from ..sharing import Options, make_package, package_zip

    options = Options(tuple(folds or ()), checkpoint, previous_stage, trust, licence, tuple(wheel or ()), sockets)
    if from_zip is not None:
        made = package_zip(from_zip, models or [], output, options)
    elif models:
        made = make_package([Path(model) for model in models], output, options)
    else:
        raise ValueError("name a folder of results, .../TRAINER__PLANS__CONFIGURATION, or a zip with --from-zip")
    for model in made.description.models:
        stages = f", after {model.previous.configuration}" if model.previous else ""
        echo(f"{model.folder}: folds {', '.join(model.folds)}{stages}")
    if made.unpickled:
        echo(f"unpickled, as --trust allows: {', '.join(made.unpickled)}")
    else:
        echo("checkpoints were read as tensors and plain types; nothing was unpickled")
    echo(f"written: {output}, {len(made.manifest.entries)} files, {made.manifest.bytes / 1e6:.1f} MB")
    echo(f"SHA-256 of manifest.json, to publish beside it: {made.manifest.sha256}")


@commands.command()
def verify(folder: PackageFolder, sha256: ManifestHash = None) -> None:
    """Check that no file was changed, is missing or was added."""
    from ..sharing import verify as verify_package

    manifest = verify_package(folder, sha256)
    checked = "as stated" if sha256 else "compare it with its source's, or give it with --sha256"
    echo(f"{folder}: {len(manifest.entries)} files, {manifest.bytes / 1e6:.1f} MB, none changed, missing or added")
    echo(f"SHA-256 of manifest.json: {manifest.sha256} ({checked})")
    if wheels := [name for name in manifest.entries if name.startswith("wheels/")]:
        echo(f"installing requirements.txt installs code of the package's maker: {', '.join(wheels)}")


@commands.command(cls=FoldsCommand)
def predict(
    folder: PackageFolder,
    images: Annotated[Path, typer.Argument(help="Folder of images, CASE_0000.ending or DICOM series.")],
    output: Annotated[Path, typer.Argument(help="Folder for the segmentations.")],
    folds: Folds = None,
    save_probabilities: Annotated[
        bool, typer.Option("--save-probabilities", "--save_probabilities", "-npz", help="Write CASE.npz as well.")
    ] = False,
    step_size: StepSize = 0.5,
    disable_tta: DisableMirroring = False,
    device: TorchDevice = "auto",
    sha256: ManifestHash = None,
) -> None:
    """Segment a folder of images; failed cases are listed at the end, and the exit code is then 1."""
    from ..sharing import load_package, package_interfaces, predict_folder, select_device

    models = load_package(
        folder,
        select_device(chosen_device(device)),
        step_size=step_size,
        use_mirroring=not disable_tta,
        folds=folds or (),
        sha256=sha256,
    )
    interfaces = package_interfaces(folder, models)
    results = predict_folder(models, images, output, save_probabilities, _print_case, interfaces)
    failed = [result for result in results if result.problem]
    echo(f"{len(results) - len(failed)} segmented, {len(failed)} not; {output}")
    for result in failed:
        echo(f"error: {result.name}: {result.problem}", error=True, fg=typer.colors.RED)
    raise typer.Exit(int(bool(failed)))


def _print_case(result: CaseResult) -> None:
    for remark in result.remarks:
        echo(f"{result.name}: {remark}", fg=typer.colors.YELLOW)
    echo(f"{result.name}: {'not segmented' if result.problem else f'{result.seconds:.1f} s'}")


@commands.command(cls=FoldsCommand)
def estimate(
    folder: PackageFolder,
    size: Annotated[str, typer.Option(help="Voxels per axis, such as 128,256,256; z first, 1 for 2D.")],
    spacing: Annotated[str | None, typer.Option(help="Voxel size in mm, in that order; the plan's by default.")] = None,
    folds: Folds = None,
    step_size: StepSize = 0.5,
    disable_tta: DisableMirroring = False,
    device: TorchDevice = "auto",
) -> None:
    """Estimate time and memory for an image of a size, from its tiles and one timed pass."""
    from ..sharing import estimate as estimate_package
    from ..sharing import load_package, select_device

    try:
        shape = [int(n) for n in size.split(",")]
        wanted = None if spacing is None else [float(s) for s in spacing.split(",")]
    except ValueError as error:
        raise ValueError("--size and --spacing must be three numbers such as 128,256,256") from error
    models = load_package(
        folder,
        select_device(chosen_device(device)),
        step_size=step_size,
        use_mirroring=not disable_tta,
        folds=folds or (),
    )
    echo(estimate_package(models, shape, wanted))


@commands.command(cls=FoldsCommand)
def export(
    folder: PackageFolder,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    onnx: Annotated[bool, typer.Option("--onnx", help="As ONNX, so far the only format.")] = False,
    half: Annotated[bool, typer.Option("--fp16", help="Weights in half precision.")] = False,
    folds: Folds = None,
    step_size: StepSize = 0.5,
    disable_tta: DisableMirroring = False,
    sha256: ManifestHash = None,
) -> None:
    """Export the networks, with all else that prediction needs as JSON and a runner of NumPy."""
    if not onnx:
        raise ValueError("specify the format, --onnx")
    import torch

    from ..sharing import export_onnx, load_package

    models = load_package(folder, torch.device("cpu"), step_size, not disable_tta, folds or (), sha256)
    networks = export_onnx(models, output, half)
    echo(f"written: {output}, {len(networks)} networks; python {output}/run.py IMAGE.npy LABELS.npy")


@export_commands.command("export-stock", cls=FoldsCommand)
def export_stock(
    model: Annotated[Path, typer.Argument(help="Folder of results, .../TRAINER__PLANS__CONFIGURATION.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write nnUNetTrainer__... to.")],
    folds: Folds = None,
    checkpoint: Checkpoint = "checkpoint_final.pth",
    trust: Trust = False,
) -> None:
    """Copy a trained model under the name of nnU-Net's trainer, so that prediction needs the network class only."""
    from ..sharing import export_stock as export_model

    target, network = export_model(model, output, folds or (), checkpoint, trust)
    echo(f"written: {target}; nnUNetv2_predict_from_modelfolder -m {target} needs {network} but not our trainers")
