"""Maps of entropy and disagreement against their definition, and the command that writes them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIOWithReorient
from scipy.stats import entropy

from nnunet_transformers.inference import BatchedPredictor, uncertainty
from nnunet_transformers.inference.uncertainty import uncertainty_maps, write_maps
from tests.inference.test_command import folders  # noqa: F401  (fixture)
from tests.sharing.conftest import invoke, some_images
from tests.trainers.conftest import CPU


class TestMaps:
    def test_classes(self):
        folds = torch.randn(3, 4, 5, 6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
        found = uncertainty_maps([*folds]).double()
        p = folds.softmax(1).numpy()
        total = entropy(p.mean(0), axis=0, base=4)
        torch.testing.assert_close(found[0], torch.tensor(total), atol=1e-6, rtol=1e-5)
        mutual = total - np.mean([entropy(one, axis=0, base=4) for one in p], axis=0)
        torch.testing.assert_close(found[1], torch.tensor(mutual), atol=1e-6, rtol=1e-4)
        assert found[1].min() > 0 and found.max() <= 1
        # any part of an image alone
        part = uncertainty_maps([fold[:, 2:4] for fold in folds])
        torch.testing.assert_close(part, uncertainty_maps([*folds])[:, 2:4], atol=1e-6, rtol=1e-6)

    def test_regions(self):
        folds = torch.randn(2, 3, 4, 4, dtype=torch.float64)
        found = uncertainty_maps([*folds], has_regions=True).double()
        p = folds.sigmoid().numpy()
        total = entropy(np.stack([p.mean(0), 1 - p.mean(0)]), axis=0, base=2).mean(0)
        torch.testing.assert_close(found[0], torch.tensor(total), atol=1e-6, rtol=1e-5)

    def test_extremes(self):
        sure, torn = torch.tensor([[60.0], [0.0]]), torch.zeros(2, 1)
        assert uncertainty_maps([sure]).flatten().tolist() == pytest.approx([0, 0])
        assert uncertainty_maps([torn, torn]).flatten().tolist() == [1, 0]
        # sure of different classes
        assert uncertainty_maps([sure, sure.flip(0)]).flatten().tolist() == pytest.approx([1, 1])

    def test_half_precision_is_not_changed(self):
        logits = torch.randn(3, 4).half()
        before = logits.clone()
        uncertainty_maps([logits, logits])
        assert torch.equal(logits, before)


def read(path):
    image = sitk.ReadImage(str(path))
    return image, sitk.GetArrayFromImage(image)


def predict(model, images, output, folds, **settings):
    """Predict the images of a folder in this process; pools are threads here."""
    predictor = BatchedPredictor(device=CPU, allow_tqdm=False, use_mirroring=False)
    predictor.initialize_from_trained_model_folder(str(model), folds)
    for name, value in settings.items():
        setattr(predictor, name, value)
    output.mkdir()
    items = []
    for path in sorted(images.glob("*_0000.nii.gz")):
        preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
        plans, dataset = predictor.plans_manager, predictor.dataset_json
        data, _, properties = preprocessor.run_case([str(path)], None, plans, predictor.configuration_manager, dataset)
        ofile = str(output / path.name.removesuffix("_0000.nii.gz"))
        items.append({"data": torch.from_numpy(data), "data_properties": properties, "ofile": ofile})
    predictor.predict_from_data_iterator(iter(items), True, 1)
    return output


def test_files(folders, models, tmp_path):  # noqa: F811
    images, model = some_images(folders, tmp_path / "images"), models["3d_fullres"]
    plain = predict(model, images, tmp_path / "plain", (0, 1))
    both = predict(model, images, tmp_path / "both", (0, 1), save_uncertainty=True)
    one = predict(model, images, tmp_path / "one", (0,), save_uncertainty=True)
    scaled = predict(model, images, tmp_path / "scaled", (0,), save_uncertainty=True, temperature=0.2)
    assert {path.name for path in both.iterdir()} - {path.name for path in plain.iterdir()} == {
        *("entropy", "disagreement")
    }
    assert not (one / "disagreement").exists()
    name = "ball_0.nii.gz"
    assert read(plain / name)[1].tolist() == read(both / name)[1].tolist()
    segmentation, _ = read(both / name)
    maps = []
    for folder in ("entropy", "disagreement"):
        image, values = read(both / folder / name)
        assert image.GetSpacing() == segmentation.GetSpacing() and image.GetOrigin() == segmentation.GetOrigin()
        maps.append(values / 10_000)
    assert (maps[0] >= maps[1] - 1e-4).all() and maps[1].max() > 0.001
    # of one fold, the entropy of the probabilities beside it; with a temperature, of those that it gives
    stem = name.removesuffix(".nii.gz")
    before, after = (np.load(folder / f"{stem}.npz")["probabilities"] for folder in (one, scaled))
    for folder, p in ((one, before), (scaled, after)):
        expected = entropy(p.astype(float), axis=0, base=len(p))
        assert np.abs(read(folder / "entropy" / name)[1] / 10_000 - expected).max() < 2e-3
    sharper = before.astype(float) ** 5
    np.testing.assert_allclose(after, sharper / sharper.sum(0), atol=1e-2)
    assert (read(one / name)[1] != read(scaled / name)[1]).mean() < 1e-3


def test_command(folders, models, tmp_path, monkeypatch):  # noqa: F811
    images = some_images(folders, tmp_path / "images")
    arguments = ("predict", "-i", images, "-o", tmp_path / "out", "-m", models["3d_fullres"], "-f", 0, "-device", "cpu")
    with pytest.raises(FileNotFoundError, match="run `nnunet-transformers calibrate` first"):
        invoke(*arguments, "--calibrated")
    given = {}
    monkeypatch.setattr(BatchedPredictor, "predict_from_files", lambda self, *_, **__: given.update(vars(self)))
    (models["3d_fullres"] / "calibration.json").write_text(json.dumps({"temperature": 1.7}))
    try:
        assert invoke(*arguments, "--calibrated", "--save_uncertainty").exit_code == 0
    finally:
        (models["3d_fullres"] / "calibration.json").unlink()
    assert (given["temperature"], given["save_uncertainty"]) == (1.7, True)


def test_readers_that_reorient(tmp_path, monkeypatch):
    """Theirs write eight bits; maps have sixteen, on the grid of the image's file."""
    image = sitk.Image((5, 6, 7), sitk.sitkFloat32)
    image.SetSpacing((0.5, 0.7, 2.0))
    image.SetOrigin((3.0, -4.0, 5.0))
    image = sitk.DICOMOrient(image, "ALI")
    sitk.WriteImage(image, str(tmp_path / "image.nii.gz"))
    for reader in (SimpleITKIOWithReorient, NibabelIOWithReorient):
        array, properties = reader().read_images([str(tmp_path / "image.nii.gz")])
        shares = np.linspace(0, 1, array[0].size).reshape(array[0].shape)
        monkeypatch.setattr(uncertainty, "in_image", lambda *_, shares=shares: shares[None])
        plans = SimpleNamespace(image_reader_writer_class=reader)
        write_maps(None, properties, plans, None, ".nii.gz", tmp_path / "case", False)
        written, _ = read(tmp_path / "entropy" / "case.nii.gz")
        assert (written.GetSize(), written.GetSpacing()) == (image.GetSize(), pytest.approx(image.GetSpacing()))
        np.testing.assert_allclose(written.GetDirection(), image.GetDirection(), atol=1e-6)
        again, _ = reader().read_images([str(tmp_path / "entropy" / "case.nii.gz")])
        np.testing.assert_array_equal(again[0], np.rint(shares * 10_000))
