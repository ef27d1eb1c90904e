"""Preparation of unlabelled images, and crops of prepared images."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_transformers._workers import WorkerDied
from nnunet_transformers.pretraining.data import MaskedViews, PreparedCase, PreparedImages, Skipped, read_index
from nnunet_transformers.pretraining.data.cached_matcher import CachedMatcher
from nnunet_transformers.pretraining.data.cases import find_cases
from nnunet_transformers.pretraining.data.folder_state import FolderState
from nnunet_transformers.pretraining.data.manifest import MANIFEST, Manifest, read_lines
from nnunet_transformers.pretraining.data.prepare import prepare
from tests.conftest import worker_processes, write_dataset
from tests.images import claim


@pytest.fixture
def source(tmp_path):
    return write_dataset(tmp_path / "raw", cases=3, channels=2)


def crop(folder, size):
    return PreparedImages(folder).crop(size, np.random.default_rng(0))


def test_raw_layout_without_labels(source, tmp_path):
    for file in (source / "labelsTr").iterdir():
        file.unlink()
    stored, skipped = prepare(source, tmp_path / "prepared", patch_size=(16, 16, 16))
    assert [case.name for case in stored] == ["ball_0", "ball_1", "ball_2"]
    assert stored[0].shape == (2, 20, 24, 20)
    assert not skipped
    index = read_index(tmp_path / "prepared")
    assert index.normalization == ("ZScoreNormalization",) * 2
    samples = MaskedViews(tmp_path / "prepared", (16, 16, 16), samples=5)
    (view, target, _), (_, other, _) = samples[0]
    assert view.shape == target.shape == other.shape == (2, 16, 16, 16)
    assert view.dtype == target.dtype == torch.float32
    assert torch.equal(view, samples[0][0][0])
    assert not torch.equal(target, samples[1][0][1])
    samples.epoch = 1
    assert not torch.equal(view, samples[0][0][0])
    assert crop(tmp_path / "prepared", (16, 16)).shape == (2, 16, 16)


def test_worker_processes(source, tmp_path):
    with worker_processes():
        stored, _ = prepare(source, tmp_path / "prepared", processes=1)
    assert len(stored) == 3


class Deadly:
    """Runs the work here, but that of one image kills the process."""

    def run(self, function, items):
        for item in items:
            yield item, WorkerDied() if item.name == "ball_1" else function(item)


def test_a_process_that_dies_costs_its_image(source, tmp_path):
    stored, skipped = prepare(source, tmp_path / "prepared", engine=Deadly())
    assert [case.name for case in stored] == ["ball_0", "ball_2"]
    assert [case.name for case in skipped] == ["ball_1"]
    assert "memory ran out" in skipped[0].reason
    assert prepare(source, tmp_path / "prepared") == (stored, skipped)
    stored, skipped = prepare(source, tmp_path / "prepared", retry_failed=True)
    assert (len(stored), skipped) == (3, [])
    assert len(read_index(tmp_path / "prepared").cases) == 3


def test_crop_larger_than_the_image_is_filled_with_its_minimum(source, tmp_path):
    prepare(source, tmp_path / "prepared")
    padded = crop(tmp_path / "prepared", (32, 16, 32))
    assert padded.shape == (2, 32, 16, 32)
    assert (padded[0, 0] == padded[0].min()).all()


def test_spacing(source, tmp_path):
    stored, _ = prepare(source, tmp_path / "prepared", spacing=(2, 1, 1))
    assert stored[0].shape == (2, 10, 24, 20)


def test_broken_images_are_skipped_by_name(source, tmp_path):
    images = source / "imagesTr"
    whole = (images / "ball_0_0000.nii.gz").read_bytes()
    (images / "ball_0_0000.nii.gz").write_bytes(whole[: len(whole) // 2])
    empty = np.zeros((20, 24, 20), dtype=np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(empty), str(images / "ball_1_0001.nii.gz"))
    stored, skipped = prepare(source, tmp_path / "prepared")
    assert [case.name for case in stored] == ["ball_2"]
    reasons = {case.name: case.reason for case in skipped}
    assert "cannot be read" in reasons["ball_0"]
    assert reasons["ball_1"] == "channel 1 is constant (0)"
    assert [case.name for case in read_index(tmp_path / "prepared").skipped] == ["ball_0", "ball_1"]


def test_values_that_overflow(source, tmp_path):
    """Their statistics would be infinite, which JSON does not have, at the end of a whole run."""
    path = source / "imagesTr" / "ball_0_0000.nii.gz"
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).astype(np.float32)
    image[3, 4, 5] = 1e25
    sitk.WriteImage(sitk.GetImageFromArray(image), str(path))
    stored, skipped = prepare(source, tmp_path / "prepared")
    assert [case.name for case in stored] == ["ball_1", "ball_2"]
    assert skipped == [Skipped("ball_0", "channel 0 holds values up to 1e+25, which overflow")]
    statistics = read_index(tmp_path / "prepared").plans["foreground_intensity_properties_per_channel"]
    assert all(value < 1e6 for channel in statistics.values() for value in channel.values())


def test_header_that_claims_more(source, tmp_path):
    path = source / "imagesTr" / "ball_0_0000.nii.gz"
    claim(path, (1000, 1000, 1000))
    _, skipped = prepare(source, tmp_path / "prepared")
    assert skipped[0].name == "ball_0"
    assert "its header claims 1000x1000x1000 voxels, which" in skipped[0].reason


def test_folder_of_images(tmp_path):
    folder = tmp_path / "slices"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        image = sitk.GetImageFromArray(rng.integers(0, 255, (40, 50), dtype=np.uint8))
        sitk.WriteImage(image, str(folder / f"{name}.png"))
    (folder / "notes.txt").write_text("not an image")
    stored, skipped = prepare(folder, tmp_path / "prepared", patch_size=(32, 32))
    assert [case.shape for case in stored] == [(1, 1, 40, 50)] * 2
    assert not skipped
    assert crop(tmp_path / "prepared", (32, 32)).shape == (1, 32, 32)
    prepare(folder, tmp_path / "scaled", patch_size=(32, 32), normalization="rescale_to_0_1")
    part = crop(tmp_path / "scaled", (40, 50))
    assert (float(part.min()), float(part.max())) == (0, 1)
    index = read_index(tmp_path / "scaled")
    assert index.normalization == ("RescaleTo01Normalization",)
    # the index's plan prepares other images in the same way
    prepare(folder, tmp_path / "like", planned=(index.plans, index.configuration))
    assert read_index(tmp_path / "like").normalization == index.normalization
    with pytest.raises(ValueError, match="no normalization 'minmax'; it has ct, nonorm"):
        prepare(folder, tmp_path / "other", normalization="minmax")


class TestIndex:
    """The file's layout, unchanged since the first release."""

    CONTENT = {  # noqa: RUF012
        "cases": [{"name": "a", "shape": [1, 4, 5, 6]}],
        "skipped": [{"name": "b", "reason": "holds NaN or infinity"}],
        "channels": ["CT"],
        "spacing": [3.0, 1.0, 1.0],
        "normalization": ["CTNormalization"],
        "plans": {"dataset_name": "pretraining"},
        "configuration": "pretraining",
    }

    def test_layout_is_kept(self, tmp_path):
        (tmp_path / "index.json").write_text(json.dumps(self.CONTENT))
        index = read_index(tmp_path)
        assert index.cases == (PreparedCase("a", (1, 4, 5, 6)),)
        assert index.skipped == (Skipped("b", "holds NaN or infinity"),)
        assert (index.channels, index.spacing, index.normalization) == (("CT",), (3.0, 1.0, 1.0), ("CTNormalization",))
        assert index.spacing_of(2) == (1.0, 1.0)
        index.save(tmp_path / "again.json")
        assert json.loads((tmp_path / "again.json").read_text()) == self.CONTENT

    def test_optional_entries(self, tmp_path):
        old = {key: value for key, value in self.CONTENT.items() if key not in ("plans", "configuration")}
        (tmp_path / "index.json").write_text(json.dumps(old))
        index = read_index(tmp_path)
        assert (index.plans, index.configuration, index.images) == (None, None, None)
        both = replace(index, images=replace(index, spacing=None, cases=(PreparedCase("photo"),)))
        both.save(tmp_path / "index.json")
        assert read_index(tmp_path) == both
        with pytest.raises(ValueError, match="the images have no spacing"):
            both.images.spacing_of(2)

    @pytest.mark.parametrize("content", ["{", "[]", '{"cases": []}', '{"cases": [1]}'])
    def test_damaged(self, content, tmp_path):
        (tmp_path / "index.json").write_text(content)
        with pytest.raises(ValueError, match="is truncated or not an index of prepared images: "):
            read_index(tmp_path)


