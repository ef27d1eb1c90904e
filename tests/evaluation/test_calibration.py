"""Temperatures of known probabilities, and the command on a model's folder."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.special import expit, softmax
from typer.testing import CliRunner

from nnunet_transformers import cli
from nnunet_transformers.evaluation.calibration import Sample, calibrate, fit, load_temperature, sample
from nnunet_transformers.evaluation.targets import Targets


def overconfident(temperature, cases=6, classes=3, voxels=4000, has_regions=False):
    """Samples whose classes follow the probabilities of logits divided by a temperature."""
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(cases):
        logits = rng.normal(0, 3, (voxels, classes))
        if has_regions:
            targets = (rng.uniform(size=logits.shape) < expit(logits / temperature)).astype(float)
        else:
            p = softmax(logits / temperature, axis=1)
            targets = np.eye(classes)[(rng.uniform(size=(voxels, 1)) > p.cumsum(1)[:, :-1]).sum(1)]
        samples.append(Sample(logits, targets))
    return samples


@pytest.mark.parametrize("has_regions", [False, True])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_finds_the_temperature(temperature, has_regions):
    found = fit(overconfident(temperature, has_regions=has_regions), has_regions)
    assert found.temperature == pytest.approx(temperature, rel=0.04)
    assert found.ece < 0.012 and found.nll < found.nll_before + 1e-3
    if temperature != 1:
        assert found.ece_before > 3 * found.ece and found.nll < found.nll_before - 0.01


def test_is_measured_on_other_cases():
    """Each of two cases with opposite temperatures is scaled by the other's, which makes both worse."""
    over, under = overconfident(3.0, cases=1)[0], overconfident(0.4, cases=1)[0]
    found = fit([over, under])

    def nll(sample, temperature):
        p = softmax(sample.logits / temperature, axis=1)
        return -np.log((p * sample.targets).sum(1)).mean()

    assert found.nll == pytest.approx((nll(over, 0.4) + nll(under, 3.0)) / 2, rel=0.15)
    assert found.nll > found.nll_before + 0.1
    with pytest.raises(ValueError, match="two validation cases to be checked, there is 1"):
        fit([over])


class TestSample:
    def test_box_and_ignore(self):
        label = np.zeros((30, 30, 30), np.uint8)
        label[15, 15, 15], label[16, 15, 15] = 1, 2
        p = np.zeros((2, 30, 30, 30), np.float32)
        p[0], p[1] = 0.9, 0.1
        targets = Targets.from_dataset_json({"labels": {"background": 0, "a": 1, "ignore": 2}})
        found = sample(p, label, targets, False)
        assert len(found.logits) == 11**3 - 1  # five voxels around the one of the label, less one to ignore
        assert found.targets.sum(0).tolist() == [11**3 - 2, 1]
        np.testing.assert_allclose(softmax(found.logits, axis=1), [[0.9, 0.1]] * len(found.logits), rtol=1e-5)

    def test_regions(self):
        dataset = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
        targets = Targets.from_dataset_json(dataset)
        label = np.array([[[0, 1, 2]]], np.uint8)
        found = sample(np.full((2, 1, 1, 3), 0.75, np.float32), label, targets, True)
        assert sorted(map(tuple, found.targets.tolist())) == [(0, 0), (1, 0), (1, 1)]
        np.testing.assert_allclose(found.logits, np.log(3), rtol=1e-5)


def test_command(tmp_path):
    model, labels = tmp_path / "model", tmp_path / "labels"
    rng = np.random.default_rng(0)
    labels.mkdir()
    for case in range(4):
        validation = model / f"fold_{case % 2}/validation"
        validation.mkdir(parents=True, exist_ok=True)
        logits = rng.normal(0, 4, (2, 4, 20, 20))
        label = (rng.uniform(size=(4, 20, 20)) < softmax(logits / 2, axis=0)[1]).astype(np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(label), str(labels / f"case_{case}.nii.gz"))
        np.savez(validation / f"case_{case}.npz", probabilities=softmax(logits, axis=0).astype(np.float32))
    dataset = {"labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}}
    (model / "dataset.json").write_text(json.dumps(dataset))
    result = CliRunner().invoke(cli.app, ["calibrate", str(model), str(labels)])
    assert result.exit_code == 0, result.output
    assert load_temperature(model) == pytest.approx(2, rel=0.05)
    stored = json.loads((model / "calibration.json").read_text())
    assert f"{stored['ece_before']:.4f} before, {stored['ece']:.4f} after" in result.output
    assert stored["ece"] < 0.03 < stored["ece_before"] and stored["cases"] == 4
    # a fold that was kept under another name counts as little as a case that is ignored as a whole
    shutil.copytree(model / "fold_0", model / "fold_0_old")
    dataset["labels"]["ignore"] = 2
    (model / "dataset.json").write_text(json.dumps(dataset))
    sitk.WriteImage(sitk.GetImageFromArray(np.full((4, 20, 20), 2, np.uint8)), str(labels / "case_3.nii.gz"))
    assert CliRunner().invoke(cli.app, ["calibrate", str(model), str(labels)]).exit_code == 0
    assert json.loads((model / "calibration.json").read_text())["cases"] == 3
    sitk.WriteImage(sitk.GetImageFromArray(np.full((4, 20, 20), 7, np.uint8)), str(labels / "case_3.nii.gz"))
    unknown = CliRunner().invoke(cli.app, ["calibrate", str(model), str(labels)])
    assert "case_3.nii.gz holds the value 7, which is not a label of dataset.json" in str(unknown.exception)
    (model / "calibration.json").unlink()
    (model / "calibration.json").mkdir()
    (labels / "case_0.nii.gz").rename(labels / "elsewhere.nii.gz")
    at_once = CliRunner().invoke(cli.app, ["calibrate", str(model), str(labels)])
    assert "calibration.json is a folder" in str(at_once.exception)
    (model / "calibration.json").rmdir()
    missing = CliRunner().invoke(cli.app, ["calibrate", str(model), str(labels)])
    assert missing.exit_code == 1 and "label file" in str(missing.exception)
    (model / "calibration.json").write_text('{"temperature": -1}')
    with pytest.raises(ValueError, match="calibrate again"):
        load_temperature(model)


def test_cases_that_were_trained_on(tmp_path):
    (tmp_path / "fold_all" / "validation").mkdir(parents=True)
    (tmp_path / "fold_all" / "validation" / "a.npz").touch()
    with pytest.raises(FileNotFoundError, match="fold_all only, which was trained on its validation cases"):
        calibrate(tmp_path, tmp_path)
