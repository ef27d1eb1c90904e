"""Arrays, SimpleITK images and files give what the command writes."""

from __future__ import annotations

import gc
import json
import shutil
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIOWithReorient
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_transformers.sharing import load_model, push

from .conftest import MODEL, add_cascade, environment, initialise, invoke, some_images, stock_predict


@pytest.fixture(scope="module")
def images(trained, tmp_path_factory):
    return some_images(trained, tmp_path_factory.mktemp("segmenter") / "images")


@pytest.fixture(scope="module")
def segmenter(package):
    return load_model(package, device="cpu", folds=[0], use_mirroring=False)


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.fixture(scope="module")
def expected(package, images, tmp_path_factory):
    output = tmp_path_factory.mktemp("expected")
    words = ("-f", 0, "--disable-tta", "--device", "cpu", "-npz")
    threads = torch.get_num_threads()  # which commands set
    assert invoke("package", "predict", package, images, output, *words).exit_code == 0
    torch.set_num_threads(threads)
    return read(output / "ball_0.nii.gz"), np.load(output / "ball_0.npz")["probabilities"]


def test_all_kinds_of_images(segmenter, images, expected):
    image = sitk.ReadImage(str(images / "ball_0_0000.nii.gz"))
    array, spacing = sitk.GetArrayFromImage(image), image.GetSpacing()[::-1]
    before = array.copy()
    labels, probabilities = expected
    for given in (array, array[None]):
        np.testing.assert_array_equal(segmenter.predict(given, spacing), labels)
    np.testing.assert_array_equal(array, before)
    image.SetOrigin((1, 2, 3))
    segmented = segmenter.predict(image)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(segmented), labels)
    assert segmented.GetOrigin() == (1, 2, 3)
    for path in (images / "ball_0_0000.nii.gz", [str(images / "ball_0_0000.nii.gz")]):
        np.testing.assert_array_equal(segmenter.predict(path), labels)
    np.testing.assert_array_equal(segmenter.predict_probabilities(array, spacing), probabilities)


def test_threads_wait(segmenter, images, expected):
    array = read(images / "ball_0_0000.nii.gz")
    with ThreadPoolExecutor(3) as executor:
        for labels in executor.map(lambda _: segmenter.predict(array, (1, 1, 1)), range(3)):
            np.testing.assert_array_equal(labels, expected[0])


def test_memory_does_not_grow(segmenter, images):
    """Nothing of an image is kept: neither tensors nor, less than its label map, arrays."""
    array = read(images / "ball_0_0000.nii.gz")

    def held() -> tuple[int, int]:
        segmenter.predict(array, (1, 1, 1))
        gc.collect()
        tensors = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
        return sum(tensor.nbytes for tensor in tensors), tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        held()  # the first one fills caches
        (tensors, arrays), (tensors_later, arrays_later) = held(), held()
    finally:
        tracemalloc.stop()
    assert tensors_later == tensors
    assert arrays_later - arrays < array.size


def test_from_the_hub(hub, package, images, expected):
    push(package, "o/n")
    found = load_model("hf://o/n", "cpu", folds=[0], use_mirroring=False)
    np.testing.assert_array_equal(found.predict(read(images / "ball_0_0000.nii.gz"), (1, 1, 1)), expected[0])
    files = hub.repositories["o/n"].files
    hub.add("o/n", {**files, "package/models.json": files["package/models.json"] + b" "})
    with pytest.raises(ValueError, match=r"models\.json in hf://o/n/package@\w+ was changed"):
        load_model("hf://o/n", "cpu")
    with pytest.raises(FileNotFoundError, match="o/nothing"):
        load_model("hf://o/nothing", "cpu")


def test_trained_folders(model, images, tmp_path):
    array = read(images / "ball_0_0000.nii.gz")
    theirs = read(stock_predict(model, images, tmp_path / "theirs", 1, mirroring=False) / "ball_0.nii.gz")
    for source, folds in ((model / "fold_1", ()), (model, (1,))):
        found = load_model(source, "cpu", folds, use_mirroring=False)
        assert (found.predict(array, (1, 1, 1)) != theirs).mean() < 1e-3
    missing = r"fold 7 of \S+ has no checkpoint_final\.pth; finished: 0, 1$"
    for source, folds in ((model, (7,)), (model / "fold_7", ())):
        with pytest.raises(FileNotFoundError, match=missing):
            load_model(source, "cpu", folds)
    with pytest.raises(
        FileNotFoundError, match=r"^no fold of \S+ has a none\.pth; finish training with nnUNetv2_train$"
    ):
        load_model(model, "cpu", checkpoint="none.pth")
    with pytest.raises(
        FileNotFoundError, match=r"images has no plans\.json; specify a model's folder in nnUNet_results"
    ):
        load_model(images, "cpu")


