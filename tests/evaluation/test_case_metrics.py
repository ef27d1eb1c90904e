"""Metrics of a case against brute force in float64, nnU-Net's own counts, and values worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from nnunetv2.evaluation.evaluate_predictions import compute_tp_fp_fn_tn, region_or_label_to_mask
from scipy import ndimage

from nnunet_transformers.evaluation.case_metrics import case_metrics, metric_names
from nnunet_transformers.evaluation.conventions import BRATS_DISTANCE, Conventions
from nnunet_transformers.evaluation.lesions import detect_lesions
from nnunet_transformers.evaluation.segmentations import Segmentation
from nnunet_transformers.evaluation.surfaces import surface, surface_distances
from nnunet_transformers.evaluation.targets import BRATS, Targets, parse_region

MASKS = 200


def brute_surface(mask, connectivity):
    """Voxel by voxel: a neighbour, up to ``connectivity`` steps of one voxel along different axes, is outside."""
    steps = [s for s in itertools.product((-1, 0, 1), repeat=mask.ndim) if 0 < np.abs(s).sum() <= connectivity]
    found = []
    for voxel in np.argwhere(mask):
        neighbours = [tuple(voxel + step) for step in steps]
        inside = [all(0 <= i < n for i, n in zip(at, mask.shape, strict=True)) and mask[at] for at in neighbours]
        if not all(inside):
            found.append(voxel)
    return np.array(found, float)


def brute_distances(prediction, reference, spacing, connectivity):
    a, b = (brute_surface(mask, connectivity) * spacing for mask in (prediction, reference))
    squares = ((a[:, None] - b[None]) ** 2).sum(-1)
    return np.sqrt(squares.min(1)), np.sqrt(squares.min(0))


def random_masks(rng, dimensions):
    """Two blobs or noise, sometimes of one voxel, often at the border."""
    shape = rng.integers(2, 9, dimensions)
    masks = []
    for _ in range(2):
        kind = rng.integers(4)
        mask = np.zeros(shape, bool)
        if kind == 0:
            mask[tuple(rng.integers(0, shape))] = True
        elif kind == 1:
            mask = rng.random(shape) < 0.3
        else:
            low = rng.integers(0, shape)
            mask[tuple(slice(a, a + n) for a, n in zip(low, rng.integers(1, 7, dimensions), strict=True))] = True
        masks.append(mask)
    return masks, tuple(rng.uniform(0.3, 5, dimensions))


def as_segmentation(mask, spacing):
    return Segmentation(mask.astype(np.uint8), tuple(spacing), float(np.prod(spacing)))


@pytest.mark.parametrize("connectivity", [1, 2, 3])
def test_distances_equal_brute_force(connectivity):
    rng, compared = np.random.default_rng(connectivity), 0
    for number in range(MASKS):
        (a, b), spacing = random_masks(rng, 2 + number % 2)
        if not a.any() or not b.any():
            continue
        forth, back = brute_distances(a, b, np.array(spacing), min(connectivity, a.ndim))
        conventions = {
            kind: Conventions(hd95=kind, surface_connectivity=connectivity, tolerances=(0.7, 3))
            for kind in ("max", "pooled")
        }
        found = {
            kind: case_metrics(*(as_segmentation(m, spacing) for m in (a, b)), Targets.from_regions({"x": (1,)}), c)[
                "1"
            ]
            for kind, c in conventions.items()
        }
        everything = np.concatenate([forth, back])
        expected = {
            "HD95": max(np.percentile(forth, 95), np.percentile(back, 95)),
            "ASSD": everything.sum() / (len(forth) + len(back)),
            "MASD": (forth.mean() + back.mean()) / 2,
            "NSD 0.7 mm": ((forth <= 0.7).sum() + (back <= 0.7).sum()) / len(everything),
            "NSD 3 mm": ((forth <= 3).sum() + (back <= 3).sum()) / len(everything),
            "VD": (int(a.sum()) - int(b.sum())) * math.prod(spacing) / 1000,
            "RVD": int(a.sum()) / int(b.sum()) - 1,
        }
        for name, value in expected.items():
            assert found["max"][name] == pytest.approx(value, abs=1e-6), (number, name)
        assert found["pooled"]["HD95"] == pytest.approx(np.percentile(everything, 95), abs=1e-6)
        hausdorff = surface_distances(a, b, spacing, connectivity).hausdorff(100)
        assert hausdorff == pytest.approx(max(forth.max(), back.max()), abs=1e-6)
        compared += 1
    assert compared > 0.9 * MASKS


def test_surface_of_a_full_image_is_its_border():
    assert surface(np.ones((4, 5), bool)).sum() == 20 - 2 * 3
    # a corner that is missing is a neighbour of the middle by a corner only
    mask = np.ones((3, 3, 3), bool)
    mask[0, 0, 0] = False
    assert not surface(mask, 1)[1, 1, 1] and not surface(mask, 2)[1, 1, 1] and surface(mask, 3)[1, 1, 1]
    mask[0, 0, 1] = False
    assert not surface(mask, 1)[1, 1, 1] and surface(mask, 2)[1, 1, 1]


def test_distance_equal_to_the_tolerance_is_within_it():
    a, b = np.zeros((2, 8), bool)
    a[1] = b[4] = True
    assert 3 * 0.1 > 0.3
    assert surface_distances(a, b, (0.1,)).surface_dice(0.3) == 1
    assert surface_distances(a, b, (0.1,)).surface_dice(0.29) == 0
    assert surface_distances(a, b, (0.1,)).hausdorff() == pytest.approx(0.3)


def test_surface_distances_errors():
    a = np.ones((2, 2), bool)
    with pytest.raises(ValueError, match="empty mask"):
        surface_distances(a, ~a, (1, 1))
    with pytest.raises(ValueError, match="with 1 spacings"):
        surface_distances(a, a, (1,))


def label_maps(shape=(6, 7, 8), values=4, spacing=(3.0, 1.0, 1.0), seed=0):
    rng = np.random.default_rng(seed)
    maps = (rng.integers(0, values, shape).astype(np.uint8) for _ in range(2))
    return [Segmentation(voxels, spacing, float(np.prod(spacing))) for voxels in maps]


@pytest.mark.parametrize("labels", [{"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2, "ignore": 3}])
def test_counts_equal_those_of_nnunet(labels):
    prediction, reference = label_maps()
    if "ignore" in labels:
        prediction.voxels[prediction.voxels == 3] = 1
    targets = Targets.from_dataset_json({"labels": {"background": 0, **labels}})
    ignore = reference.voxels == 3 if "ignore" in labels else None
    found = case_metrics(prediction, reference, targets, Conventions())
    assert [*found] == [str(v) for n, v in labels.items() if n != "ignore"]
    for key, metrics in found.items():
        masks = [region_or_label_to_mask(part.voxels, int(key)) for part in (reference, prediction)]
        tp, fp, fn, tn = compute_tp_fp_fn_tn(*masks, ignore)
        assert [metrics[name] for name in ("TP", "FP", "FN", "TN")] == [tp, fp, fn, tn]
        assert metrics["Dice"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
        assert metrics["IoU"] == pytest.approx(tp / (tp + fp + fn))
        assert (metrics["n_pred"], metrics["n_ref"]) == (tp + fp, tp + fn)


def test_ignored_voxels_have_no_surface():
    voxels = np.zeros((3, 9), np.uint8)
    voxels[:, 2:5] = 1
    reference, prediction = voxels.copy(), voxels.copy()
    reference[:, 7], prediction[:, 7] = 3, 1
    targets = Targets.from_dataset_json({"labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}})
    metrics = case_metrics(*(Segmentation(v, (1, 1), None) for v in (prediction, reference)), targets, Conventions())
    assert metrics["1"]["Dice"] == 1 and metrics["1"]["HD95"] == 0
    assert metrics["1"]["TN"] == 3 * 5


def test_regions():
    prediction, reference = label_maps()
    dataset = {
        "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
        "regions_class_order": [1, 2, 3],
    }
    targets = Targets.from_dataset_json(dataset)
    assert [(t.name, t.key) for t in targets.targets] == [
        ("whole", "(1, 2, 3)"),
        ("core", "(2, 3)"),
        ("enhancing", "3"),
    ]
    found = case_metrics(prediction, reference, targets, Conventions())
    for target in targets.targets:
        a, b = (np.isin(part.voxels, target.values) for part in (prediction, reference))
        assert found[target.key]["Dice"] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
        expected = surface_distances(a, b, reference.spacing).hausdorff(95)
        assert found[target.key]["HD95"] == pytest.approx(expected)


def test_brats_by_the_challenges_definition():
    # necrosis 1, oedema 2, enhancing 4: the whole tumour is all of them, the core what is not oedema
    voxels = np.array([[0, 1, 2, 4]], np.uint8)
    for year, enhancing in (("2021", 4), ("2023", 3)):
        shown = np.where(voxels == 4, enhancing, voxels)
        masks = {name: np.isin(shown, values)[0].tolist() for name, values in BRATS[year].items()}
        assert masks == {
            "WT": [False, True, True, True],
            "TC": [False, True, False, True],
            "ET": [False, False, False, True],
        }
    assert math.hypot(240, 240, 155) == pytest.approx(BRATS_DISTANCE, abs=1e-3)


class TestEmpty:
    shape = (6, 8)

    def metrics(self, predicted, labelled, **conventions):
        maps = np.zeros((2, *self.shape), np.uint8)
        maps[0, 2, 2], maps[1, 3, 3] = predicted, labelled
        parts = (Segmentation(voxels, (2.0, 1.0), 2.0) for voxels in maps)
        targets = Targets.from_regions({"a": (1,)})
        return case_metrics(*parts, targets, Conventions(lesions=("all",), **conventions))["1"]

    def test_in_both(self):
        undefined = self.metrics(0, 0)
        for name in ("Dice", "IoU", "HD95", "ASSD", "NSD 2 mm", "RVD", "lesion F1"):
            assert math.isnan(undefined[name]), name
        perfect = self.metrics(0, 0, empty_in_both="perfect")
        names = ("Dice", "IoU", "HD95", "ASSD", "MASD", "NSD 2 mm", "RVD", "lesion F1")
        assert [perfect[name] for name in names] == [1, 1, 0, 0, 0, 1, 0, 1]

    @pytest.mark.parametrize("predicted", [0, 1])
    def test_in_one(self, predicted):
        arguments = (predicted, 1 - predicted)
        metrics = self.metrics(*arguments)
        assert metrics["HD95"] == metrics["ASSD"] == pytest.approx(math.hypot(2 * 6, 8))
        assert (metrics["Dice"], metrics["NSD 2 mm"], metrics["lesion F1"]) == (0, 0, 0)
        assert self.metrics(*arguments, empty_in_one=BRATS_DISTANCE)["HD95"] == BRATS_DISTANCE
        assert math.isnan(self.metrics(*arguments, empty_in_one="nan")["HD95"])
        assert math.isnan(metrics["RVD"]) if predicted else metrics["RVD"] == -1

    def test_names(self):
        conventions = Conventions(tolerances=(1, 2.5), label_tolerances={"a": 3}, lesions=("a",))
        targets = Targets.from_regions({"a": (1,), "b": (2,)})
        found = case_metrics(*label_maps(), targets, conventions)
        assert [[*metrics] for metrics in found.values()] == [metric_names(conventions)] * 2
        assert {"NSD", "NSD 1 mm", "NSD 2.5 mm"} < {*metric_names(conventions)}
        assert found["2"]["NSD"] == found["2"]["NSD 1 mm"] and found["1"]["NSD"] >= found["1"]["NSD 2.5 mm"]
        assert math.isnan(found["2"]["lesion F1"]) and not math.isnan(found["1"]["lesion F1"])


class TestLesions:
    def test_by_hand(self):
        reference = np.array([[1, 1, 0, 0, 1, 0, 0, 1, 0, 0]], bool)
        prediction = np.array([[0, 1, 1, 0, 0, 1, 0, 1, 0, 1]], bool)
        found = detect_lesions(prediction, reference)
        # the first and the last lesion are touched; the components at 5 and 9 touch none
        assert (found.found, found.missed, found.spurious) == (2, 1, 2)
        assert (found.sensitivity, found.precision, found.f1) == (2 / 3, 1 / 2, 4 / 7)
        strict = detect_lesions(prediction, reference, iou=0.5)
        assert (strict.found, strict.missed, strict.spurious) == (1, 2, 3)

    def test_connectivity(self):
        diagonal = np.eye(3, dtype=bool)
        nothing = np.zeros((3, 3), bool)
        assert [detect_lesions(nothing, diagonal, connectivity).missed for connectivity in (1, 2, 3)] == [3, 1, 1]

    def test_against_every_pair(self):
        rng = np.random.default_rng(0)
        for iou in (0.0, 0.5):
            for _ in range(50):
                a, b = rng.random((2, 6, 6, 6)) < 0.12
                found = detect_lesions(a, b, 1, iou)
                (ours, n), (theirs, m) = ndimage.label(a), ndimage.label(b)
                hit = np.zeros((m, n), bool)
                for i, j in itertools.product(range(m), range(n)):
                    p, q = theirs == i + 1, ours == j + 1
                    hit[i, j] = (p & q).sum() / (p | q).sum() > iou
                assert (found.found, found.missed) == (hit.any(1).sum(), m - hit.any(1).sum())
                assert found.spurious == n - hit.any(0).sum()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"empty_in_both": "0"}, "'0' is not one of nan, perfect"),
        ({"empty_in_one": "far"}, "'far' is not diagonal, nan or a number of mm"),
        ({"empty_in_one": -1.0}, "is no distance in mm"),
        ({"hd95": "mean"}, "'mean' is not one of max, pooled"),
        ({"tolerances": (-1,)}, "tolerance -1 is no distance"),
        ({"tolerances": (), "label_tolerances": {"a": 1}}, "need one for the other labels"),
        ({"surface_connectivity": 6}, "connectivity 6 is not 1"),
        ({"lesion_iou": 0.3}, "in \\[0.5, 1\\)"),
    ],
)
def test_conventions_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        Conventions(**arguments)


def test_geometry_and_values_are_checked():
    prediction, reference = label_maps()
    targets = Targets.from_dataset_json({"labels": {"background": 0, "a": 1, "b": 2}})
    with pytest.raises(ValueError, match="the prediction holds the value 3, which is not a label"):
        case_metrics(prediction, reference, targets, Conventions())
    other = Segmentation(reference.voxels[:3], reference.spacing, None)
    with pytest.raises(ValueError, match="has 3x7x8 voxels, its reference 6x7x8"):
        case_metrics(other, reference, targets, Conventions())
    other = Segmentation(reference.voxels, (1.0, 1.0, 1.0), None)
    with pytest.raises(ValueError, match="spacing is"):
        case_metrics(other, reference, targets, Conventions())


def test_parse_region():
    assert parse_region("WT=1,2,4") == ("WT", (1, 2, 4))
    assert parse_region("3") == ("3", (3,))
    for text in ("WT=", "a=b", "0", "WT=1,2,1"):
        with pytest.raises(ValueError, match="--label"):
            parse_region(text)
