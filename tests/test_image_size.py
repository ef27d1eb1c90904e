"""Headers that claim more voxels than the file can hold, or than fit into memory, are refused before they are read."""

from __future__ import annotations

import gzip
import zlib

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_transformers import _image_size
from nnunet_transformers._image_size import check_size
from nnunet_transformers._voxels import check_complete
from tests.images import claim


def write(path):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 6, 7), dtype=np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(pixels), str(path))
    return path


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha", ".nrrd", ".tif"])
def test_images_are_as_large_as_they_claim(ending, tmp_path):
    path = write(tmp_path / f"a{ending}")
    assert _image_size._header(path) == ((7, 6, 5), 1)
    check_size([path])


def test_compressed_or_not_whatever_the_name(tmp_path):
    """ITK reads both, and passes over what follows a compressed image."""
    plain, named = tmp_path / "a.nii", tmp_path / "b.nii.gz"
    pixels = np.random.default_rng(0).integers(0, 255, (50, 60, 70), dtype=np.uint8)  # more than a reader's buffer
    sitk.WriteImage(sitk.GetImageFromArray(pixels), str(plain))
    named.write_bytes(plain.read_bytes())
    check_complete(named)
    named.write_bytes(plain.read_bytes()[:-1])
    with pytest.raises(EOFError, match="bytes of"):
        check_complete(named)
    named.write_bytes(gzip.compress(plain.read_bytes()) + b"trailing")
    check_complete(named)
    named.write_bytes(gzip.compress(plain.read_bytes()[:-1]) + b"trailing")
    with pytest.raises(EOFError, match="bytes of"):
        check_complete(named)


def test_colours(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (6, 7, 3), dtype=np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=True), str(tmp_path / "a.png"))
    assert _image_size._header(tmp_path / "a.png") == ((7, 6), 3)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_claims(ending, tmp_path):
    path = write(tmp_path / f"a{ending}")
    claim(path, (1000, 1000, 1000))
    with pytest.raises(
        ValueError, match=r"a\.nii.* is truncated: its header claims 1000x1000x1000 voxels, which \d+ by"
    ):
        check_size([path])
    claim(path, (32767,) * 7)
    with pytest.raises(ValueError, match=r"its header claims 32767x"):
        check_size([path])


def test_memory(tmp_path, monkeypatch):
    files = [write(tmp_path / f"a_000{channel}.mha") for channel in range(2)]
    needed = 2 * 5 * 6 * 7 * (1 + 4)
    monkeypatch.setattr(_image_size, "available_bytes", lambda: needed)
    check_size(files)
    monkeypatch.setattr(_image_size, "available_bytes", lambda: needed - 1)
    with pytest.raises(ValueError, match=r"too large for memory: 7x6x5 voxels need 0\.0 GB"):
        check_size(files)


def test_other_files_are_left_to_their_reader(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"not an image")
    check_size([tmp_path / "a.nii.gz"])


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_voxels_with_a_slope_are_smaller_in_the_file(ending, tmp_path):
    """ITK states the four bytes of a float for integers with a slope, as SPM writes them."""
    path = tmp_path / f"a{ending}"
    image = nibabel.Nifti1Image(np.random.default_rng(0).normal(size=(20, 21, 22)), np.eye(4))
    image.set_data_dtype(np.int16)
    nibabel.save(image, path)
    assert np.isfinite(nibabel.load(path).dataobj.slope) and nibabel.load(path).dataobj.slope != 1
    check_size([path])
    check_complete(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises((ValueError, OSError, EOFError)):
        check_size([path])
        check_complete(path)


def test_whole_compressed_files(tmp_path):
    """Files of several gzip members, and with something behind the voxels, are read to see that they are whole."""
    path = write(tmp_path / "a.nii.gz")
    content = gzip.decompress(path.read_bytes())
    for whole in (gzip.compress(content[:300]) + gzip.compress(content[300:]), gzip.compress(content + b"more")):
        path.write_bytes(whole)
        check_complete(path)
    path.write_bytes(gzip.compress(content)[:-9])
    with pytest.raises(EOFError):
        check_complete(path)


def test_compressed_files_that_are_damaged_within(tmp_path):
    """ITK reads other voxels from one, as of a broken transfer, and says nothing."""
    # so large that reading the header does not reach the end
    noise = np.random.default_rng(0).integers(0, 999, (96, 96, 96), dtype=np.int16)
    path = tmp_path / "a.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(noise), str(path))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises((OSError, EOFError, zlib.error)):
        check_complete(path)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_whole_file_of_part_of_an_image(ending, tmp_path):
    path = write(tmp_path / f"a{ending}")
    content = path.read_bytes() if ending == ".nii" else gzip.decompress(path.read_bytes())
    path.write_bytes(content[:-9] if ending == ".nii" else gzip.compress(content[:-9]))
    with pytest.raises(EOFError, match="bytes of"):
        check_complete(path)
