"""Commands ``evaluate``, ``evaluate-iou`` and ``report``: metrics of predictions, and a report on a trained fold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .._atomic import check_place, write_json, write_text
from ._options import DatasetJson, Processes, Trust
from ._output import echo, echo_table

if TYPE_CHECKING:
    from ..evaluation import Evaluation, Targets

commands = typer.Typer()

SHOWN = ("Dice", "IoU", "HD95", "ASSD", "NSD", "VD", "lesion F1")  # by how their names begin


@commands.command()
def evaluate(
    predictions: Annotated[
        Path, typer.Argument(help="Folder of segmentations, or of a trained model with its folds' validation.")
    ],
    labels: Annotated[Path, typer.Argument(help="Folder of reference segmentations of the same names.")],
    dataset_json: DatasetJson = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="Evaluate NAME=VALUE, the region NAME=VALUE,VALUE..., or a value; may be given again."),
    ] = None,
    brats: Annotated[
        str, typer.Option(metavar="2021|2023", help="BraTS's ET, TC and WT, its label values and empty labels.")
    ] = "",
    empty_in_both: Annotated[
        str, typer.Option(help="A label in neither: nan, left out as in nnU-Net; or perfect, as in BraTS and SIIM.")
    ] = "",
    empty_in_one: Annotated[
        str, typer.Option(help="Distance of a label in one only: diagonal of the image, nan, or mm (BraTS: 373.12866).")
    ] = "",
    hd95: Annotated[str, typer.Option(help="max of the directed percentiles, or pooled, as in medpy.")] = "max",
    surface_connectivity: Annotated[
        int, typer.Option(help="Surface voxels have a neighbour outside by a face (1), edge (2) or corner (3).")
    ] = 1,
    tolerance: Annotated[
        list[str] | None, typer.Option(help="NSD's tolerance in mm, or LABEL=MM; may be given again. 2 by default.")
    ] = None,
    lesions: Annotated[
        list[str] | None, typer.Option(help="Label whose lesions are counted, or all; may be given again.")
    ] = None,
    lesion_connectivity: Annotated[
        int, typer.Option(help="Lesions are connected by faces (1), edges (2) or corners (3).")
    ] = 3,
    lesion_iou: Annotated[
        float, typer.Option(help="A lesion is found above this IoU with a component, 0.5 or more; 0: by one voxel.")
    ] = 0,
    processes: Processes = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON file; evaluation.json in PREDICTIONS by default.")
    ] = None,
    table: Annotated[Path | None, typer.Option(help="Also write the table, as .md, .csv or .tex.")] = None,
) -> None:
    """Compute Dice, IoU, HD95, ASSD, NSD, volume differences and lesion detection per case and label."""
    from ..evaluation import BRATS_DISTANCE, Conventions, Targets, evaluate_folder

    if brats and label:
        raise ValueError("--brats names the labels; it cannot be given with --label")
    targets = Targets.of_brats(brats) if brats else _targets(label or [])
    tolerances, label_tolerances = _tolerances(tolerance or [])
    conventions = Conventions(
        empty_in_both=empty_in_both or ("perfect" if brats else "nan"),
        empty_in_one=_empty_in_one(empty_in_one) if empty_in_one else BRATS_DISTANCE if brats else "diagonal",
        hd95=hd95,
        surface_connectivity=surface_connectivity,
        tolerances=tolerances,
        label_tolerances=label_tolerances,
        lesions=tuple(lesions or ()),
        lesion_connectivity=lesion_connectivity,
        lesion_iou=lesion_iou,
    )
    place = output or predictions / "evaluation.json"
    if output is not None or predictions.is_dir():
        check_place(place)
    if table is not None:
        check_table(table)
    evaluation = evaluate_folder(predictions, labels, conventions, dataset_json, targets, processes)
    evaluation.save(place)
    _print(evaluation)
    if table is not None:
        write_text(evaluation.table().as_text(table), table)
    echo(f"written: {place}" + (f", {table}" if table else ""))


def _tolerances(given: list[str]) -> tuple[tuple[float, ...], dict[str, float]]:
    """Parse "2" and "liver=5"; the tolerances of all labels are 2 mm if there are none."""
    of_all: list[float] = []
    of_labels: dict[str, float] = {}
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            millimetres = float(number)
        except ValueError as error:
            raise ValueError(f"--tolerance {text!r} is no number of mm such as 2 or liver=5") from error
        if name in of_labels:
            raise ValueError(f"--tolerance: the label {name!r} has two, {of_labels[name]:g} and {number}; give one")
        if name:
            of_labels[name] = millimetres
        else:
            of_all.append(millimetres)
    return tuple(of_all) or (2.0,), of_labels


def _empty_in_one(text: str) -> str | float:
    try:
        return "nan" if text.lower() == "nan" else float(text)
    except ValueError:
        return text


def _targets(given: list[str]) -> Targets | None:
    from ..evaluation import Targets, parse_region

    regions: dict[str, tuple[int, ...]] = {}
    for name, values in map(parse_region, given):
        if name in regions:
            raise ValueError(
                f"--label: two have the name {name!r}; give each its own, or a region as {name}=VALUE,VALUE"
            )
        regions[name] = values
    return Targets.from_regions(regions) if regions else None


def _print(evaluation: Evaluation) -> None:
    """Print the mean of each label's metrics with its interval."""
    from ..evaluation import shown

    names = [name for name in evaluation.metrics if name.startswith(SHOWN)]
    rows = []
    for label, summaries in evaluation.summaries().items():
        cells = [f"{shown(s.mean)}\n{shown(s.low)} to {shown(s.high)}" for s in map(summaries.__getitem__, names)]
        rows.append([label, *cells])
    echo_table(f"mean of {len(evaluation.cases)} cases, and its 95 % bootstrap interval", ["label", *names], rows)
    if missing := evaluation.without_prediction:
        echo(f"{len(missing)} label files have no prediction, {missing[0]} first")
    if evaluation.elsewhere:
        case, distance = max(evaluation.elsewhere.items(), key=lambda found: found[1])
        echo(
            f"{len(evaluation.elsewhere)} predictions lie elsewhere than their labels by the headers, {case} by up to "
            f"{distance:.3g} mm; they are compared voxel by voxel, as nnU-Net does: resample them onto the labels' grid"
        )


