"""Faulty images: a clear message for each case that cannot be predicted, while the other cases are."""

from __future__ import annotations

import pickle
import shutil
import tracemalloc
from copy import copy, deepcopy
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.ensembling.ensemble import merge_files
from torch import nn

from nnunet_transformers.sharing import estimate, load_package, predict, predict_folder
from nnunet_transformers.sharing.estimate import averaging_bytes, exceeding_bytes, needed_bytes
from nnunet_transformers.sharing.inputs import _place_remark, check_case
from tests.images import claim

from .conftest import invoke, some_images


def write(path, array, spacing=(1.0, 1.0, 1.0), direction=None):
    image = sitk.GetImageFromArray(np.asarray(array, np.float32))
    image.SetSpacing(spacing[: image.GetDimension()])
    if direction is not None:
        image.SetDirection(direction)
    sitk.WriteImage(image, str(path))


@pytest.fixture(scope="module")
def loaded(package):
    return load_package(package, torch.device("cpu"), use_mirroring=False, folds=["0"])[0]


@pytest.fixture
def noise():
    return np.random.default_rng(0).normal(size=(20, 24, 20))


def test_a_folder_of_all_kinds(trained, package, tmp_path, noise):
    images, output = some_images(trained, tmp_path / "images"), tmp_path / "output"
    damaged = {"nan": noise.copy(), "infinite": noise.copy(), "empty": np.zeros((20, 24, 20)), "flat": noise[0]}
    damaged["nan"][3, 4, 5] = np.nan
    damaged["infinite"][0] = np.inf
    for name, array in damaged.items():
        write(images / f"{name}_0000.nii.gz", array)
    for name in ("two_channels_0000", "two_channels_0001", "first_missing_0001", "no_number"):
        write(images / f"{name}.nii.gz", noise)
    write(images / "other_0000.mha", noise)
    (images / "half_0000.nii.gz").write_bytes((images / "no_number.nii.gz").read_bytes()[:999])
    write(images / "forged_0000.nii.gz", noise)
    claim(images / "forged_0000.nii.gz", (1000, 1000, 1000))
    (images / "notes.txt").write_text("not an image")
    write(images / "small_0000.nii.gz", noise[:6, :7, :8])
    write(images / "coarse_0000.nii.gz", noise[:4], spacing=(1.0, 1.0, 5.0))
    write(images / "turned_0000.nii.gz", noise, direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1))

    result = invoke("package", "predict", package, images, output, "-f", 0, "--disable-tta", "--device", "cpu")
    assert result.exit_code == 1
    segmented = {path.name.removesuffix(".nii.gz") for path in output.iterdir()}
    assert segmented == {"ball_0", "small", "coarse", "turned"}
    assert sitk.ReadImage(str(output / "coarse.nii.gz")).GetSize() == (20, 24, 4)
    assert "4 segmented, 10 not" in result.output
    for message in (
        "nan: nan_0000.nii.gz holds NaN or infinity in 1 voxels",
        "infinite: infinite_0000.nii.gz holds NaN or infinity in 480 voxels",
        "empty: every voxel is 0",
        "flat: a 2D image (1x24x20 voxels), the model takes 3D images",
        "two_channels: 2 channels, the model takes 1 (MRI): more than it was trained with",
        "first_missing: _0000 (MRI) is missing; there is first_missing_0001.nii.gz",
        "no_number.nii.gz: no channel number in its name; rename it to no_number_0000.nii.gz",
        "other_0000.mha: the model reads .nii.gz files",
        "half: half_0000.nii.gz cannot be read",
        "forged: forged_0000.nii.gz is truncated: its header claims 1000x1000x1000 voxels",
    ):
        assert f"error: {message}" in result.output
    assert "coarse: spacing 5x1x1 mm is far from the training images', 1x1x1 to 1x1x1" in result.output
    assert "turned: axes are stored as RAS, the training images' as LPS" in result.output
    assert "notes" not in result.output


