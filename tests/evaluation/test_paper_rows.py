"""Rows of the papers' tables from stored toy predictions, by the protocols' definitions written out once more."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.distance import cdist
from typer.testing import CliRunner

from nnunet_transformers import cli
from nnunet_transformers.plans.presets import get_preset

SPACING = (2.0, 1.0, 1.5)
SHAPE = (4, 9, 8)
# boxes of label values in each case, drawn in turn: (value, first voxel, last voxel + 1)
REFERENCE = [
    [(2, (0, 1, 1), (4, 8, 7)), (1, (1, 2, 2), (3, 7, 6)), (4, (1, 3, 3), (3, 6, 5))],
    [(2, (1, 0, 0), (4, 5, 8)), (1, (1, 1, 2), (3, 4, 6))],  # no enhancing tumour
    [(2, (0, 2, 1), (3, 9, 6)), (4, (1, 4, 2), (3, 8, 5))],
    [(2, (1, 1, 1), (3, 6, 6))],  # oedema alone
]
PREDICTION = [
    [(2, (0, 1, 2), (4, 8, 8)), (1, (1, 2, 2), (3, 8, 6)), (4, (1, 4, 3), (3, 6, 6))],
    [(2, (1, 1, 0), (4, 5, 7)), (1, (1, 1, 2), (4, 4, 5)), (4, (2, 2, 3), (3, 3, 4))],  # one where there is none
    [(2, (0, 1, 1), (3, 8, 6))],  # none where there is one
    [(2, (1, 1, 2), (3, 7, 6))],
]
REGIONS = {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)}
ORGANS = {"aorta": (1,), "liver": (2,), "spleen": (4,)}


def draw(boxes):
    voxels = np.zeros(SHAPE, np.uint8)
    for value, low, high in boxes:
        voxels[tuple(map(slice, low, high))] = value
    return voxels


@pytest.fixture
def folders(tmp_path):
    for name, cases in (("LABELS", REFERENCE), ("OUTPUT", PREDICTION)):
        (tmp_path / name).mkdir()
        for number, boxes in enumerate(cases):
            image = sitk.GetImageFromArray(draw(boxes))
            image.SetSpacing(SPACING[::-1])
            sitk.WriteImage(image, str(tmp_path / name / f"case_{number}.nii.gz"))
    return tmp_path


def surface(mask):
    """Millimetres of the voxels with a neighbour by a face outside."""
    return np.argwhere(mask & ~ndimage.binary_erosion(mask)) * SPACING


def distances(prediction, reference):
    """From each surface voxel of one to the nearest of the other, in both directions."""
    apart = cdist(surface(prediction), surface(reference))
    return apart.min(1), apart.min(0)


def dice(prediction, reference):
    return 2 * (prediction & reference).sum() / (prediction.sum() + reference.sum())


def brats(prediction, reference):
    """The challenge's: 1 and 0 mm if neither has the region, 0 and 373.12866 mm if one has it."""
    if not prediction.any() and not reference.any():
        return 1.0, 0.0
    if not prediction.any() or not reference.any():
        return 0.0, 373.12866
    forth, back = distances(prediction, reference)
    return dice(prediction, reference), max(np.percentile(forth, 95), np.percentile(back, 95))


def synapse(prediction, reference):
    """Medpy's distance; an organ that one lacks is left out, of the Dice one that both lack."""
    if not prediction.any() or not reference.any():
        return (0.0 if prediction.any() or reference.any() else np.nan), np.nan
    return dice(prediction, reference), np.percentile(np.concatenate(distances(prediction, reference)), 95)


def row(labels, protocol):
    """Dice of each label and their mean, then HD95: the row of the table."""
    found = np.array(
        [
            [
                protocol(np.isin(draw(ours), values), np.isin(draw(theirs), values))
                for ours, theirs in zip(PREDICTION, REFERENCE, strict=True)
            ]
            for values in labels.values()
        ]
    )
    means = np.nanmean(found, axis=1)
    return [*means[:, 0], means[:, 0].mean(), *means[:, 1], means[:, 1].mean()]


def written(table, labels):
    """The same row from the command's table."""
    with table.open() as file:
        cells = {(r["label"], r["metric"]): r["mean"] for r in csv.DictReader(file)}
    return [float(cells[label, metric]) for metric in ("Dice", "HD95") for label in (*labels, "mean")]


@pytest.mark.parametrize(
    ("preset", "labels", "protocol"),
    [("brats2021-base", REGIONS, brats), ("synapse-320", ORGANS, synapse)],
)
def test_row(folders, preset, labels, protocol):
    """QT-UNet's table 4.1 and UNet-2022's table 1, by the commands that the presets print."""
    command, *arguments = get_preset(preset).evaluation.split()
    given = [str(folders / a) if a in ("OUTPUT", "LABELS") else a for a in arguments]
    names = [f"--label={name}={','.join(map(str, values))}" for name, values in labels.items()]
    table = folders / "row.csv"
    result = CliRunner().invoke(cli.app, [command, *given, *names, "--processes", "0", "--table", str(table)])
    assert result.exit_code == 0, result.output
    assert written(table, labels) == pytest.approx(row(labels, protocol), abs=1e-9)


def test_submission_values(folders):
    """BraTS's label values of 2021, by one option."""
    arguments = [str(folders / name) for name in ("OUTPUT", "LABELS")]
    table = folders / "row.csv"
    options = ["--brats", "2021", "--processes", "0", "--table", str(table)]
    assert CliRunner().invoke(cli.app, ["evaluate", *arguments, *options]).exit_code == 0
    assert written(table, REGIONS) == pytest.approx(row(REGIONS, brats), abs=1e-9)
