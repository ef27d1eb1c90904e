"""Mean IoU over thresholds: by hand, against a naive computation, and on what nnU-Net itself exports."""

from __future__ import annotations

import json
import math
import re
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from skimage import io
from typer.testing import CliRunner

from nnunet_transformers import cli
from nnunet_transformers.evaluation import THRESHOLDS, IoUSummary, evaluate_predictions, iou_at_thresholds


class TestByHand:
    def test_thresholds(self):
        assert THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)

    def test_ious(self):
        probabilities = np.array([[0.96, 0.7], [0.5, 0.2]], dtype=np.float32)
        reference = np.array([[True, False], [True, False]])
        # at 0.5 three predicted, two right; above 0.5 two, one right; above 0.7 one, right
        expected = [2 / 3] + [1 / 3] * 4 + [1 / 2] * 5
        assert iou_at_thresholds(probabilities, reference) == pytest.approx(expected)

    def test_ignored_voxels_do_not_count(self):
        probabilities = np.array([0.9, 0.9, 0.1])
        reference = np.array([True, False, False])
        assert iou_at_thresholds(probabilities, reference, [0.5]) == [0.5]
        assert iou_at_thresholds(probabilities, reference, [0.5], np.array([False, True, False])) == [1.0]

    def test_empty_union_is_nan_and_left_out_of_means(self):
        nothing = iou_at_thresholds(np.array([0.6, 0.1]), np.array([False, False]))
        assert nothing[:3] == [0, 0, 0]  # something is predicted up to 0.6
        assert all(math.isnan(iou) for iou in nothing[3:])
        summary = IoUSummary(1, {"a": nothing, "b": [0.5] * 10})
        assert summary.per_threshold == [0.25] * 3 + [0.5] * 7
        assert summary.mean_iou == pytest.approx((3 * 0.25 + 7 * 0.5) / 10)
        assert summary.empty == 7
        assert json.loads(json.dumps(summary.as_json(), allow_nan=False))["iou_per_case"]["a"][-1] is None

    def test_nothing_at_all(self):
        summary = IoUSummary(1, {"a": [math.nan] * 10})
        assert math.isnan(summary.mean_iou)
        assert summary.as_json()["mean_iou"] is None

    def test_shapes(self):
        with pytest.raises(ValueError, match=r"\(2,\), but a reference of \(3,\)"):
            iou_at_thresholds(np.zeros(2), np.zeros(3, dtype=bool))


@settings(max_examples=50, deadline=None)
@given(data=st.data(), shape=hnp.array_shapes(min_dims=1, max_dims=3, max_side=5))
def test_against_a_naive_computation(data, shape):
    probabilities = data.draw(hnp.arrays(np.float64, shape, elements=st.sampled_from([0, 0.3, *THRESHOLDS, 1])))
    reference = data.draw(hnp.arrays(bool, shape))
    for threshold, iou in zip(THRESHOLDS, iou_at_thresholds(probabilities, reference), strict=True):
        predicted = {i for i, p in np.ndenumerate(probabilities) if p >= threshold}
        actual = {i for i, r in np.ndenumerate(reference) if r}
        if predicted | actual:
            assert iou == len(predicted & actual) / len(predicted | actual)
        else:
            assert math.isnan(iou)


def write_folders(folder, cases=2, size=(6, 5), classes=2, **dataset):
    """Predictions as nnU-Net saves them (classes, 1, height, width) and their labels, as PNG."""
    rng = np.random.default_rng(0)
    predictions, labels = folder / "predictions", folder / "labels"
    predictions.mkdir()
    labels.mkdir()
    arrays = {}
    for case in (f"em_{i}" for i in range(cases)):
        probabilities = rng.dirichlet(np.ones(classes), size=(1, *size)).transpose(3, 0, 1, 2).astype(np.float32)
        reference = rng.integers(0, classes, size).astype(np.uint8)
        np.savez_compressed(predictions / f"{case}.npz", probabilities=probabilities)
        (predictions / f"{case}.pkl").write_bytes(b"never opened")
        io.imsave(predictions / f"{case}.png", probabilities.argmax(0)[0].astype(np.uint8), check_contrast=False)
        io.imsave(labels / f"{case}.png", reference, check_contrast=False)
        arrays[case] = probabilities[:, 0], reference
    names = {"background": 0, **{f"label{i}": i for i in range(1, classes)}}
    description = {"channel_names": {"0": "EM"}, "labels": names, "file_ending": ".png", **dataset}
    (predictions / "dataset.json").write_text(json.dumps(description))
    return predictions, labels, arrays


