"""Pictures by what their files say of the samples: transparency, inks, what is white, turns, pages."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from nnunet_transformers.pretraining.data.cases import ImageCase
from nnunet_transformers.pretraining.data.reading import read_image


def picture(seed=0, size=(18, 22), high=255, kind=np.uint8):
    return np.random.default_rng(seed).integers(0, high, size).astype(kind)


def case(path):
    return ImageCase(path.stem, (str(path),), path.name)


def test_tiff_of_few_slices(tmp_path):
    """Three or four pages are slices, no colours."""
    for slices in (3, 4, 5):
        voxels = np.random.default_rng(0).integers(0, 999, (slices, 20, 30), dtype=np.uint16)
        tifffile.imwrite(tmp_path / f"{slices}.tif", voxels, photometric="minisblack")
        found = read_image(case(tmp_path / f"{slices}.tif"))
        np.testing.assert_array_equal(found.voxels[0], voxels)


def test_tiff_with_a_thumbnail(tmp_path):
    """Pages of another size are no slices."""
    for shape in ((64, 80, 3), (64, 80)):
        pixels = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
        with tifffile.TiffWriter(tmp_path / "a.tif") as file:
            file.write(pixels)
            file.write(pixels[::4, ::4])
        expected = np.moveaxis(pixels, -1, 0)[:, None] if len(shape) == 3 else pixels[None, None]
        np.testing.assert_array_equal(read_image(case(tmp_path / "a.tif")).voxels, expected)


def test_tiff_of_slices_that_were_written_one_by_one(tmp_path):
    """Its reader takes the first of them, so that it is refused."""
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for _ in range(5):
            file.write(np.random.default_rng(0).integers(0, 255, (20, 30), dtype=np.uint8))
    with pytest.raises(Exception, match="Only 3D images are supported"):
        read_image(case(tmp_path / "a.tif"))


def test_tags_of_a_tiff_are_left_to_its_reader(tmp_path):
    """Pillow would read one page of it, and sixteen bits of a colour as eight."""
    rng = np.random.default_rng(0)
    turned = {"extratags": [(274, 3, 1, 6, True)]}
    voxels, colours = rng.integers(0, 999, (10, 32, 40)), rng.integers(0, 60_000, (32, 40, 3))
    tifffile.imwrite(tmp_path / "v.tif", voxels.astype(np.uint16), photometric="minisblack", **turned)
    np.testing.assert_array_equal(read_image(case(tmp_path / "v.tif")).voxels[0], voxels)
    tifffile.imwrite(tmp_path / "c.tif", colours.astype(np.uint16), **turned)
    np.testing.assert_array_equal(read_image(case(tmp_path / "c.tif")).voxels[:, 0], np.moveaxis(colours, -1, 0))


def test_grey_with_transparency(tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, (20, 30), dtype=np.uint8)
    Image.fromarray(np.stack([grey, np.full_like(grey, 9)], -1), "LA").save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(case(tmp_path / "a.png")).voxels, grey[None, None])


@pytest.mark.parametrize("longest", [None, 40])
@pytest.mark.parametrize("ending", [".jpg", ".tif"])
def test_inks(tmp_path, ending, longest):
    """CMYK, whose fourth value is black and no transparency."""
    colours = np.multiply.outer([200, 90, 10], np.tile(np.linspace(0, 1, 30), (40, 1)))
    inks = Image.fromarray(np.moveaxis(colours, 0, -1).astype(np.uint8)).convert("CMYK")
    inks.save(tmp_path / f"a{ending}", **({"quality": 100} if ending == ".jpg" else {}))
    found = read_image(case(tmp_path / f"a{ending}"), longest=longest).voxels[:, 0]
    assert np.abs(found - (colours if longest is None else colours.mean(0))).max() < 4


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_tiff_whose_zero_is_white(tmp_path, bits):
    """As scanners write it; MONOCHROME1 of DICOM is inverted too."""
    pixels = picture(high=2**bits, kind=np.uint16 if bits == 16 else np.uint8)
    stored = (2**bits - 1 - pixels).astype(bool if bits == 1 else pixels.dtype)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite")
    for channels in (None, 1):
        np.testing.assert_array_equal(read_image(case(tmp_path / "a.tif"), channels=channels).voxels[0, 0], pixels)


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("colours", [1, 3])
def test_tiff_with_transparency(tmp_path, colours, planes):
    """Of a grey picture it would make a volume whose slices are rows; of a wanted number of channels it is one."""
    pixels = np.random.default_rng(0).integers(0, 255, (colours + 1, 20, 30), dtype=np.uint8)
    kind = {"photometric": "rgb" if colours == 3 else "minisblack", "extrasamples": ["unassalpha"]}
    stored = pixels if planes == "separate" else np.moveaxis(pixels, 0, -1)
    tifffile.imwrite(tmp_path / "a.tif", stored, planarconfig=planes, **kind)
    for channels in (None, colours, colours + 1):
        found = read_image(case(tmp_path / "a.tif"), channels=channels).voxels[:, 0]
        np.testing.assert_array_equal(found, pixels[: channels or colours])
    assert read_image(case(tmp_path / "a.tif"), longest=30).voxels[0, 0, 3, 4] == np.rint(pixels[:-1, 3, 4].mean())


def test_tiff_of_many_channels(tmp_path):
    """Which nnU-Net's reader of pictures refuses, and that of volumes would take."""
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 5), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", planarconfig="contig")
    np.testing.assert_array_equal(read_image(case(tmp_path / "a.tif")).voxels[:, 0], np.moveaxis(pixels, -1, 0))