def test_mistakes(source, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image in"):
        prepare(tmp_path / "empty", tmp_path / "prepared")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.nii.gz").write_text("nothing")
    with pytest.raises(ValueError, match="none of the 1 images"):
        prepare(tmp_path / "bad", tmp_path / "prepared")
    with pytest.raises(FileNotFoundError, match="was interrupted"):
        read_index(tmp_path / "prepared")
    with pytest.raises(ValueError, match="must have 3 numbers"):
        prepare(source, tmp_path / "prepared", spacing=(1, 1))
    with pytest.raises(ValueError, match="--normalization contradicts"):
        prepare(source, tmp_path / "prepared", normalization="ct")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(FileExistsError, match="is not empty"):
        prepare(source, tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="pretrain prepare"):
        read_index(tmp_path)


def write_pictures(folder, channels):
    """A dataset of pictures that are stored in colour and grey."""
    (folder / "imagesTr").mkdir(parents=True, exist_ok=True)
    for number in range(3):
        grey = np.random.default_rng(number).integers(0, 255, (30, 40, 1), dtype=np.uint8)
        picture = sitk.GetImageFromArray(np.repeat(grey, 3, -1), isVector=True)
        sitk.WriteImage(picture, str(folder / "imagesTr" / f"case_{number}_0000.png"))
    names = {str(number): f"colour {number}" for number in range(channels)}
    content = {"channel_names": names, "labels": {"background": 0}, "numTraining": 3, "file_ending": ".png"}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_channels_are_those_of_the_dataset(tmp_path):
    """Also of pictures that are grey; a mistake in dataset.json is named, and can be corrected."""
    folder = write_pictures(tmp_path / "raw", 2)
    message = r"raw have 3 channels, its dataset\.json names 2 \(colour 0, colour 1\): correct dataset\.json"
    with pytest.raises(ValueError, match=message):
        prepare(folder, tmp_path / "prepared", patch_size=(16, 16))
    for channels in (3, 1):
        write_pictures(folder, channels)
        output = tmp_path / ("prepared" if channels == 1 else "colours")
        stored, skipped = prepare(folder, output, patch_size=(16, 16))
        assert [case.shape for case in stored] == [(channels, 1, 30, 40)] * 3 and not skipped


def test_a_full_disk(tmp_path, monkeypatch):
    """What a commit has written of its lines is not followed by others."""
    manifest = Manifest(tmp_path)
    manifest.add({"stored": "a"})
    manifest.commit()
    for name in "bcd":
        manifest.add({"stored": name})

    def fail(_):
        with open(tmp_path / MANIFEST, "rb+") as file:
            file.truncate(file.seek(0, os.SEEK_END) - 5)
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(os, "fsync", fail)
        manifest.commit()
    manifest.add({"stored": "e"})
    manifest.commit()
    found = [line["stored"] for line in read_lines(tmp_path)]
    assert list(dict.fromkeys(found)) == list("abcde")


def test_a_mounted_folder(source, tmp_path, monkeypatch):
    """Nothing can be written beside it, so that the lease is in it, and not taken for other content."""
    output, access = tmp_path / "mounts" / "prepared", os.access
    output.mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: path != output.parent and access(path, mode))
    seen = []
    found = sys.modules[prepare.__module__]
    monkeypatch.setattr(found, "find_cases", lambda *_: seen.extend(output.parent.rglob("*.lease")) or find_cases(*_))
    (output / "prepare.lease").write_text("left by a kill")
    assert len(prepare(source, output)[0]) == 3
    assert seen == [output / "prepare.lease"] and not [*output.parent.rglob("*.lease")]


