"""Runs on grand-challenge.org: which image is which channel, and where the segmentation goes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_transformers.formats.sockets import Sockets, holds_sockets, read_interfaces

from .series import oblique

DATASET = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
BOTH = {"inputs": {"mri-t2": "T2", "mri-t1": "T1"}, "output": "tumour"}


def interfaces(folder, *content, channels=("T1", "T2")):
    (folder / "sockets.json").write_text(json.dumps(content[0] if len(content) == 1 else content))
    return read_interfaces(folder / "sockets.json", channels)


@pytest.fixture
def run(tmp_path):
    """Return the input of a run with two images and a number, whose folders are not called as the sockets are."""
    folder = tmp_path / "input"
    sockets = {"mri-t1": "images/first", "mri-t2": "images/second", "age": "age.json"}
    for number, path in enumerate(("images/first", "images/second")):
        (folder / path).mkdir(parents=True)
        voxels = np.random.default_rng(number).normal(size=(4, 5, 6)).astype(np.float32)
        sitk.WriteImage(oblique(sitk.GetImageFromArray(voxels)), str(folder / path / f"uuid{number}.mha"))
    entries = [{"value": None, "interface": {"slug": s, "relative_path": p}} for s, p in sockets.items()]
    (folder / "inputs.json").write_text(json.dumps(entries))
    return folder


def test_channels_and_output(run, tmp_path):
    source = Sockets(run, interfaces(tmp_path, BOTH), DATASET)
    assert source.names == ["uuid0"]
    with source.files("uuid0") as files:
        for number, path in enumerate(files):
            assert path.name == f"uuid0_{number:04d}.nii.gz"
            voxels = np.random.default_rng(number).normal(size=(4, 5, 6)).astype(np.float32)
            np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), voxels)
        labels = sitk.GetImageFromArray(np.random.default_rng(2).integers(0, 2, (4, 5, 6)).astype(np.uint8))
        sitk.WriteImage(labels, str(tmp_path / "labels.nii.gz"))
        target = source.target("uuid0", tmp_path / "output")
        source.write("uuid0", tmp_path / "labels.nii.gz", target)
    assert target == tmp_path / "output/images/tumour/uuid0.mha"
    written, image = sitk.ReadImage(str(target)), sitk.ReadImage(str(run / "images/first/uuid0.mha"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(labels))
    for name in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(written, name)() == getattr(image, name)()


def test_a_slice_for_pictures(run, tmp_path):
    """They have two axes, the image that the segmentation belongs to three; a UID as a name has dots."""
    path, name = run / "images/first/1.2.840.5.mha", "1.2.840.5"
    (run / "images/first/uuid0.mha").unlink()
    voxels = np.random.default_rng(0).integers(0, 200, (1, 5, 6)).astype(np.uint8)
    sitk.WriteImage(oblique(sitk.GetImageFromArray(voxels)), str(path))
    dataset = {**DATASET, "channel_names": {"0": "0"}, "file_ending": ".png"}
    # a channel's name may be a number, which JSON has two forms of
    source = Sockets(run, interfaces(tmp_path, {"inputs": {"mri-t1": 0}, "output": "a"}, channels=("0",)), dataset)
    assert source.names == [name]
    with source.files(name) as (picture,):
        source.write(name, picture, source.target(name, tmp_path))
    found = sitk.ReadImage(str(tmp_path / f"images/a/{name}.mha"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), voxels)
    assert found.GetDirection() == sitk.ReadImage(str(path)).GetDirection()


def test_colours(run, tmp_path):
    path = run / "images/second/uuid1.mha"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True), str(path))
    source = Sockets(run, interfaces(tmp_path, BOTH), DATASET)
    with (
        pytest.raises(ValueError, match=rf"{path} has 3 values .* \(channel T2\)"),
        source.files("uuid0"),
    ):
        pass


def test_channels_of_one_name_are_in_the_interfaces_order(run, tmp_path):
    """nnU-Net knows a CT by the name of its channel, so that two phases have one name."""
    phases = {"inputs": {"mri-t2": "CT", "mri-t1": "CT"}, "output": "tumour"}
    dataset = {**DATASET, "channel_names": {"0": "CT", "1": "CT"}}
    source = Sockets(run, interfaces(tmp_path, phases, channels=("CT", "CT")), dataset)
    with source.files("case") as files:
        for number, path in zip((1, 0), files, strict=True):
            voxels = np.random.default_rng(number).normal(size=(4, 5, 6)).astype(np.float32)
            np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), voxels)


def test_the_run_chooses_the_interface(run, tmp_path):
    other = {"inputs": {"flair": "T1", "mri-t2": "T2"}, "output": "images/elsewhere"}
    found = interfaces(tmp_path, BOTH, other)
    assert Sockets(run, found, DATASET).target("a", run) == run / "images/tumour/a.mha"
    # without inputs.json, by the platform's rule for the folders
    (run / "inputs.json").unlink()
    (run / "images/first").rename(run / "images/flair")
    (run / "images/second").rename(run / "images/mri-t2")
    assert holds_sockets(run)
    assert Sockets(run, found, DATASET).target("a", run) == run / "images/elsewhere/a.mha"


def test_what_is_missing(run, tmp_path):
    found = interfaces(tmp_path, BOTH)
    (run / "images/second/uuid1.mha").unlink()
    with pytest.raises(ValueError, match=r"second has 0 images .*, a socket has one"):
        Sockets(run, found, DATASET)
    (run / "inputs.json").write_text("[]")
    with pytest.raises(FileNotFoundError, match="has the sockets none; this model takes mri-t2 and mri-t1"):
        Sockets(run, found, DATASET)
    (run / "inputs.json").write_text('[{"socket": {"slug": "mri-t1"}}]')
    with pytest.raises(ValueError, match="list of sockets with slug and relative_path: KeyError: 'relative_path'"):
        Sockets(run, found, DATASET)
    (run / "inputs.json").write_text('[{"socket": {"slug": "mri-t1", "relative_path": "../../etc"}}]')
    with pytest.raises(ValueError, match="leads out of its folder"):
        Sockets(run, found, DATASET)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("T1", "not a JSON of interfaces"),
        ({"inputs": {"mri": "T1"}}, "not a JSON of interfaces"),
        ({"inputs": {"mri": "T1"}, "output": "a"}, r"the inputs of a \(mri: T1\) are not the channels T1, T2"),
        ([BOTH, {**BOTH, "output": "b"}], "two interfaces have the same inputs"),
        ({**BOTH, "output": "../a"}, "leads out of its folder"),
    ],
)
def test_mistakes_of_the_interfaces(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        interfaces(tmp_path, content)
