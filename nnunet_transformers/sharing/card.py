"""Model card of a package: data, plan, recipe, validation scores and use."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from statistics import mean
from typing import Any

from huggingface_hub import EvalResult
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from .._atomic import write_text
from .._reading import read_json
from .._text import code, markdown
from ..plans.planned import channel_names, label_names
from ..weights.nnunet_checkpoint import FINAL
from .description import Description, Model
from .front_matter import card_data, dice_result
from .manifest import file_hash
from .trained import TrainedFold

NAME = "README.md"
LICENCE = "Licence of the weights: "
NO_LICENCE = "not stated; ask the source before you use them"
USE = """## Use

    pip install -r requirements.txt
    python predict.py INPUT OUTPUT

INPUT holds {inputs}. OUTPUT gets one segmentation {segmentation} each. `python predict.py --help` lists the options;
`nnunet-transformers package verify` checks the files against `manifest.json`. The Dockerfile builds a container that
reads /input and writes /output, without network and without root.
"""


def write_card(
    folder: Path,
    description: Description,
    folds: Mapping[str, Sequence[TrainedFold]],
    sources: Mapping[str, Path],
    licence: str,
    checkpoint: str = FINAL,
) -> None:
    """Write the model card into a package.

    Args:
        folder: folder of the package, which must hold all other files but the manifest.
        description: description of the package.
        folds: folds of each model, by the model's folder in the package.
        sources: nnU-Net's folder of each model, for the validation scores, by the same keys.
        licence: licence of the weights.
        checkpoint: file name of the weights; the scores of nnU-Net's validation are those of ``checkpoint_final.pth``,
            and are left out for any other.
    """
    first = read_json(folder / description.models[0].folder / "dataset.json")
    plans = read_json(folder / description.models[0].folder / "plans.json")
    ending = first["file_ending"]
    files = ((f"case_{i:04d}{ending}", name) for i, name in enumerate(channel_names(first)))
    channels = ", ".join(f"{code(file)} ({markdown(name)})" for file, name in files)
    scores = {
        key: {fold.name: found for fold in folds[key] if (found := _scores(source, fold, checkpoint))}
        for key, source in sources.items()
    }
    parts = [
        f"# {markdown(plans['dataset_name'])}: segmentation with nnU-Net\n",
        f"{LICENCE}{markdown(licence) or NO_LICENCE}\n",
        _data(first, plans["dataset_name"]),
        USE.format(inputs=f"for each case {channels}", segmentation=code(f"case{ending}")),
    ]
    if len(description.models) > 1:
        parts.append(f"The probabilities of {len(description.models)} models are averaged.\n")
    described = set()
    for model in description.models:
        stage: Model | None = model
        while stage is not None and stage.folder not in described:
            described.add(stage.folder)
            parts.append(_model(folder, stage, folds[stage.folder], scores[stage.folder]))
            stage = stage.previous
    if checkpoint != FINAL:
        parts.append(f"The weights are those of {code(checkpoint)}; nnU-Net validates {code(FINAL)}.\n")
    versions = {"Python": platform.python_version(), **description.versions}
    parts.append("## Versions\n\n" + "".join(f"- {name} {version}\n" for name, version in versions.items()))
    results = [result for m in description.models if (result := _result(plans, m, scores[m.folder]))]
    tags = [network_name(model) for model in description.models]
    data = card_data(licence, tags, [plans["dataset_name"]], plans["dataset_name"], results)
    write_text(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(parts), folder / NAME)


def stated_licence(card: str) -> str:
    """Return the licence that the card of a package states, empty if it states none."""
    found = re.search(rf"^{LICENCE}(.+)$", card, flags=re.MULTILINE)
    return "" if found is None or found[1] == NO_LICENCE else re.sub(r"\\(.)", r"\1", found[1])


def network_name(model: Model) -> str:
    """Return the class name of a model's network."""
    return model.network.rpartition(".")[2]


def _result(plans: Mapping[str, Any], model: Model, scores: Mapping[str, dict[str, Any]]) -> EvalResult | None:
    """Return the mean Dice of the validated folds, None if there are none."""
    dice = {fold: float(s["foreground_mean"]["Dice"]) for fold, s in scores.items()}
    known = {name: score for name, score in dice.items() if isfinite(score)}
    if not known:
        return None
    what = f"Dice of {model.folder.removeprefix('models/')}, fold {', '.join(known)}"
    return dice_result(plans["dataset_name"], model.configuration, what, mean(known.values()))


def _scores(source: Path, fold: TrainedFold, checkpoint: str) -> dict[str, Any] | None:
    """Read the scores of a fold's validation, None if there is none of this checkpoint."""
    summary = source / f"fold_{fold.name}" / "validation" / "summary.json"
    return read_json(summary) if checkpoint == FINAL and summary.is_file() else None


def _data(dataset_json: Mapping[str, Any], name: str) -> str:
    labels = ", ".join(f"{markdown(value)} {markdown(label)}" for label, value in dataset_json["labels"].items())
    stated = {key: dataset_json.get(key) for key in ("description", "reference", "licence", "license", "release")}
    number = dataset_json.get("numTraining", "unknown number of")
    lines = [f"- {markdown(name)}, {markdown(number)} training cases"]
    lines += [f"- channels: {', '.join(map(markdown, channel_names(dataset_json)))}; labels: {labels}"]
    lines += [f"- {key} of the data: {markdown(value)}" for key, value in stated.items() if value]
    return "## Data\n\n" + "\n".join(lines) + "\n"


def _model(folder: Path, model: Model, folds: Sequence[TrainedFold], scores_of: Mapping[str, dict[str, Any]]) -> str:
    plans = PlansManager(read_json(folder / model.folder / "plans.json"))
    configuration = plans.get_configuration(model.configuration)
    axes = "none" if model.mirroring_axes is None else ", ".join(map(str, model.mirroring_axes))
    spacing = " x ".join(f"{s:g}" for s in configuration.spacing)
    size = "x".join(map(str, configuration.patch_size))
    schemes = ", ".join(configuration.normalization_schemes)
    lines = [
        f"## {markdown(model.folder.removeprefix('models/'))}\n",
        f"- network: {markdown(model.network)}",
        f"- plan: {markdown(plans.plans_name)}, {markdown(model.configuration)}; patch {markdown(size)} at {spacing} "
        f"mm, batch {markdown(configuration.batch_size)}, {schemes}",
        f"- recipe: {markdown(model.trainer)}, {folds[0].epochs} epochs; inference mirrors axes {axes}",
    ]
    if model.orientations:
        lines.append(f"- axes of the training images: {', '.join(model.orientations)}")
    if model.previous is not None:
        lines.append(f"- takes the segmentation of {markdown(model.previous.folder.removeprefix('models/'))}")
    dataset_json = read_json(folder / model.folder / "dataset.json")
    names = {key: markdown(name) for key, name in label_names(dataset_json).items()}
    rows = []
    for fold in folds:
        scores = scores_of.get(fold.name)
        digest = file_hash(folder / model.weights_file(fold.name))
        if scores is None:
            rows.append(f"| {markdown(fold.name)} | not validated | | `{digest}` |")
            continue
        per_label = ", ".join(
            f"{names.get(key, markdown(key))} {float(s['Dice']):.3f}" for key, s in scores["mean"].items()
        )
        rows.append(
            f"| {markdown(fold.name)} | {float(scores['foreground_mean']['Dice']):.3f} | {per_label} | `{digest}` |"
        )
    head = "\n| fold | validation Dice | by label | SHA-256 of the weights |\n|---|---|---|---|"
    return "\n".join([*lines, head, *rows]) + "\n"