class TestFolders:
    @pytest.mark.parametrize("label", [1, 2])
    def test_means(self, tmp_path, label):
        predictions, labels, arrays = write_folders(tmp_path, classes=3)
        summary = evaluate_predictions(predictions, labels, label)
        every = [
            [((p[label] >= t) & (r == label)).sum() / ((p[label] >= t) | (r == label)).sum() for t in THRESHOLDS]
            for p, r in arrays.values()
        ]
        assert summary.mean_iou == pytest.approx(np.mean(every))
        assert summary.per_threshold == pytest.approx(np.mean(every, axis=0))

    def test_without_dataset_json(self, tmp_path):
        predictions, labels, _ = write_folders(tmp_path)
        expected = evaluate_predictions(predictions, labels)
        (predictions / "dataset.json").unlink()
        assert evaluate_predictions(predictions, labels) == expected

    def test_label_that_is_a_region(self, tmp_path):
        """Region-based training has a channel for each region and none for background."""
        regions = {"background": 0, "all": [1, 2], "small": 2}
        predictions, labels, arrays = write_folders(tmp_path, classes=3, labels=regions, regions_class_order=[1, 2])
        for case, (probabilities, _) in arrays.items():
            np.savez(predictions / f"{case}.npz", probabilities=probabilities[1:, None])
        summary = evaluate_predictions(predictions, labels, 2)
        probabilities, reference = arrays["em_0"]
        assert summary.per_case["em_0"] == iou_at_thresholds(probabilities[2], reference == 2)
        with pytest.raises(ValueError, match="--label 1 is not among the classes"):
            evaluate_predictions(predictions, labels, 1)

    def test_ignore_label(self, tmp_path):
        labels = {"background": 0, "membrane": 1, "ignore": 2}
        predictions, folder, arrays = write_folders(tmp_path, cases=1, labels=labels)
        probabilities, reference = arrays["em_0"]
        reference[0] = 2
        io.imsave(folder / "em_0.png", reference, check_contrast=False)
        expected = iou_at_thresholds(probabilities[1][1:], reference[1:] == 1)
        assert evaluate_predictions(predictions, folder).per_case["em_0"] == expected

    def test_validation_of_a_fold(self, tmp_path):
        """Its dataset.json is two folders above; without it the ignored voxels would count."""
        labels = {"background": 0, "membrane": 1, "ignore": 2}
        predictions, folder, arrays = write_folders(tmp_path, cases=1, labels=labels)
        io.imsave(folder / "em_0.png", np.full_like(arrays["em_0"][1], 2), check_contrast=False)
        validation = tmp_path / "model" / "fold_0" / "validation"
        validation.parent.mkdir(parents=True)
        predictions.rename(validation)
        (validation / "dataset.json").rename(tmp_path / "model" / "dataset.json")
        assert evaluate_predictions(validation, folder).empty == len(THRESHOLDS)

    def test_command(self, tmp_path):
        predictions, labels, _ = write_folders(tmp_path)
        io.imsave(labels / "other.png", np.zeros((6, 5), np.uint8), check_contrast=False)
        output = tmp_path / "summary.json"
        result = CliRunner().invoke(cli.app, ["evaluate-iou", str(predictions), str(labels), "-o", str(output)])
        assert result.exit_code == 0, result.output
        content = json.loads(output.read_text())
        assert f"{100 * content['mean_iou']:.2f}" in result.output
        assert "1 label files have no prediction, other first" in result.output
        assert content["cases_without_prediction"] == ["other"]
        assert len(content["mean_iou_per_threshold"]) == len(content["thresholds"]) == 10
        assert not list(tmp_path.glob("*.partial*"))


def break_no_probabilities(predictions, labels):
    (predictions / "em_1.npz").unlink()


def break_no_predictions(predictions, labels):
    for path in predictions.iterdir():
        path.unlink()


def break_no_label_file(predictions, labels):
    (labels / "em_0.png").unlink()


def break_shape(predictions, labels):
    io.imsave(labels / "em_0.png", np.zeros((6, 6), np.uint8), check_contrast=False)


def break_truncated(predictions, labels):
    path = predictions / "em_0.npz"
    path.write_bytes(path.read_bytes()[:100])


def break_pickled(predictions, labels):
    np.savez(predictions / "em_0.npz", probabilities=np.array([{"evil": 1}], dtype=object))


def break_key(predictions, labels):
    np.savez(predictions / "em_0.npz", softmax=np.zeros((2, 1, 6, 5)))


def break_unknown_value(predictions, labels):
    io.imsave(labels / "em_0.png", np.full((6, 5), 255, np.uint8), check_contrast=False)


def break_colour(predictions, labels):
    io.imsave(labels / "em_0.png", np.zeros((6, 5, 3), np.uint8), check_contrast=False)


def break_image(predictions, labels):
    (labels / "em_0.png").write_bytes(b"no image")


def break_later_image(predictions, labels):
    (labels / "em_1.png").write_bytes(b"no image")


