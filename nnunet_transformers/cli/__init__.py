"""The command ``nnunet-transformers``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .classify_commands import classify
from .package_commands import Checkpoint, Folds, FoldsCommand, Trust, package
from .pretrain_commands import pretrain, probe

app = typer.Typer(
    help="Transformer U-Nets for nnU-Net v2: checks, tables, released weights, reports and a demo. Training is "
    "nnU-Net's own command; so is prediction, of which `predict` is a faster way.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.add_typer(pretrain, name="pretrain")
app.add_typer(probe, name="probe")
app.add_typer(classify, name="classify")
app.add_typer(package, name="package")


@app.command()
def doctor() -> None:
    """Check versions, discovery, folders and device; say what is wrong and how to mend it."""
    from .checks import run_checks

    raise typer.Exit(run_checks())


@app.command()
def models(
    patch_size: Annotated[str, typer.Option(help="Voxels per axis, two or three of them.")] = "96,96,96",
    input_channels: Annotated[int, typer.Option(min=1)] = 1,
    num_classes: Annotated[int, typer.Option(min=2)] = 14,
    name: Annotated[str, typer.Option(help="Show networks whose name contains this.")] = "",
) -> None:
    """Table of the networks: parameters, multiply-adds and training memory at a patch size."""
    from .network_table import print_models

    print_models(patch_size, input_channels, num_classes, name)


@app.command()
def benchmark(
    patch_size: Annotated[
        str, typer.Option(help="Voxels per axis, such as 96,96,96; or 3d or 2d for the usual size on the device.")
    ] = "3d",
    batch_size: Annotated[int, typer.Option(min=1)] = 1,
    input_channels: Annotated[int, typer.Option(min=1)] = 1,
    num_classes: Annotated[int, typer.Option(min=2)] = 14,
    networks: Annotated[
        str, typer.Option(help="Names between commas, ours and peers; PlainConvUNet is always measured.")
    ] = "",
    device: Annotated[str, typer.Option(help="cpu or cuda; cuda if there is one.")] = "",
    precision: Annotated[str, typer.Option(help="float32, float16 or bfloat16; float32 on CPU, float16 on CUDA.")] = "",
    compile_networks: Annotated[bool, typer.Option("--compile", help="Through torch.compile.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each network, in turn.")] = 3,
    roofline: Annotated[bool, typer.Option(help="Find what bounds each network, and its largest gaps.")] = True,
    threads: Annotated[int | None, typer.Option(min=1, help="PyTorch's, on CPU.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("benchmark_output"),
) -> None:
    """Time, memory and throughput of our networks, nnU-Net's CNNs, Primus and MONAI's, side by side."""
    from .benchmark import benchmark as run
    from .benchmark import make_settings

    settings = make_settings(
        patch_size, batch_size, input_channels, num_classes, device, precision, compile_networks, threads
    )
    run(settings, networks, rounds, roofline, output)


@app.command("trainers-path")
def trainers_path() -> None:
    """Print the folder for nnUNet_extTrainer, for installs where the hook is switched off."""
    print(Path(__file__).parent.parent / "ext_trainers")


@app.command()
def convert(
    family: Annotated[str, typer.Argument(help="The release: qt_unet, unet2022 or mit.")],
    released: Annotated[Path, typer.Argument(help="Checkpoint with the release's names.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint to write.")],
    patch_size: Annotated[
        str | None, typer.Option(help="The size they were trained at, where weights depend on it (mit).")
    ] = None,
) -> None:
    """Translate a paper's released weights; nothing is unpickled."""
    from .conversion import convert_checkpoint

    convert_checkpoint(family, released, output, patch_size)


@app.command()
def preset(
    name: Annotated[str, typer.Argument(help="The preset, or with --list a part of names.")] = "",
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="nnU-Net's number or name of the dataset.")] = "",
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Name of the new plan; PLANS_PRESET by default.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a preset's plan of that name.")] = False,
    show: Annotated[bool, typer.Option("--list", help="Table of the presets.")] = False,
) -> None:
    """Write a paper's experiment (patch, spacing, batch, windows) into a dataset's plan."""
    from .presets import apply_and_explain, list_presets

    if show:
        list_presets(name)
    elif name and dataset:
        apply_and_explain(name, dataset, output, force)
    else:
        raise ValueError("say which preset for which dataset: `preset NAME -d DATASET`; `preset --list` has the names")


@app.command()
def attach(
    checkpoint: Annotated[Path, typer.Argument(help="Encoder checkpoint, made by pretraining.")],
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="nnU-Net's number or name of the dataset.")],
    plans: Annotated[str, typer.Option("--plans", "-p", help="Plan to start from.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Name of the new plan.")],
    configuration: Annotated[
        list[str] | None, typer.Option("--configuration", "-c", help="Configurations; by default those that fit.")
    ] = None,
    min_coverage: Annotated[float, typer.Option(min=0, max=1, help="Least share of the encoder to be loaded.")] = 0.5,
    force: Annotated[bool, typer.Option("--force", help="Replace a plan of that name written before.")] = False,
) -> None:
    """Write a plan whose networks start from a pretrained encoder; print what is loaded, what is not and why."""
    from .attachment import attach_encoder

    attach_encoder(checkpoint, dataset, plans, output, configuration or (), min_coverage, force)


