"""A DICOM series becomes the DICOM-SEG that the NIfTI file's segmentation is, by every way of prediction."""

from __future__ import annotations

import shutil
from unittest.mock import Mock

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_transformers.cli._mistakes import Interrupted
from nnunet_transformers.formats.dicom_folder import DicomFolder
from nnunet_transformers.inference.predictor import BatchedPredictor
from nnunet_transformers.sharing import load_model
from tests.formats.series import oblique, read_segmentation, write_series

from .conftest import invoke, some_images


@pytest.fixture(scope="module")
def cases(trained, tmp_path_factory):
    """Return a folder of a NIfTI file and one of a DICOM series of the same image."""
    pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")
    folder = tmp_path_factory.mktemp("dicom")
    path = some_images(trained, folder / "nifti") / "ball_0_0000.nii.gz"
    image = sitk.ReadImage(str(path))
    # one patch
    image = oblique(sitk.Cast(sitk.Round((image + 10) * 100), sitk.sitkInt16)[4:16, 4:18, 4:14])
    sitk.WriteImage(image, str(path))
    write_series(folder / "dicom" / "ball_0", image)
    return folder


def test_all_ways(cases, model, package, tmp_path, monkeypatch):
    image = sitk.ReadImage(str(cases / "nifti" / "ball_0_0000.nii.gz"))
    words = ("-f", 1, "--disable_tta", "-device", "cpu")
    for kind in ("nifti", "dicom"):
        assert invoke("package", "predict", package, cases / kind, tmp_path / kind, *words).exit_code == 0
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "nifti" / "ball_0.nii.gz")))
    assert len(np.unique(expected)) > 1
    output = tmp_path / "output"
    invoke(
        "predict", "-m", model, "-i", cases / "dicom", "-o", output, *words, "--batch-size", 1, "--save_probabilities"
    )
    segmenter = load_model(package, "cpu", [1], use_mirroring=False)
    np.testing.assert_array_equal(segmenter.predict(cases / "dicom"), expected)
    segmenter.predict_file(cases / "dicom" / "ball_0", tmp_path / "file.dcm")
    for path in (tmp_path / "dicom" / "ball_0.dcm", output / "ball_0.dcm", tmp_path / "file.dcm"):
        found, names = read_segmentation(path, image)
        np.testing.assert_array_equal(found, expected)
        assert names == [name for name, value in segmenter.labels.items() if value]
    written = {path.name for path in output.iterdir()}
    assert written == {"ball_0.dcm", "ball_0.npz", "ball_0.pkl", "dataset.json", "plans.json"}
    # killed before the segmentation was written, the case is predicted again
    with monkeypatch.context() as patch:
        patch.setattr(DicomFolder, "write", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(Interrupted):
            invoke(
                "predict", "-m", model, "-i", cases / "dicom", "-o", tmp_path / "killed", *words, "--save_probabilities"
            )
    assert {path.suffix for path in (tmp_path / "killed").glob("ball_0.*")} == {".npz", ".pkl"}
    before = (output / "ball_0.dcm").read_bytes()
    invoke("predict", "-m", model, "-i", cases / "dicom", "-o", output, *words, "--continue_prediction")
    assert (output / "ball_0.dcm").read_bytes() == before
    # what is asked for beside the segmentation is not there yet
    (output / "ball_0.npz").unlink()
    more = ("--continue_prediction", "--save_probabilities")
    invoke("predict", "-m", model, "-i", cases / "dicom", "-o", output, *words, *more)
    assert (output / "ball_0.npz").is_file()


def test_mistakes(cases, package, tmp_path):
    segmenter = load_model(package, "cpu", [0])
    shutil.copytree(cases / "dicom", tmp_path / "two")
    image = sitk.ReadImage(str(cases / "nifti" / "ball_0_0000.nii.gz"))
    write_series(tmp_path / "two" / "ball_1", image)
    with pytest.raises(ValueError, match="has 2 series, ball_0, ball_1; name the folder of one"):
        segmenter.predict(tmp_path / "two")
    series = [tmp_path / "two" / "ball_0", tmp_path / "two" / "ball_1"]
    for several in (series, [cases / "nifti" / "ball_0_0000.nii.gz", series[1]]):
        with pytest.raises(ValueError, match="and 1 more, of which one is a folder: give files of channels, or one f"):
            segmenter.predict(several)
    with pytest.raises(ValueError, match=r"does not end with \.dcm"):
        segmenter.predict_file(cases / "dicom", tmp_path / "labels.nii.gz")


def test_a_series_that_cannot_be_the_source(cases, package, tmp_path, monkeypatch):
    """It is refused before anything is computed for it."""
    from pydicom import dcmread

    shutil.copytree(cases / "dicom", tmp_path / "in")
    for path in (tmp_path / "in" / "ball_0").iterdir():
        content = dcmread(path)
        del content.StudyInstanceUID
        content.save_as(path)
    predict = Mock(side_effect=AssertionError("it was predicted"))
    monkeypatch.setattr(BatchedPredictor, "predict_slabs", predict)
    result = invoke("package", "predict", package, tmp_path / "in", tmp_path / "out", "-f", 0, "-device", "cpu")
    assert result.exit_code == 1
    assert "ball_0: the series cannot be the source of a DICOM-SEG" in result.output
    with pytest.raises(ValueError, match="the series cannot be the source of a DICOM-SEG"):
        load_model(package, "cpu", [0]).predict_file(tmp_path / "in", tmp_path / "file.dcm")


def test_file(trained, package, tmp_path):
    segmenter = load_model(package, "cpu", [0], use_mirroring=False)
    path = some_images(trained, tmp_path / "images") / "ball_0_0000.nii.gz"
    segmenter.predict_file(path, tmp_path / "labels.nii.gz")
    found = sitk.ReadImage(str(tmp_path / "labels.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), segmenter.predict(path))
    assert found.GetOrigin() == sitk.ReadImage(str(path)).GetOrigin()
    with pytest.raises(ValueError, match=r"does not end with \.nii\.gz"):
        segmenter.predict_file(path, tmp_path / "labels.dcm")


def test_other_cases_and_maps(cases, model, tmp_path):
    """A series that cannot be read stops no other; maps lie in folders of their own."""
    shutil.copytree(cases / "dicom", tmp_path / "in")
    image = sitk.ReadImage(str(cases / "nifti" / "ball_0_0000.nii.gz"))
    write_series(tmp_path / "in" / "a_bad", image)[2].unlink()
    words = ("predict", "-m", model, "-i", tmp_path / "in", "-o", tmp_path / "out", "-f", 1, "--disable_tta")
    with pytest.raises(ValueError, match="1 of 2 cases were not predicted, the first a_bad: slices of the"):
        invoke(*words, "-device", "cpu", "--save_uncertainty")
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert written == {"ball_0.dcm", "entropy/ball_0.nii.gz", "dataset.json", "plans.json"}
    with pytest.raises(
        FileNotFoundError, match=r"there is no .*low/a_bad\.nii\.gz; predict the stage .*make a package of the cascade"
    ):
        invoke(*words, "-device", "cpu", "-prev_stage_predictions", tmp_path / "low")
