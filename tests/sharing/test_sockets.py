"""A package as an algorithm: its entry point takes a run of grand-challenge.org, and ordinary folders still."""

from __future__ import annotations

import json
import runpy
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from .conftest import invoke, some_images


def test_entry_point(trained, model, tmp_path, monkeypatch):
    sockets = tmp_path / "sockets.json"
    sockets.write_text(json.dumps({"inputs": {"mri": "T2"}, "output": "ball"}))
    package = tmp_path / "package"
    with pytest.raises(ValueError, match=r"the inputs of ball \(mri: T2\) are not the channels MRI"):
        invoke("package", model, "-f", 1, "-o", package, "--sockets", sockets)
    assert not package.exists()
    sockets.write_text(json.dumps({"inputs": {"mri": "MRI"}, "output": "ball"}))
    invoke("package", model, "-f", 1, "-o", package, "--sockets", sockets)

    images = some_images(trained, tmp_path / "images")
    image = sitk.ReadImage(str(images / "ball_0_0000.nii.gz"))[4:16, 4:18, 4:14]
    sitk.WriteImage(image, str(images / "ball_0_0000.nii.gz"))
    run = tmp_path / "input"
    (run / "images" / "mri").mkdir(parents=True)
    sitk.WriteImage(image, str(run / "images" / "mri" / "0b56.mha"))

    invoke("package", "verify", package)
    for folder, output in ((images, "ordinary"), (run, "output")):
        arguments = [folder, tmp_path / output, "--disable-tta", "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, arguments)])
        with pytest.raises(SystemExit, match="0"):
            runpy.run_path(str(package / "predict.py"), run_name="__main__")
    found = sitk.ReadImage(str(tmp_path / "output" / "images" / "ball" / "0b56.mha"))
    expected = sitk.ReadImage(str(tmp_path / "ordinary" / "ball_0.nii.gz"))
    assert len(np.unique(sitk.GetArrayFromImage(expected))) > 1
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(expected))
    assert found.GetOrigin() == image.GetOrigin()