@app.command("export-full")
def export_full(
    checkpoint: Annotated[Path, typer.Argument(help="Encoder checkpoint, made by pretraining.")],
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="nnU-Net's number or name of the dataset.")],
    plans: Annotated[str, typer.Option("--plans", "-p", help="Plan to train with.")],
    configuration: Annotated[str, typer.Option("--configuration", "-c", help="Of the plan.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    trainer: Annotated[str, typer.Option("--trainer", "-tr", help="Whose network it is for.")] = "nnUNetTrainer",
) -> None:
    """Write weights for nnUNetv2_train -pretrained_weights, with any trainer: its network, the encoder loaded."""
    from .attachment import export_encoder

    export_encoder(checkpoint, dataset, plans, configuration, output, trainer)


@app.command("attach-imagenet")
def attach_imagenet(
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="nnU-Net's number or name of the dataset.")],
    plans: Annotated[str, typer.Option("--plans", "-p", help="Plan to start from, of UNet-2022.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Name of the new plan.")],
    configuration: Annotated[
        list[str] | None, typer.Option("--configuration", "-c", help="Configurations; by default those that fit.")
    ] = None,
    convnext: Annotated[str, typer.Option(help="'hub' for timm's download, or a file.")] = "hub",
    swin: Annotated[str | None, typer.Option(help="The same for the attention half; left out by default.")] = None,
    spread: Annotated[bool, typer.Option("--spread", help="Take blocks from all over a stage, not the first.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a plan of that name written before.")] = False,
) -> None:
    """Write a plan whose UNet-2022 starts from ImageNet weights; print what is loaded, what is not and why."""
    from .attachment import attach_imagenet as run

    run(dataset, plans, output, configuration or (), convnext, swin, spread, force)


@app.command("export-stock", cls=FoldsCommand)
def export_stock(
    model: Annotated[Path, typer.Argument(help="Folder of results, .../TRAINER__PLANS__CONFIGURATION.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write nnUNetTrainer__... to.")],
    folds: Folds = None,
    checkpoint: Checkpoint = "checkpoint_final.pth",
    trust: Trust = False,
) -> None:
    """Copy a trained model under nnU-Net's own trainer's name, so that predicting needs the network class alone."""
    from .packages import export_and_explain

    export_and_explain(model, output, folds or (), checkpoint, trust)


@app.command("evaluate-iou")
def evaluate_iou(
    predictions: Annotated[Path, typer.Argument(help="Made by nnUNetv2_predict --save_probabilities.")],
    labels: Annotated[Path, typer.Argument(help="Segmentations of the same names.")],
    label: Annotated[int, typer.Option(help="The label to evaluate.")] = 1,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write.")] = None,
) -> None:
    """Mean IoU over probability thresholds 0.5 to 0.95, as in UNet-2022's Table 3."""
    from .evaluation import evaluate_folder

    evaluate_folder(predictions, labels, label, output)


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def predict(
    context: typer.Context,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Patches in a pass; by itself from memory and patch size.")
    ] = None,
    use_compile: Annotated[
        bool, typer.Option("--compile", help="torch.compile the network; nnUNet_compile=1 does as well.")
    ] = False,
    trust: Trust = False,
) -> None:
    """nnUNetv2_predict with several patches in a pass. Its arguments follow; with -m FOLDER in place of -d, -tr, -p
    and -c they are those of nnUNetv2_predict_from_modelfolder."""
    from ..inference import predict as run

    if {"-h", "--help"} & set(context.args):
        print(context.get_help())
    run(context.args, batch_size, use_compile, trust)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A trained fold (.../fold_0), its validation done.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="HTML file; fold folder by default.")] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Show these predictions (with nnUNetv2_evaluate_folder's summary.json).")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images; the dataset's imagesTr by default.")
    ] = None,
    cases: Annotated[int, typer.Option(min=1, help="Cases to draw, from the worst to the best.")] = 3,
) -> None:
    """One self-contained HTML file: overlays, loss and Dice curves, Dice per case and label."""
    from ..evaluation.report import write_report

    print(write_report(folder, output, predictions, images, cases))


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where to work; reused by a second run.")] = Path("demo_output"),
    data: Annotated[
        Path | None,
        typer.Option(
            help="A dataset in nnU-Net's raw layout (a folder such as Dataset004_Hippocampus); made if not given."
        ),
    ] = None,
    planner: Annotated[str, typer.Option(help="Planner to use.")] = "nnUNetPlannerQTUNetT",
    trainer: Annotated[str, typer.Option(help="Trainer to use.")] = "nnUNetTrainerQTUNetDemo",
) -> None:
    """Plan, preprocess, train, predict and evaluate with nnU-Net's own commands, then write a report."""
    from ..demo import run_demo

    run_demo(folder, data, planner, trainer)


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 1, never a traceback."""
    try:
        app()
    except (ValueError, OSError, RuntimeError, ModuleNotFoundError) as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        sys.exit(1)