def test_cascade_and_ensemble(trained, images, tmp_path, monkeypatch):
    environment(tmp_path, monkeypatch)
    for name in ("raw", "preprocessed"):
        shutil.copytree(trained / name, tmp_path / name, dirs_exist_ok=True)
    add_cascade(tmp_path)
    lowres = initialise(tmp_path, configuration="3d_lowres")
    cascade = initialise(tmp_path, configuration="3d_cascade_fullres")
    flat = initialise(tmp_path, configuration="2d")
    array = read(images / "ball_0_0000.nii.gz")
    # nnU-Net ensembles a cascade with its own first stage, too
    for number, models in enumerate(([cascade], [cascade, flat], [cascade, lowres], [lowres, cascade])):
        package = tmp_path / f"package_{number}"
        assert invoke("package", *models, "-f", 0, "-o", package).exit_code == 0
        words = ("--disable-tta", "--device", "cpu")
        assert invoke("package", "predict", package, images, tmp_path / str(number), *words).exit_code == 0
        found = load_model(package, "cpu", use_mirroring=False)
        np.testing.assert_array_equal(found.predict(array, (1, 1, 1)), read(tmp_path / str(number) / "ball_0.nii.gz"))
        assert (package / "README.md").read_text().count("3d_lowres; patch") == 1
    np.testing.assert_array_equal(*(read(tmp_path / number / "ball_0.nii.gz") for number in "23"))
    for models, message in (
        ([flat, flat], "is given 2 times"),
        ([flat, shutil.copytree(flat, tmp_path / flat.name)], "two models are called"),
    ):
        with pytest.raises(ValueError, match=message):
            invoke("package", *models, "-f", 0, "-o", tmp_path / "none")
    with pytest.raises(ValueError, match="needs the segmentations of 3d_lowres; make a package"):
        load_model(cascade, "cpu")
    # an image with two axes is a volume of one slice
    found = load_model(flat, "cpu", use_mirroring=False)
    assert found.predict(array[3], (1, 1)).shape == array[3].shape
    assert found.predict_probabilities(array[3], (1, 1)).shape == (len(found.labels), *array[3].shape)


def test_the_device_is_one_that_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for device in ("tpu", "cuda"):
        with pytest.raises(ValueError, match=device):
            load_model(tmp_path, device)


def test_mistakes(segmenter):
    array = np.zeros((5, 6, 7))
    with pytest.raises(ValueError, match="spacing is missing"):
        segmenter.predict(array)
    with pytest.raises(ValueError, match=r"2 channels, the model takes 1 \(MRI\)"):
        segmenter.predict(np.zeros((2, 5, 6, 7)), (1, 1, 1))
    with pytest.raises(ValueError, match=r"shape \(5, 6, 7\) does not have a spacing of \(1, 1, 1, 1\) mm"):
        segmenter.predict(array, (1, 1, 1, 1))
    with pytest.raises(ValueError, match="the image has two axes, the model three"):
        segmenter.predict(array[0], (1, 1))
    for shape, message in (
        ((1, 6, 7), r"a 2D image \(1x6x7 voxels\), the model takes 3D"),
        ((0, 6, 7), "is empty: 0x6x7"),
    ):
        with pytest.raises(ValueError, match=message):
            segmenter.predict(array[: shape[0], : shape[1], : shape[2]], (1, 1, 1))
    array[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity in 1 voxels"):
        segmenter.predict(array, (1, 1, 1))


def test_damaged_files(segmenter, images, tmp_path):
    """SimpleITK reads what a file lacks, NaN and infinity as 0."""
    path = tmp_path / "ball_0_0000.nii.gz"
    content = (images / path.name).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"ball_0_0000\.nii\.gz is truncated or not an image"):
        segmenter.predict(path)
    array = read(images / path.name).astype(np.float32)
    array[:2] = np.nan
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    with pytest.raises(ValueError, match=f"NaN or infinity in {array[:2].size} voxels"):
        segmenter.predict(path)


def test_files_of_which_nothing_can_be_written(segmenter, images, tmp_path, monkeypatch):
    """Said before minutes of prediction."""
    monkeypatch.setattr(segmenter, "_predict", Mock(side_effect=AssertionError))
    path, several = images / "ball_0_0000.nii.gz", tmp_path / "several.nii.gz"
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*none to write labels\.nii\.gz to"):
        segmenter.predict_file(path, tmp_path / "none" / "labels.nii.gz")
    sitk.WriteImage(sitk.JoinSeries([sitk.ReadImage(str(path))] * 2), str(several))
    with pytest.raises(ValueError, match=r"several\.nii\.gz has 4 axes; write each channel"):
        segmenter.predict_file(several, tmp_path / "labels.nii.gz")


@pytest.mark.parametrize(
    "reader,of_package",
    [(SimpleITKIOWithReorient, True), (NibabelIOWithReorient, True), (SimpleITKIOWithReorient, False)],
)
def test_images_are_turned_as_the_reader_turns_files(package, model, images, tmp_path, monkeypatch, reader, of_package):
    if of_package:  # whose files are signed
        folder = package
        monkeypatch.setattr(PlansManager, "image_reader_writer_class", reader)
    else:
        folder = shutil.copytree(model, tmp_path / MODEL)
        plans = json.loads((folder / "plans.json").read_text())
        (folder / "plans.json").write_text(json.dumps({**plans, "image_reader_writer": reader.__name__}))
    segmenter = load_model(folder, device="cpu", folds=[0], use_mirroring=False)
    image = sitk.DICOMOrient(sitk.ReadImage(str(images / "ball_0_0000.nii.gz")), "ALI")
    sitk.WriteImage(image, str(tmp_path / "turned.nii.gz"))
    segmenter.predict_file(tmp_path / "turned.nii.gz", tmp_path / "labels.nii.gz")
    expected, found = sitk.ReadImage(str(tmp_path / "labels.nii.gz")), segmenter.predict(image)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(expected))
    assert len(np.unique(sitk.GetArrayFromImage(found))) > 1
    assert found.GetDirection() == image.GetDirection() and found.GetOrigin() == image.GetOrigin()
    probabilities = segmenter.predict_probabilities(image)
    assert probabilities.shape[1:] == image.GetSize()[::-1]
    np.testing.assert_array_equal(probabilities.argmax(0), sitk.GetArrayFromImage(found))