def test_tiff_of_a_file_for_each_channel(tmp_path):
    pixels = np.stack([picture(seed) for seed in range(2)])
    files = [tmp_path / f"a_{number:04d}.tif" for number in range(2)]
    for file, channel in zip(files, pixels, strict=True):
        tifffile.imwrite(file, channel)
    found = read_image(ImageCase("a", tuple(map(str, files))), channels=2)
    np.testing.assert_array_equal(found.voxels[:, 0], pixels)


@pytest.mark.parametrize("longest", [None, 40])
def test_turned_by_its_tag(tmp_path, longest):
    """As cameras write it: the pixels lie on their side, and viewers turn them."""
    pixels = np.kron(np.arange(6).reshape(2, 3) * 40, np.ones((8, 8))).astype(np.uint8)
    tag = Image.Exif()
    tag[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=100, exif=tag)
    found = read_image(case(tmp_path / "a.jpg"), longest=longest).voxels
    assert found.shape == (1, 1, 24, 16)
    assert np.abs(found[0, 0] - np.rot90(pixels, -1)).max() < 4


@pytest.mark.parametrize("longest", [None, 12])
@pytest.mark.parametrize("tags", [b"Exif\0\0garbage!", b"Exif\0\0II"])
def test_damaged_tags(tmp_path, longest, tags):
    pixels = np.kron(np.arange(6).reshape(2, 3) * 40, np.ones((8, 8))).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=100, exif=tags)
    shape = read_image(case(tmp_path / "a.jpg"), longest=longest).voxels.shape
    assert shape == ((1, 1, 16, 24) if longest is None else (1, 1, 8, 12))


def test_damage_beside_a_turn(tmp_path):
    """What of the tags can be read counts: here the width is a number that no file may have."""
    pixels = np.kron(np.arange(6).reshape(2, 3) * 40, np.ones((8, 8))).astype(np.uint8)
    entry = struct.Struct("<HHIi").pack
    tags = b"II*\0\x08\0\0\0" + struct.pack("<H", 2) + entry(0x0100, 9, 1, -1) + entry(0x0112, 3, 1, 6) + bytes(4)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=100, exif=b"Exif\0\0" + tags)
    found = read_image(case(tmp_path / "a.jpg")).voxels
    assert np.abs(found[0, 0] - np.rot90(pixels, -1)).max() < 4


@pytest.mark.parametrize("orientation", range(9))
def test_all_turns(tmp_path, orientation):
    tag = Image.Exif()
    tag[0x0112] = orientation
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30), dtype=np.uint8))
    picture.save(tmp_path / "a.png", exif=tag)
    with Image.open(tmp_path / "a.png") as written:
        expected = np.asarray(ImageOps.exif_transpose(written))
    np.testing.assert_array_equal(read_image(case(tmp_path / "a.png")).voxels[0, 0], expected)


def test_turned_with_transparency_as_a_channel(tmp_path):
    tag = Image.Exif()
    tag[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=tag)
    for channels in (3, 4):
        found = read_image(case(tmp_path / "a.png"), channels=channels).voxels[:, 0]
        np.testing.assert_array_equal(found, np.moveaxis(np.rot90(pixels, -1), -1, 0)[:channels])
