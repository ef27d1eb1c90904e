"""Temperature scaling of a trained model, from the probabilities of its folds' validation cases.

Guo et al., "On calibration of modern neural networks", ICML 2017: all logits are divided by one number, the temperature
with the least negative log-likelihood. Segmentations stay the same, as the largest logit stays the largest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, log_softmax

from .._atomic import check_place, write_json
from .._paths import inside
from .._reading import read_json, reading
from ..classification.resampled import calibration_errors
from .segmentations import (
    check_values,
    dataset_json_of,
    find_reader,
    load_dataset_json,
    read_probabilities,
    read_segmentation,
    validation_folders,
)
from .targets import Targets

FILE = "calibration.json"
# of each case, inside the box around label and prediction, drawn with a fixed seed
VOXELS = 2**15
MARGIN = 5
# cases are divided into these; each is scored with the temperature of the others
GROUPS = 5
# of probabilities that were rounded to 0
SMALLEST = 1e-7


@dataclass(frozen=True)
class Calibration:
    """Temperature of a model, and what it does to validation cases that it was not fitted on.

    Attributes:
        temperature: divisor of the logits, fitted on all cases.
        ece, ece_before: expected calibration error with temperatures of the other cases, and without any.
        nll, nll_before: mean negative log-likelihood per voxel, likewise.
        cases: number of cases.
        voxels: number of voxels that were drawn from them.
    """

    temperature: float
    ece: float
    ece_before: float
    nll: float
    nll_before: float
    cases: int
    voxels: int


@dataclass(frozen=True)
class Sample:
    """Voxels of a case.

    Attributes:
        logits: (voxels, classes).
        targets: (voxels, classes), 1 or 0.
    """

    logits: NDArray
    targets: NDArray


def calibrate(model: Path, labels: Path) -> Calibration:
    """Fit a temperature on the validation cases of all folds and store it in the model's folder.

    Args:
        model: folder of a trained model, whose folds were validated with ``--npz``.
        labels: folder of the reference segmentations.

    Raises:
        FileNotFoundError: if there are no probabilities, or a label file is missing.
        ValueError: if there are fewer than two cases, or a file cannot be used.
    """
    files = [path for folder in validation_folders(model) for path in sorted(folder.glob("*.npz"))]
    if not files:
        raise FileNotFoundError(
            f"{model} holds no probabilities of validation cases: run nnUNetv2_train ... --val --npz for its folds"
        )
    found = dataset_json_of(files[0].parent)
    if found is None:
        raise FileNotFoundError(f"{model} holds no dataset.json; is it the folder of a trained model?")
    check_place(model / FILE)
    dataset = load_dataset_json(found)
    targets = Targets.from_dataset_json(dataset)
    has_regions = LabelManager(dataset["labels"], dataset.get("regions_class_order")).has_regions
    samples = []
    for path in files:
        reference = inside(labels, f"{path.stem}{dataset['file_ending']}")
        if not reference.is_file():
            raise FileNotFoundError(f"label file {reference} of {path} is missing")
        reader = find_reader(dataset, dataset["file_ending"], reference)
        label, _ = read_segmentation(reader, reference)
        probabilities = read_probabilities(path)
        if probabilities.shape[1:] != label.shape:
            raise ValueError(f"{path} has {probabilities.shape[1:]} voxels, its label {reference} {label.shape}")
        check_values(label, targets.known or (), reference)
        drawn = sample(probabilities, label, targets, has_regions)
        if len(drawn.targets):  # none of a case that is ignored as a whole
            samples.append(drawn)
    calibration = fit(samples, has_regions)
    write_json(asdict(calibration), model / FILE)
    return calibration


def load_temperature(model: Path) -> float:
    """Read the temperature that ``calibrate`` stored in a model's folder.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is damaged.
    """
    path = model / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{model} has no {FILE}: run `nnunet-transformers calibrate` first")
    with reading(path, "a calibration", "calibrate again"):
        temperature = float(read_json(path, "a calibration")["temperature"])
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature {temperature} is no positive number")
    return temperature


def sample(probabilities: NDArray, label: NDArray, targets: Targets, has_regions: bool, seed: int = 0) -> Sample:
    """Draw voxels of the box around label and prediction, so that a background without structures does not decide.

    Args:
        probabilities: (classes, *spatial); class 0 is the background, unless classes are regions.
        label: (*spatial).
        targets: labels or regions, in the order of the classes.
        has_regions: whether the classes are regions.
        seed: of the draw.
    """
    predicted = probabilities.max(0) > 0.5 if has_regions else probabilities.argmax(0) > 0
    of_interest = (predicted | (label > 0)) & (label != targets.ignore if targets.ignore is not None else True)
    box = tuple(
        slice(max(0, int(np.min(where)) - MARGIN), int(np.max(where)) + MARGIN + 1)
        for where in (np.nonzero(of_interest) if of_interest.any() else [[0, n - 1] for n in label.shape])
    )
    of_all_classes = (slice(None), *box)
    chosen_label, chosen = label[box].ravel(), probabilities[of_all_classes].reshape(len(probabilities), -1)
    counted = np.arange(len(chosen_label)) if targets.ignore is None else np.flatnonzero(chosen_label != targets.ignore)
    drawn = np.random.default_rng(seed).choice(counted, min(VOXELS, len(counted)), replace=False)
    p = np.clip(chosen[:, drawn].T.astype(float), SMALLEST, 1 - SMALLEST if has_regions else None)
    values = chosen_label[drawn]
    of_targets = [np.isin(values, target.values) for target in targets.targets]
    classes = of_targets if has_regions else [~np.any(of_targets, axis=0), *of_targets]
    logits = np.log(p) - np.log1p(-p) if has_regions else np.log(p)
    return Sample(logits, np.stack(classes, 1).astype(float))


def fit(samples: Sequence[Sample], has_regions: bool = False) -> Calibration:
    """Fit the temperature of all samples, and measure temperatures of other samples on each group of them.

    Raises:
        ValueError: if there are fewer than two samples.
    """
    if len(samples) < 2:
        raise ValueError(f"a calibration needs two validation cases to be checked, there is {len(samples)}")
    scaled = []
    for group in range(min(GROUPS, len(samples))):
        others = [s for i, s in enumerate(samples) if i % GROUPS != group]
        temperature = _fit(others, has_regions)
        scaled += [Sample(s.logits / temperature, s.targets) for s in samples[group::GROUPS]]
    return Calibration(
        temperature=_fit(samples, has_regions),
        ece=_ece(scaled, has_regions),
        ece_before=_ece(samples, has_regions),
        nll=_nll(scaled, 1.0, has_regions),
        nll_before=_nll(samples, 1.0, has_regions),
        cases=len(samples),
        voxels=sum(len(s.logits) for s in samples),
    )


def _fit(samples: Sequence[Sample], has_regions: bool) -> float:
    """Return the temperature between 0.05 and 20 with the least negative log-likelihood."""
    found = minimize_scalar(
        lambda log: _nll(samples, math.exp(log), has_regions), bounds=(-3, 3), method="bounded", options={"xatol": 1e-4}
    )
    return math.exp(float(found.x))


def _nll(samples: Sequence[Sample], temperature: float, has_regions: bool) -> float:
    """Return the mean over voxels, and over regions if there are any; every case has the same weight."""
    losses = []
    for s in samples:
        logits = s.logits / temperature
        if has_regions:
            losses.append(-np.where(s.targets == 1, log_expit(logits), log_expit(-logits)).mean())
        else:
            losses.append(-(s.targets * log_softmax(logits, axis=1)).sum(1).mean())
    return float(np.mean(losses))


def _ece(samples: Sequence[Sample], has_regions: bool) -> float:
    """Return the expected calibration error of the predicted class, or the mean over regions."""
    logits, targets = (np.concatenate([getattr(s, name) for s in samples]) for name in ("logits", "targets"))
    if has_regions:
        return float(calibration_errors(expit(logits).T, targets.T).mean())
    confidence = np.exp(log_softmax(logits, axis=1))
    right = targets[np.arange(len(targets)), confidence.argmax(1)]
    return float(calibration_errors(confidence.max(1)[None], right[None])[0])
