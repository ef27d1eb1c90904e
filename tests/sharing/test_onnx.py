"""The ONNX export's own runner gives the labels of the package."""

from __future__ import annotations

import json
import runpy
import shutil
import sys

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_transformers.sharing import export_onnx, load_package, onnx_export
from nnunet_transformers.sharing.contents import TEMPLATES
from nnunet_transformers.sharing.segmenter import Segmenter, Stage

from .conftest import invoke


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_runner(package, tmp_path, half):
    """With a small network, as the conversion of a large one takes long; two folds, flips, crop and padding."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    models = load_package(package, torch.device("cpu"))
    predictor = models[0].predictor
    predictor.allowed_mirroring_axes = (0, 2)
    heads = predictor.label_manager.num_segmentation_heads
    predictor.network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.LeakyReLU(), nn.Conv3d(4, heads, 1))
    weights = predictor.network.state_dict()
    predictor.list_of_parameters = [{k: v + shift for k, v in weights.items()} for shift in (0.0, 0.1)]
    networks = export_onnx(models, tmp_path / "onnx", half)

    patch = predictor.configuration_manager.patch_size
    image = np.random.default_rng(0).normal(size=(1, patch[0] + 7, patch[1] + 9, patch[2] - 2)).astype(np.float32)
    image[:, :2] = 0
    expected = Segmenter([Stage(predictor)]).predict(image, predictor.configuration_manager.spacing)
    segment = runpy.run_path(str(tmp_path / "onnx" / "run.py"))["segment"]
    description = json.loads((tmp_path / "onnx" / "model.json").read_text())
    sessions = [onnxruntime.InferenceSession(str(path)) for path in networks]
    labels = segment(image, description, sessions, np.load(tmp_path / "onnx" / description["window"]))
    assert len(np.unique(expected)) > 1
    # networks round differently, so classes that are equally likely may change
    assert (labels != expected).mean() < 1e-3
    assert description["channels"] == ["MRI"]
    assert description["precision"] == ("float16" if half else "float32")
    kinds = {tensor.data_type for tensor in pytest.importorskip("onnx").load(networks[0]).graph.initializer}
    assert kinds == {10 if half else 1}  # ONNX's numbers of FLOAT16 and FLOAT


def test_mistakes_of_the_runners_user(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    runner = shutil.copyfile(TEMPLATES / "run_onnx.py", tmp_path / "run.py")
    (tmp_path / "model.json").write_text(json.dumps({"channels": ["T1", "T2"]}))
    np.save(tmp_path / "image.npy", np.zeros((4, 5, 6)))
    for words, message in (
        ((), "python run.py IMAGE.npy LABELS.npy"),
        (("image.npy", "labels.npy"), "with 2 channels: T1"),
    ):
        monkeypatch.setattr(sys, "argv", ["run.py", *(str(tmp_path / word) for word in words)])
        with pytest.raises(SystemExit, match=message):
            runpy.run_path(str(runner), run_name="__main__")


def test_what_cannot_be_exported(package, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="specify the format, --onnx"):
        invoke("package", "export", package, "-o", tmp_path / "onnx")
    models = load_package(package, torch.device("cpu"))
    with pytest.raises(ValueError, match="make a package of one model"):
        export_onnx([*models, *models], tmp_path / "onnx")
    monkeypatch.setitem(models[0].predictor.configuration_manager.configuration, "use_mask_for_norm", [True])
    with pytest.raises(ValueError, match="the runner has no ZScoreNormalization inside of the non-zero mask"):
        export_onnx(models, tmp_path / "onnx")
    monkeypatch.setattr(onnx_export, "NEEDED", ("no_such_package",))
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'nnunet-transformers\[onnx\]'"):
        export_onnx(models, tmp_path / "onnx")


def test_spacing_is_that_of_the_given_image(package, monkeypatch):
    """Along z, y, x, where networks get the axes in another order."""
    (model,) = load_package(package, torch.device("cpu"))
    plans, plan = model.predictor.plans_manager.plans, model.predictor.configuration_manager.configuration
    monkeypatch.setitem(plans, "transpose_forward", [2, 0, 1])
    monkeypatch.setitem(plans, "transpose_backward", [1, 2, 0])
    for spacing, expected in (([5.0, 0.7, 0.8], [0.7, 0.8, 5.0]), ([0.7, 0.8], [0.7, 0.8, None])):
        monkeypatch.setitem(plan, "spacing", spacing)
        assert onnx_export.describe(model)["spacing"] == expected
