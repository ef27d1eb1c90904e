"""Group ``detect``: train detectors of boxes in 2D images and predict with them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .._atomic import check_place, write_json, write_text
from .._text import printable
from ._options import PreparedFolder, TorchDevice, Trust, chosen_device
from ._output import echo
from ._recipes import RecipeName, describe_recipes

if TYPE_CHECKING:
    from ..detection.yolo import Boxes

commands = typer.Typer(help="Detectors of boxes in 2D images.", no_args_is_help=True)


@commands.command("fit", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def fit_detector(
    context: typer.Context,
    images: PreparedFolder,
    table: Annotated[
        Path,
        typer.Argument(
            help="Boxes: COCO's JSON, or CSV with columns image, x, y, width, height, image_width, image_height and, "
            "optionally, label and split (train, val or test)."
        ),
    ],
    config: Annotated[str, typer.Option(help="Recipe, by name or file; see `detect recipes`.")],
    encoder: Annotated[
        Path | None,
        typer.Option(help="Encoder checkpoint to start from; by default the recipe's network starts from scratch."),
    ] = None,
    trust: Trust = False,
) -> None:
    """Train a detector by a recipe; other options, after the table, override it, such as --epochs 50."""
    from ..detection.checkpoint import DetectorCheckpoint
    from ..detection.fit import fit

    for path in (images, table):
        if str(path).startswith("--"):
            raise ValueError(f"the folder and the table come before other options, got {path} instead")
    trainer = fit(config, images, table, encoder, context.args, trust)
    if trainer.is_global_zero:
        file = Path(trainer.default_root_dir) / "detector.pth"
        scores = DetectorCheckpoint.load(file).scores
        echo(f"{file}: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items()))


@commands.command("predict")
def predict_boxes(
    detector: Annotated[Path, typer.Argument(help="Checkpoint written by `detect fit`.")],
    images: Annotated[Path, typer.Argument(help="Folder written by `pretrain prepare --like DETECTOR`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV file to write.")],
    boxes: Annotated[
        Path | None, typer.Option(help="Table as for training, to print scores; on its test split if it has one.")
    ] = None,
    confidence: Annotated[float, typer.Option(min=0, max=1, help="Smallest confidence of a box.")] = 0.5,
    nms_iou: Annotated[float, typer.Option(min=0, max=1, help="IoU from which two boxes are the same.")] = 0.5,
    scores: Annotated[Path | None, typer.Option(help="JSON file to write the scores to.")] = None,
    device: TorchDevice = "auto",
) -> None:
    """Write each image's boxes, in pixels; with a table print the mean average precision.

    The pixels are those of the prepared image, of an image of the table those of the original; the file has its size.
    Images that the detector was trained on are left out of the scores.
    """
    from rich.progress import track

    from ..classification.predict import unseen
    from ..detection.boxes import read_boxes
    from ..detection.checkpoint import DetectorCheckpoint
    from ..detection.predict import Predictor
    from ..detection.scores import mean_average_precision
    from ..pretraining.data import PreparedImages
    from ..pretraining.data.own_plan import is_shrunk

    device = chosen_device(device)
    if scores is not None and boxes is None:
        raise ValueError("--scores needs --boxes, the table to compare with")
    for path in filter(None, (output, scores)):
        check_place(path)
    checkpoint, prepared = DetectorCheckpoint.load(detector), PreparedImages(images)
    checkpoint.check_images(prepared.index, images)
    sizes = {name: (shape[3], shape[2]) for name, shape in prepared.shapes.items()}
    # read before the prediction, so that a wrong table fails early
    table = None
    if boxes is not None:
        table = read_boxes(boxes, prepared.names, prepared.files)
        table.check_shapes(prepared.shapes, is_shrunk(prepared.index.plans))
        targets, (chosen, notes) = table.targets(checkpoint.classes), unseen(checkpoint, table.images)
        if not any(len(target) for target, c in zip(targets, chosen, strict=True) if c):
            raise ValueError(f"none of the {int(chosen.sum())} images of {boxes} to score has a box")
        sizes |= dict(zip(table.images.names, table.sizes, strict=True))
    predictor, names = Predictor(checkpoint, device, confidence, nms_iou), prepared.names
    found = {name: predictor.boxes(prepared, name) for name in track(names, description="predicting")}
    write_text(_as_csv(found, sizes, checkpoint.classes), output)
    echo(f"written: {output}, {sum(len(b.scores) for b in found.values())} boxes on {len(found)} images")
    if table is None:
        echo("note: these are pixels of the prepared images, whose size is in image_width and image_height")
        return
    for note in notes:
        echo(f"note: {note}")
    scored = [name for name, c in zip(table.images.names, chosen, strict=True) if c]
    wanted, crowds = (
        [target for target, c in zip(boxes_of, chosen, strict=True) if c]
        for boxes_of in (targets, table.targets(checkpoint.classes, crowds=True))
    )
    values = mean_average_precision([found[name] for name in scored], wanted, checkpoint.classes, crowds=crowds)
    text = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
    echo(printable(f"{len(scored)} images of {boxes}: {text}"))
    if scores is not None:
        write_json({"detector": str(detector), "images": len(scored), "scores": values}, scores)
        echo(f"written: {scores}")


@commands.command("recipes")
def detection_recipes(name: RecipeName = None) -> None:
    """Print the recipes with what they are for, or all settings of one."""
    echo(describe_recipes("nnunet_transformers.detection", name))


def _as_csv(found: Mapping[str, Boxes], sizes: Mapping[str, tuple[int, int]], classes: Sequence[str]) -> str:
    """Return the boxes in the columns of a table for training, and their scores; an image without has a row too."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "x", "y", "width", "height", "image_width", "image_height", "label", "score"])
    for name, boxes in found.items():
        width, height = sizes[name]
        rows = zip(boxes.boxes.tolist(), boxes.labels.tolist(), boxes.scores.tolist(), strict=True)
        for (left, top, right, bottom), label, score in rows:
            corner = (left * width, top * height, (right - left) * width, (bottom - top) * height)
            writer.writerow([name, *(f"{v:.2f}" for v in corner), width, height, classes[label], f"{score:.6f}"])
        if not len(boxes.scores):
            writer.writerow([name, "", "", "", "", width, height, "", ""])
    return text.getvalue()