def test_channels_of_a_case(loaded, tmp_path, noise, monkeypatch):
    monkeypatch.setitem(loaded.predictor.dataset_json, "channel_names", {"0": "T1", "1": "T2"})
    files = [tmp_path / "case_0000.nii.gz", tmp_path / "case_0001.nii.gz"]
    write(files[0], noise)
    with pytest.raises(ValueError, match=r"1 channels, the model takes 2 \(T1, T2\): missing _0001 \(T2\)"):
        check_case(files[:1], loaded)
    write(files[1], noise[:10])
    with pytest.raises(ValueError, match=r"case_0001\.nii\.gz has 10x24x20 voxels, case_0000\.nii\.gz 20x24x20"):
        check_case(files, loaded)
    write(files[1], noise, spacing=(1.0, 1.0, 2.0))
    with pytest.raises(ValueError, match="differ in spacing"):
        check_case(files, loaded)
    write(files[1], np.zeros_like(noise))
    assert check_case(files, loaded).remarks == ("case_0001.nii.gz is constant",)


def test_flat_images_of_a_2d_model(loaded, tmp_path, noise):
    """The distance of slices, which it leaves as it is, gets no remark; an image that is flat across them does."""
    predictor = copy(loaded.predictor)
    predictor.configuration_manager = predictor.plans_manager.get_configuration("2d")
    flat, path = replace(loaded, predictor=predictor), tmp_path / "a_0000.nii.gz"
    for array, spacing in ((noise[0], (1.0, 1.0)), (noise[:1], (1.0, 1.0, 7.0)), (noise, (1.0, 1.0, 7.0))):
        write(path, array, spacing)
        assert check_case([path], flat).remarks == ()
        if len(array) == 1:  # of an ensemble, whichever model is the first
            for first, other in ((flat, loaded), (loaded, flat)):
                with pytest.raises(ValueError, match=r"a 2D image \(1x24x20 voxels\), the model takes 3D images"):
                    check_case([path], first, [other])
    write(path, noise[:1], (1.0, 7.0, 1.0))
    (remark,) = check_case([path], flat).remarks
    assert remark.startswith("spacing 7x1 mm is far from the training images', 1x1 to 1x1")
    write(path, noise[:, :, :1])
    (remark,) = check_case([path], flat).remarks
    assert remark.startswith("the model segments 20 slices of 24x1 voxels, as the image is flat along another axis")


def test_too_large_for_memory(loaded, trained, tmp_path, monkeypatch):
    images = some_images(trained, tmp_path / "images", 2)
    monkeypatch.setattr(predict, "available_bytes", lambda: 100_000)
    problems = [result.problem for result in predict_folder([loaded], images, tmp_path / "output")]
    assert len(problems) == 2
    assert all(
        p.startswith("too large for memory: 20x24x20 voxels need about 0.2 GB, 0.0 GB are free") for p in problems
    )

    def fail(*_, **__):
        raise MemoryError("cannot allocate 9 TiB")

    monkeypatch.undo()
    monkeypatch.setattr(loaded.predictor, "predict_from_files_sequential", fail)
    (result, _) = predict_folder([loaded], images, tmp_path / "output")
    assert result.problem == "too large for memory (cannot allocate 9 TiB)"
    assert not list((tmp_path / "output").iterdir())


def test_passes_need_memory(loaded):
    """They are counted where the rest would fit, and not where there is plenty."""
    shape, spacing = (20, 24, 20), (1.0, 1.0, 1.0)
    arrays = needed_bytes(loaded, shape, spacing, with_passes=False)
    needed = needed_bytes(loaded, shape, spacing)
    assert needed >= loaded.pass_bytes > arrays
    for free in (0, arrays, needed - 1):
        assert exceeding_bytes([loaded], shape, spacing, free) == needed
    assert exceeding_bytes([loaded], shape, spacing, needed) is None
    plenty = replace(loaded)  # forgets what was counted
    assert exceeding_bytes([plenty], shape, spacing, 10**12) is None
    assert "pass_bytes" not in vars(plenty)