def break_reader(predictions, labels):
    path = predictions / "dataset.json"
    content = {**json.loads(path.read_text()), "overwrite_image_reader_writer": "load_json"}
    path.write_text(json.dumps(content))


def break_dataset_json(predictions, labels):
    (predictions / "dataset.json").write_text("{}")


def break_kinds(predictions, labels):
    (predictions / "dataset.json").unlink()
    (labels / "notes.txt").touch()


@pytest.mark.parametrize(
    "harm,label,message",
    [
        (break_no_probabilities, 1, r"em_1.npz is missing; predict again with .*--save_probabilities"),
        (break_no_predictions, 1, r"(should hold|holds no .npz; predict again with .*--save_probabilities)"),
        (break_no_label_file, 1, r"label file .*em_0.png of the prediction .*em_0.npz is missing"),
        (break_shape, 1, r"em_0: probabilities of shape \(1, 6, 5\), but a reference of \(1, 6, 6\)"),
        (break_truncated, 1, "em_0.npz is truncated or holds no `probabilities`"),
        (break_pickled, 1, "em_0.npz is truncated or holds no `probabilities`"),
        (break_key, 1, "em_0.npz is truncated or holds no `probabilities`"),
        (break_unknown_value, 1, "holds the value 255, which is not a label of dataset.json"),
        (break_colour, 1, "em_0.png has 3 channels; a segmentation has one"),
        (break_image, 1, "Unable to determine a reader"),
        (break_later_image, 1, "em_1.png cannot be read as a segmentation"),
        (break_dataset_json, 1, "is truncated or not a dataset.json of nnU-Net"),
        (break_reader, 1, "names 'load_json' as image_reader_writer"),
        (break_kinds, 1, "files of one ending, found .png, .txt"),
        (lambda predictions, labels: None, 2, "--label 2 is not among the classes"),
        (lambda predictions, labels: (predictions / "dataset.json").unlink(), 2, "not among the 2 classes of"),
        (lambda predictions, labels: (predictions / "dataset.json").unlink(), -1, "not among the 2 classes of"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, capsys, tmp_path, harm, label, message):
    predictions, labels, _ = write_folders(tmp_path)
    harm(predictions, labels)
    output = tmp_path / "summary.json"
    arguments = ["evaluate-iou", str(predictions), str(labels), f"--label={label}", "-o", str(output)]
    monkeypatch.setattr(sys, "argv", ["nnunet-transformers", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capsys.readouterr()
    assert stop.value.code == 1
    assert re.search(message, captured.err), captured.err
    assert captured.err.count("\n") == 1
    assert not output.exists()


@pytest.mark.parametrize("transpose", [(0, 1, 2), (0, 2, 1)])
def test_what_nnunet_exports(tmp_path, transpose):
    """nnU-Net undoes transposition, resampling and cropping in the probabilities it saves."""
    size, crop = (12, 9), (slice(2, 10), slice(1, 8))
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 2, size).astype(np.uint8)
    dataset = {"channel_names": {"0": "EM"}, "labels": {"background": 0, "membrane": 1}, "file_ending": ".png"}
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "spacing": [1.0, 1.0],
        "architecture": {},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling,
    }
    backward = [transpose.index(axis) for axis in range(3)]
    plans = PlansManager(
        {
            "transpose_forward": list(transpose),
            "transpose_backward": backward,
            "image_reader_writer": "NaturalImage2DIO",
            "label_manager": "LabelManager",
            "configurations": {"2d": configuration},
        }
    )
    # a confident and right prediction of the cropped, transposed image
    cropped = np.moveaxis(reference[crop][None], (0, 1, 2), backward)
    logits = torch.from_numpy(np.stack([1 - cropped, cropped]).astype(np.float32) * 20 - 10)
    boxes = [[0, 1], [2, 10], [1, 8]]
    properties = {
        "spacing": (999, 1, 1),
        "shape_after_cropping_and_before_resampling": cropped.shape,
        "shape_before_cropping": tuple(np.array((1, *size))[list(transpose)]),
        "bbox_used_for_cropping": [boxes[axis] for axis in transpose],
    }
    predictions, labels = tmp_path / "predictions", tmp_path / "labels"
    predictions.mkdir()
    labels.mkdir()
    export_prediction_from_logits(
        logits, properties, plans.get_configuration("2d"), plans, dataset, str(predictions / "em_0"), True, 1
    )
    (predictions / "dataset.json").write_text(json.dumps(dataset))
    inside = np.zeros_like(reference)
    inside[crop] = reference[crop]
    io.imsave(labels / "em_0.png", inside, check_contrast=False)
    assert np.load(predictions / "em_0.npz")["probabilities"].shape == (2, 1, *size)
    assert evaluate_predictions(predictions, labels).per_case["em_0"] == [1.0] * 10
