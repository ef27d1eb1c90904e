"""Command ``preset``: plans with the settings of published experiments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ._options import Force
from ._output import echo

if TYPE_CHECKING:
    from ..plans.presets import AppliedPreset, Preset

commands = typer.Typer()


@commands.command()
def preset(
    name: Annotated[str, typer.Argument(help="Preset; with --list, part of the names to list.")] = "",
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="nnU-Net's number or name of the dataset.")] = "",
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Name of the new plan; PLANS_PRESET by default.")
    ] = None,
    force: Force = False,
    show: Annotated[bool, typer.Option("--list", help="Print the presets.")] = False,
) -> None:
    """Write a plan with the settings of a published experiment: patch, spacing, batch, windows."""
    if show:
        list_presets(name)
    elif name and dataset:
        apply_and_explain(name, dataset, output, force)
    else:
        raise ValueError("name a preset and a dataset: `preset NAME -d DATASET`; `preset --list` prints the presets")


def list_presets(contains: str = "") -> None:
    """Print the presets whose name contains ``contains``.

    Raises:
        ValueError: if there is none.
    """
    from rich.console import Console
    from rich.table import Table

    from ..plans.presets import load_presets

    presets = [preset for name, preset in load_presets().items() if contains in name]
    if not presets:
        raise ValueError(f"no preset's name contains {contains!r}; `nnunet-transformers preset --list` prints all")
    table = Table(title="published experiments; in %, HD95 in mm")
    table.add_column("preset", no_wrap=True)
    for heading in ("network", "configuration", "patch", "spacing, mm", "batch", "windows", "step", "published"):
        table.add_column(heading)
    table.add_column("source")
    for p in presets:
        row = (p.name, p.network, p.configuration, _size(p.patch_size), _size(p.spacing), str(p.batch_size))
        table.add_row(*row, _windows(p), f"{p.step_size:g}", _published(p), p.source)
    console = Console()
    if not console.is_terminal:
        console.width = 220
    console.print(table)


def apply_and_explain(name: str, dataset: str, plans_name: str | None, force: bool) -> None:
    """Write the plan; print its settings, notes and the next commands."""
    from ..plans.presets import apply_preset, get_preset

    applied = apply_preset(get_preset(name), dataset, plans_name, force)
    preset = applied.preset
    echo(f"written: {applied.path}")
    for heading, text in _summary(applied):
        echo(f"{heading + ':':15}{text}")
    for note in (*_warnings(applied), *preset.notes):
        echo(f"note: {note}")
    encoder = ", ENCODER your pretrained weights" if preset.settings.frozen_fraction == 1 else ""
    echo(f"\nnext (INPUT, OUTPUT and LABELS are your folders of images, predictions and labels{encoder}):")
    for command in applied.commands():
        echo(f"  {command}")


def _size(values: Sequence[float] | None) -> str:
    return "as planned" if values is None else "x".join(f"{v:g}" for v in values)


def _windows(preset: Preset) -> str:
    windows = preset.overrides.get("window_sizes")
    return "" if windows is None else ", ".join(map(str, windows)) if isinstance(windows, list) else str(windows)


def _published(preset: Preset) -> str:
    """Format the published metrics; "scratch:" marks those without pretrained weights."""
    return "; ".join(
        ("scratch: " if start == "scratch" else "")
        + ", ".join(f"{metric} {value:g}" for metric, value in values.items())
        for start, values in preset.published.items()
    )


def _summary(applied: AppliedPreset) -> list[tuple[str, str]]:
    preset, configuration, planned = applied.preset, applied.configuration, applied.planned
    architecture = configuration["architecture"]["arch_kwargs"]
    batch = preset.batch_size
    return [
        (
            "network",
            f"{preset.network}, {applied.parameters:,} parameters, {applied.written.input_channels} in, "
            f"{applied.written.num_classes} out",
        ),
        ("arguments", ", ".join(f"{key} {architecture[key]}" for key in preset.overrides) or "as registered"),
        ("configuration", preset.configuration),
        ("patch", f"{_size(preset.patch_size)} (planned: {_size(planned['patch_size'])})"),
        ("spacing", f"{_size(configuration['spacing'])} mm (planned: {_size(planned['spacing'])})"),
        ("batch", f"{batch} (planned: {planned['batch_size']})"),
        ("data", f"{configuration['data_identifier']} (planned: {planned['data_identifier']})"),
        ("supervision", "deep" if preset.deep_supervision else "full resolution only"),
        ("trainer", preset.trainer),
        ("training", ", ".join(f"{name} {value}" for name, value in preset.settings.stated().items())),
        ("memory", f"about {applied.training_bytes() / 1e9:.1f} GB in training, estimated"),
        ("published", f"{_published(preset) or 'no metrics in the source'} ({preset.source})"),
    ]


def _warnings(applied: AppliedPreset) -> list[str]:
    preset, data = applied.preset, applied.preset.data
    own = applied.written.input_channels, applied.written.num_classes
    channels, classes = data["channels"] or own[0], data["classes"] or own[1]
    warnings = []
    if (channels, classes) != own:
        warnings.append(
            f"channels and classes of the paper's data are {channels} and {classes}, of this dataset {own[0]} and "
            f"{own[1]}."
        )
    if preset.spacing is None:
        warnings.append("the source states no spacing; the planner's is used.")
    sizes = applied.configuration["median_image_size_in_voxels"]
    if any(patch > 2 * size for patch, size in zip(preset.patch_size, sizes, strict=True)):
        warnings.append(
            f"the patch is more than twice this dataset's median image ({_size([round(n) for n in sizes])} at the "
            "plan's spacing): most of it will be padding."
        )
    if "pretrained" in preset.published:
        swin = " --swin hub" if preset.overrides.get("block") == "swin" else ""
        warnings.append(
            "the published metrics without 'scratch' are of networks with ImageNet weights: "
            f"`nnunet-transformers attach-imagenet -d {applied.dataset_id} -p {applied.path.stem} -o NAME{swin}`."
            if preset.network.startswith("unet2022")
            else "the published metrics without 'scratch' are of pretrained networks; this plan specifies no weights."
        )
    return warnings