def test_an_ensembles_probabilities_need_memory(loaded, tmp_path):
    """They are counted in the check and in the estimate, and are what nnU-Net's averaging takes."""
    shape, spacing = (300, 512, 512), (1.0, 1.0, 1.0)
    averaging, one = averaging_bytes([loaded, loaded], shape), needed_bytes(loaded, shape, spacing)
    assert averaging > one > averaging_bytes([loaded], shape) == 0
    assert exceeding_bytes([loaded], shape, spacing, one) is None
    assert exceeding_bytes([loaded, loaded], shape, spacing, one) == averaging
    assert exceeding_bytes([loaded, loaded], shape, spacing, averaging) is None
    estimates = [estimate([loaded] * count, shape, spacing).host_bytes for count in (1, 2)]
    assert estimates[1] - estimates[0] > (averaging - one) / 2

    shape = (96, 96, 64)
    expected, labels = averaging_bytes([loaded, loaded], shape), loaded.predictor.label_manager
    probabilities = np.ones((labels.num_segmentation_heads, *shape), np.float32)
    for name in "ab":
        np.savez_compressed(tmp_path / f"{name}.npz", probabilities=probabilities)
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps({}))
    del probabilities
    tracemalloc.start()
    try:
        merge_files([str(tmp_path / f"{name}.npz") for name in "ab"], str(tmp_path / "c"), ".x", Mock(), labels)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0.9 < peak / expected < 1.1


def test_probabilities_that_a_spline_leaves_in_memory(loaded):
    """Export slab by slab has them in a file; nnU-Net's own, for another resampling, does not."""
    shape, spacing = (300, 512, 512), (1.0, 1.0, 1.0)
    voxels = 300 * 512 * 512
    heads = loaded.predictor.label_manager.num_segmentation_heads
    slabs = [needed_bytes(loaded, shape, spacing, False, flag) for flag in (False, True)]
    assert slabs[0] == slabs[1]
    predictor = copy(loaded.predictor)
    configuration = deepcopy(predictor.configuration_manager.configuration)
    configuration["resampling_fn_probabilities_kwargs"]["order"] = 3
    predictor.configuration_manager = type(predictor.configuration_manager)(configuration)
    spline = replace(loaded, predictor=predictor)
    needed = [needed_bytes(spline, shape, spacing, False, flag) for flag in (False, True)]
    assert needed[0] < heads * 10 * voxels <= needed[1]
    assert exceeding_bytes([spline], shape, spacing, needed[1] - 1, with_probabilities=True)
    assert exceeding_bytes([spline], shape, spacing, needed[1]) is None


def test_networks_whose_passes_cannot_be_counted(loaded):
    """Those whose code asks for values count by their results alone, and predict."""

    class Asks(nn.Module):
        def forward(self, image):
            return image if image.sum() > 0 else -image

    predictor = copy(loaded.predictor)
    predictor.network = Asks()
    other = replace(loaded, predictor=predictor)
    assert 0 < other.pass_bytes < loaded.pass_bytes


def test_folders(package, tmp_path):
    arguments = ("--device", "cpu")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        invoke("package", "predict", package, tmp_path / "images", tmp_path / "output", *arguments)
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match=r"no image in .*the model reads CASE_0000\.nii\.gz"):
        invoke("package", "predict", package, tmp_path / "images", tmp_path / "output", *arguments)
    with pytest.raises(ValueError, match=r"has no fold 4 .*it has 0, 1"):
        invoke("package", "predict", package, tmp_path / "images", tmp_path / "output", "-f", 0, 4, *arguments)
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(ValueError, match=r"--device tpu is not available; this machine has .*cpu"):
        invoke("package", "predict", package, tmp_path, tmp_path / "output", "--device", "tpu")


def test_channels_that_lie_elsewhere(tmp_path, noise):
    first, moved = tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz"
    write(first, noise)
    for origin, direction, remark in (
        ((0.4, 0, 0), np.eye(3), ""),
        ((50, 80, -30), np.eye(3), "a_0001.nii.gz lies up to 99 mm from a_0000.nii.gz by its header"),
        ((0, 0, 0), np.diag([-1, 1, 1]), "a_0001.nii.gz lies up to 38 mm from"),
    ):
        image = sitk.GetImageFromArray(noise)
        image.SetOrigin(origin)
        image.SetDirection(direction.flatten().tolist())
        sitk.WriteImage(image, str(moved))
        found = _place_remark(moved, first)
        assert found.startswith(remark) and bool(found) == bool(remark)