def test_an_unknown_name(source, tmp_path):
    prepare(source, tmp_path / "prepared")
    with pytest.raises(ValueError, match=r"there is no image ball_7 in .*prepared"):
        PreparedImages(tmp_path / "prepared").read("ball_7", (0, 0, 0), (4, 4, 4))


@pytest.mark.parametrize("retry", [False, True])
def test_all_images_replaced_after_none_could_be_read(tmp_path, retry):
    images, output = tmp_path / "images", tmp_path / "prepared"
    images.mkdir()
    (images / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="none of the 1 images"):
        prepare(images, output, patch_size=(16, 16))
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30), dtype=np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(pixels), str(images / "a.png"))
    stored, skipped = prepare(images, output, patch_size=(16, 16), retry_failed=retry)
    assert [case.name for case in stored] == ["a"] and not skipped


def test_a_kill_before_the_first_image_is_stored(tmp_path):
    """Its folder has what workers were writing, and is still that of the same command."""
    state = FolderState(tmp_path / "prepared")
    state.begin(tmp_path / "raw", {"spacing": None}, "1")
    state.add_preparations([])
    (tmp_path / "prepared" / "ball_0.b2nd").write_bytes(b"half")
    again = FolderState(tmp_path / "prepared")  # of the next process
    assert again.settings == {"spacing": None} and again.source == str(tmp_path / "raw")


def test_a_matchers_cache_is_of_these_images(tmp_path):
    """Other images prepared under the same names are not matched by the features of those before."""
    folder = tmp_path / "prepared"
    for size in ((20, 20, 20), (20, 30, 24)):
        raw = write_dataset(tmp_path / "raw", size=size, cases=2)
        prepare(raw, folder, patch_size=(16, 16, 16))
        matcher = CachedMatcher(PreparedImages(folder), "identity")
        extent = matcher.features("ball_0")["extent"]
        assert extent.tolist() == pytest.approx([n - 1 for n in size])
        calls = []
        prepare_volume = matcher.matcher.prepare
        matcher.matcher.prepare = lambda volume, calls=calls, of=prepare_volume: calls.append(volume) or of(volume)
        matcher.features("ball_0")
        assert not calls
        for path in (raw, folder):
            shutil.rmtree(path)