def check_table(path: Path) -> None:
    """Refuse a file whose ending names no form of a table, before anything is computed."""
    from ..evaluation import TABLE_ENDINGS

    if path.suffix.lower() not in TABLE_ENDINGS:
        raise ValueError(f"--table {path} does not end in {', '.join(TABLE_ENDINGS)}")
    check_place(path)


@commands.command("evaluate-iou")
def evaluate_iou(
    predictions: Annotated[Path, typer.Argument(help="Folder written by nnUNetv2_predict --save_probabilities.")],
    labels: Annotated[Path, typer.Argument(help="Folder of reference segmentations of the same names.")],
    label: Annotated[int, typer.Option(help="Label to evaluate.")] = 1,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write.")] = None,
) -> None:
    """Print the mean IoU over probability thresholds 0.5 to 0.95, as in UNet-2022's Table 3."""
    from rich.console import Console
    from rich.table import Table

    from ..evaluation import THRESHOLDS, evaluate_predictions

    if output is not None:
        check_place(output)
    summary = evaluate_predictions(predictions, labels, label)
    echo(f"label {label}, mean of {len(summary.per_case)} images")
    table = Table()
    table.add_column("threshold", justify="right")
    table.add_column("IoU, %", justify="right")
    for threshold, iou in zip(THRESHOLDS, summary.per_threshold, strict=True):
        table.add_row(f"{threshold:.2f}", f"{100 * iou:.2f}")
    table.add_section()
    table.add_row("mean", f"{100 * summary.mean_iou:.2f}")
    Console().print(table)
    if summary.empty:
        echo(f"{summary.empty} pairs of image and threshold left out: neither prediction nor label holds the label")
    if summary.without_prediction:
        echo(f"{len(summary.without_prediction)} label files have no prediction, {summary.without_prediction[0]} first")
    if output is not None:
        write_json(summary.as_json(), output)
        echo(f"written: {output}")


@commands.command()
def report(
    folder: Annotated[
        Path,
        typer.Argument(help="Folder of a trained fold (.../fold_0) with its validation, or of a run with metrics.csv."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="HTML file; in the fold's folder by default.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Show these predictions (with nnUNetv2_evaluate_folder's summary.json).")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images; the dataset's imagesTr by default.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Folder of the reference segmentations; the dataset's own by default.")
    ] = None,
    cases: Annotated[int, typer.Option(min=1, help="Cases to draw, from the worst to the best.")] = 3,
    trust: Trust = False,
) -> None:
    """Write one self-contained HTML file: overlays, loss and Dice curves, Dice per case and label.

    Of a run of `pretrain fit` or `classify fit` it has the curves of all metrics.
    """
    from ..evaluation.report import is_run, write_report, write_run_report

    if is_run(folder):
        echo(write_run_report(folder, output))
        return
    echo(write_report(folder, output, predictions, images, cases, labels, trust))
