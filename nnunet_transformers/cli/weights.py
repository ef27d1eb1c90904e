"""Commands on initial weights: ``attach``, ``export-full``, ``export-safetensors``, ``convert``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._options import Configuration, Configurations, Dataset, Force, NewPlans, Trust, WeightSource, parse_patch_size
from ._output import echo

if TYPE_CHECKING:
    from ..weights import LoadReport

commands = typer.Typer()
MinCoverage = Annotated[
    float, typer.Option(min=0, max=1, help="Smallest share of the encoder's parameters that must be loaded.")
]


@commands.command()
def attach(
    source: WeightSource,
    dataset: Dataset,
    plans: Annotated[str, typer.Option("--plans", "-p", help="Plan to start from.")],
    output: NewPlans,
    configuration: Configurations = None,
    min_coverage: MinCoverage = 0.5,
    force: Force = False,
    trust: Trust = False,
) -> None:
    """Write a plan whose networks start from pretrained weights, and print the load report."""
    from ..weights import InitialWeights
    from ..weights.attach import attach as attach_weights

    _print_attached(
        *attach_weights(
            InitialWeights.from_source(source),
            dataset,
            plans,
            output,
            configurations=configuration or (),
            force=force,
            min_coverage=min_coverage,
            trust=trust,
        )
    )


@commands.command("attach-imagenet")
def attach_imagenet(
    dataset: Dataset,
    plans: Annotated[str, typer.Option("--plans", "-p", help="Plan of UNet-2022 to start from.")],
    output: NewPlans,
    configuration: Configurations = None,
    convnext: Annotated[
        str, typer.Option(help="ConvNeXt weights: 'hub' to download them through timm, or a file.")
    ] = "hub",
    swin: Annotated[
        str | None, typer.Option(help="Swin weights for the attention half, likewise; none by default.")
    ] = None,
    spread: Annotated[
        bool, typer.Option("--spread", help="Load from blocks spread over a stage instead of its first blocks.")
    ] = False,
    force: Force = False,
    trust: Trust = False,
) -> None:
    """Write a plan whose UNet-2022 starts from ImageNet weights, and print the load report."""
    from ..weights import InitialWeights
    from ..weights.attach import attach as attach_weights
    from ..weights.imagenet import HUB

    sources = {
        name: value if value in (None, HUB) else os.path.abspath(value)
        for name, value in (("convnext", convnext), ("swin", swin))
    }
    _print_attached(
        *attach_weights(
            InitialWeights({"imagenet": {**sources, "spread": spread}}),
            dataset,
            plans,
            output,
            configurations=configuration or (),
            force=force,
            min_coverage=0.0,
            trust=trust,
        )
    )


@commands.command("export-full")
def export_full(
    source: WeightSource,
    dataset: Dataset,
    plans: Annotated[str, typer.Option("--plans", "-p", help="Plan to train with.")],
    configuration: Configuration,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    trainer: Annotated[
        str, typer.Option("--trainer", "-tr", help="Trainer that builds the network.")
    ] = "nnUNetTrainer",
    min_coverage: MinCoverage = 0.5,
    trust: Trust = False,
) -> None:
    """Write a whole network's weights, with the encoder loaded, for nnUNetv2_train -pretrained_weights."""
    from ..weights import InitialWeights
    from ..weights.attach import export_full as export_weights

    weights = InitialWeights.from_source(source)
    report = export_weights(
        weights, dataset, plans, configuration, output, trainer=trainer, min_coverage=min_coverage, trust=trust
    )
    echo(report)
    echo(f"written: {output}; nnUNetv2_train ... -tr {trainer} -p {plans} -pretrained_weights {output}")


@commands.command("export-safetensors")
def export_safetensors(
    encoder: Annotated[Path, typer.Argument(help="Encoder checkpoint, such as pretraining's encoder.pth.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; by default beside the checkpoint.")
    ] = None,
) -> None:
    """Write an encoder checkpoint as a safetensors file, with its description and hash."""
    from ..weights import PretrainedWeights, load

    output = output or encoder.with_suffix(".safetensors")
    if output == encoder:
        raise ValueError(f"{encoder} is a safetensors file already; name another with -o to copy it")
    if output.suffix != ".safetensors":
        raise ValueError(f"{output} must end in .safetensors")
    if output.exists():
        raise ValueError(f"{output} exists; remove it or choose another name")
    checkpoint = load(encoder, PretrainedWeights)
    checkpoint.save(output)
    echo(f"{output}: {len(checkpoint.weights)} tensors; `attach`, `push` and the others take it as they take {encoder}")


@commands.command()
def convert(
    family: Annotated[str, typer.Argument(help="Family of the release: qt_unet, unet2022 or mit.")],
    released: Annotated[Path, typer.Argument(help="Checkpoint with the release's parameter names.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint to write.")],
    patch_size: Annotated[
        str | None, typer.Option(help="Patch size of the release's training, where weights depend on it (mit).")
    ] = None,
) -> None:
    """Translate a paper's released weights; nothing is unpickled."""
    from ..architectures import create_network, get_released_family
    from ..weights import from_reference, identify, load_state_dict, save_checkpoint

    get_released_family(family)  # a wrong one fails before the file is read
    if output.exists():
        raise ValueError(f"{output} exists; remove it or choose another name")
    weights = from_reference(family, load_state_dict(released))
    found = identify(family, weights, parse_patch_size(patch_size) if patch_size else None)
    overrides = {**found.overrides, "reference_compat": True}
    description = {
        "name": found.name,
        "input_channels": found.input_channels,
        "num_classes": found.num_classes,
        "ndim": found.ndim,
        "overrides": overrides,
    }
    size = ""
    if found.patch_size is not None:
        # loading reshapes the release's flat position embeddings to their grid
        network = create_network(found.name, found.input_channels, found.num_classes, found.patch_size, **overrides)
        network.load_state_dict(weights)
        weights = network.state_dict()
        description["patch_size"] = found.patch_size
        given = "" if patch_size else " (a published size that fits; give --patch-size if it was another)"
        size = f", patch size {'x'.join(map(str, found.patch_size))}{given}"
    save_checkpoint({"network_weights": weights, "network": description}, output)
    echo(
        f"{output}: {found.name} in {found.ndim}D, {found.input_channels} input channels, "
        f"{found.num_classes} classes{size}; all {len(weights)} tensors translated"
    )


def _print_attached(path: Path, reports: Mapping[str, LoadReport], left: Mapping[str, str]) -> None:
    for configuration, report in reports.items():
        echo(f"{configuration}: {report}")
    for configuration, reason in left.items():
        echo(f"{configuration} is left unchanged: {reason}")
    echo(f"written: {path}; train with -p {path.stem}")
