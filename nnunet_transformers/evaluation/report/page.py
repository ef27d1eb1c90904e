"""Page of the report: scores, overlays and curves from the files that nnU-Net writes into a fold's folder."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from ..._atomic import write_text
from ..._paths import inside
from ..._reading import read_json
from ...plans.gate import check_preparation
from ...plans.planned import label_names
from ..results import Evaluation
from ..statistics import nan_mean
from ..targets import Targets
from .cards import STYLE as CARDS
from .cards import DrawnCase, keys, section
from .document import document, escape, scrolling
from .facts import facts_of, progress_of, table_of_facts, written_with
from .figures import draw_series, index_of_part, mask_ignored, most_labelled_slice
from .files import check_size_of, images_in
from .orientation import View
from .palette import distinct_colours
from .training_log import Curves, read_curves


@dataclass(frozen=True)
class CaseScores:
    """Scores and files of a case.

    Attributes:
        name: name of the case.
        dice: Dice per label, in the order of the report's labels; NaN where undefined.
        file: name of its segmentation, both the predicted and the reference.
    """

    name: str
    dice: list[float]
    file: str

    @property
    def mean(self) -> float:
        """Mean Dice over the labels without NaN; NaN if all are."""
        finite = [d for d in self.dice if not math.isnan(d)]
        return sum(finite) / len(finite) if finite else math.nan


A_FOLD = "is this the folder of a trained fold, .../TRAINER__PLANS__CONFIGURATION/fold_0?"


def _existing(path: Path, made_by: str) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {made_by}")
    return path


def _cases(evaluation: Evaluation, file_ending: str) -> list[CaseScores]:
    """Return the cases of an evaluation, the worst first, those without any label last."""
    cases = []
    for (predicted, _), dice in zip(evaluation.files.values(), evaluation.of("Dice").tolist(), strict=True):
        # nnU-Net states absolute paths, which are those of the machine that wrote them
        file = PureWindowsPath(predicted).name
        cases.append(CaseScores(file.removesuffix(file_ending), dice, file))
    return sorted(cases, key=lambda case: (math.isnan(case.mean), case.mean))


def _table(cases: list[CaseScores], label_names: list[str]) -> str:
    def cell(value: float) -> str:
        return "<td>-</td>" if math.isnan(value) else f"<td>{value:.3f}</td>"

    head = "".join(f"<th>{escape(name)}</th>" for name in ("case", *label_names, "mean"))
    rows = [f"<tr><td>{escape(case.name)}</td>{''.join(map(cell, [*case.dice, case.mean]))}</tr>" for case in cases]
    scores = np.array([[*case.dice, case.mean] for case in cases], dtype=float)
    means = [float(np.nanmean(column)) if not np.isnan(column).all() else math.nan for column in scores.T]
    rows.append(f"<tr class='mean'><td>mean of {len(cases)} cases</td>{''.join(map(cell, means))}</tr>")
    return scrolling(f"<table><tr>{head}</tr>{''.join(rows)}</table>", "Dice per case and label")


def write_report(
    fold_folder: Path,
    output: Path | None = None,
    predictions: Path | None = None,
    images: Path | None = None,
    num_overlays: int = 3,
    labels: Path | None = None,
    trust: bool = False,
) -> Path:
    """Write the report of a fold: scores, overlays, curves and facts; before its validation the latter two.

    Args:
        fold_folder: nnU-Net's folder of a fold, ``.../TRAINER__PLANS__CONFIGURATION/fold_X``.
        output: HTML file; ``report.html`` in the fold's folder by default.
        predictions: folder with predictions and the ``summary.json`` of ``nnUNetv2_evaluate_folder``; the fold's own
            validation by default.
        images: folder of the images; ``imagesTr`` of the dataset by default.
        num_overlays: number of cases to draw, spread from the worst to the best.
        labels: folder of the reference segmentations; by default those of the dataset, ``gt_segmentations``,
            ``labelsTr`` or ``labelsTs``.
        trust: read the images by whatever reader, and build whatever network, the plan names.

    Returns:
        the written file.

    Raises:
        FileNotFoundError: if the fold, its log and validation, an image or a label is missing; the message names the
            command that writes it.
        ValueError: if a file is damaged, or the plan names a reader that is not nnU-Net's.
    """
    fold_folder = Path(fold_folder).absolute()
    output = Path(output) if output else fold_folder / "report.html"
    content = read_json(_existing(fold_folder.parent / "plans.json", A_FOLD))
    if not trust:
        check_preparation(content, str(fold_folder.parent / "plans.json"))
    plans = PlansManager(content)
    dataset_json = read_json(_existing(fold_folder.parent / "dataset.json", A_FOLD))
    targets = Targets.from_dataset_json(dataset_json)
    evaluated = Path(predictions) if predictions else fold_folder / "validation"
    curves = read_curves(fold_folder)
    if predictions or (evaluated / "summary.json").is_file() or not curves.first:
        title, scores, table = _scores(
            evaluated, plans, dataset_json, targets.ignore, images, num_overlays, labels, bool(predictions)
        )
    else:
        title, note = _so_far(fold_folder, curves)
        scores, table = f"<p class='note'>{escape(note)}</p>", ""
    facts = table_of_facts({"": facts_of(fold_folder, trust)})
    body = f"""<h1>{escape(f"{plans.dataset_name}: {title}")}</h1>
{scores}<h2>Training</h2>{_training(curves, targets.names)}
{scrolling(facts, "Facts of the training")}{table}
<p class="note">{escape(written_with())}</p>"""
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(document(plans.dataset_name, body, CARDS), output)
    return output


def _scores(
    evaluated: Path,
    plans: PlansManager,
    dataset_json: dict[str, Any],
    ignore: int | None,
    images: Path | None,
    num_overlays: int,
    labels: Path | None,
    are_given: bool,
) -> tuple[str, str, str]:
    """Return the title of an evaluated fold, its overlays and its table."""
    made_by = "nnUNetv2_evaluate_folder writes it" if are_given else "finish training, or run nnUNetv2_train ... --val"
    evaluation = Evaluation.load(_existing(evaluated / "summary.json", made_by))
    names_of = label_names(dataset_json)
    names = [names_of.get(key, key) for key in evaluation.labels]
    parts = [_values(dataset_json["labels"].get(name)) for name in names]
    cases = _cases(evaluation, dataset_json["file_ending"])
    reader = plans.image_reader_writer_class()
    picked = sorted({round(i) for i in np.linspace(0, len(cases) - 1, min(num_overlays, len(cases)))})
    sections = []
    for number, case in enumerate(cases[i] for i in picked):
        images_of_case = _image_files(case.name, dataset_json, plans.dataset_name, images)
        image, properties = reader.read_images(images_of_case)
        view = View.of(properties, image[0].shape)
        files = [str(_label_file(case, plans.dataset_name, labels)), str(evaluated / case.file)]
        truth, predicted = (reader.read_seg(file)[0][0] for file in files)
        for file, voxels in ((images_of_case[0], image[0]), (files[1], predicted)):
            check_size_of(file, voxels, files[0], truth)
        mask_ignored(predicted, truth, ignore)
        label, prediction = (view.apply(index_of_part(voxels, parts)) for voxels in (truth, predicted))
        drawn = DrawnCase(label, [prediction], view.apply(image[0]), view)
        dice = ", ".join(f"{name} {d:.3f}" for name, d in zip(names, case.dice, strict=True))
        index = most_labelled_slice(label + 1)
        sections.append(section(case.name, f"Dice: {dice}", drawn, index, ["prediction"], len(parts), number))
    title = f"mean foreground Dice {nan_mean(evaluation.of('Dice')).mean():.3f}"
    overlays = f"<h2>Worst to best of {len(cases)} cases in {escape(evaluated.name)}</h2>{keys(names)}"
    table = f"<h2>Dice per case and label</h2>{_table(cases, names)}"
    return title, overlays + "".join(sections), table


def _so_far(fold: Path, curves: Curves) -> tuple[str, str]:
    """Return the title of a fold without validation, and a note on what is left to do."""
    progress = progress_of(fold, curves)
    if progress.is_trained:
        return f"trained for {progress.epochs}", "Not validated yet: run nnUNetv2_train ... --val."
    left = f"; about {progress.left} of training left" if progress.left else ""
    return f"training, {progress.epochs} so far", f"Not validated yet{left}."


def _training(curves: Curves, label_names: list[str]) -> str:
    """Return the curves of a training."""
    if not curves.train_loss:
        return f"<p class='note'>{'No epoch has ended yet.' if curves.first else 'No training log in this folder.'}</p>"
    epochs = range(1, len(curves.train_loss) + 1)
    loss = {"training": (epochs, curves.train_loss), "validation": (epochs, curves.val_loss)}
    columns = [*zip(*curves.pseudo_dice, strict=False)]
    names = [label_names[i] if i < len(label_names) else str(i + 1) for i in range(len(columns))]
    dice = {name: (epochs, values) for name, values in zip(names, columns, strict=True)}
    pictures = (
        ("loss", draw_series(loss, "loss", "epoch")),
        (
            "Dice on validation patches",
            draw_series(dice, "Dice on validation patches", "epoch", (0, 1), distinct_colours(len(dice))),
        ),
    )
    figures = "".join(
        f"<figure><img class='plot' src='{uri}' alt='{name} by epoch'></figure>" for name, uri in pictures
    )
    return f"<div class='plots'>{figures}</div>"


def _values(label: int | list[int] | None) -> list[int]:
    """The values of a label, one, or of a region, several; none for a label that dataset.json lacks."""
    return [] if label is None else list(label) if isinstance(label, list) else [label]


def _image_files(case: str, dataset_json: dict, dataset_name: str, images: Path | None) -> list[str]:
    files: list[str] = []
    if images is not None:
        files = images_in(Path(images), case, dataset_json["file_ending"])
    elif nnUNet_raw.get():
        raw = inside(Path(str(nnUNet_raw)), dataset_name)
        with suppress(FileNotFoundError):  # its imagesTr, of a model that was trained on another machine
            files = get_filenames_of_train_images_and_targets(str(raw), dataset_json).get(case, {}).get("images", [])
    if not files:
        where = images or "the dataset's imagesTr (is nnUNet_raw set?)"
        raise FileNotFoundError(f"no image of case {case} in {where}; name the folder with --images")
    return files


def _label_file(case: CaseScores, dataset_name: str, labels: Path | None) -> Path:
    """Find the reference segmentation of a case."""
    folders = [] if labels is None else [Path(labels)]
    if labels is None and nnUNet_preprocessed.get():
        folders.append(inside(Path(str(nnUNet_preprocessed)), dataset_name) / "gt_segmentations")
    if labels is None and nnUNet_raw.get():
        folders += [inside(Path(str(nnUNet_raw)), dataset_name) / name for name in ("labelsTr", "labelsTs")]
    found = next((path for folder in folders if (path := folder / case.file).is_file()), None)
    if found is None:
        where = labels or "the dataset's gt_segmentations, labelsTr and labelsTs (are nnU-Net's folders set?)"
        raise FileNotFoundError(f"no label of case {case.name} in {where}; name the folder with --labels")
    return found
