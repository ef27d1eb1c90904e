"""Radiographs: shrunk at decoding, prepared once, and read from files or from the prepared folder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from nnunet_transformers.pretraining.data import PreparedImages
from nnunet_transformers.pretraining.data.prepare import prepare, prepare_folder
from nnunet_transformers.pretraining.data.radiographs import (
    PreparedRadiographs,
    RadiographFiles,
    open_radiographs,
    read_radiograph,
)
from nnunet_transformers.pretraining.data.reduced import read_picture
from nnunet_transformers.pretraining.data.report_pairs import ReportPairData
from tests.dicom import write_dicom

LONGEST = 64
OPTIONS = {"longest": LONGEST, "normalization": "rescale_to_0_1"}


def gradient(height=300, width=200, high=255):
    """A smooth picture, whose resized form is known."""
    return np.add.outer(np.linspace(0, high / 2, height), np.linspace(0, high / 2, width))


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "raw"
    (folder / "p10").mkdir(parents=True)
    Image.fromarray(gradient().astype(np.uint8)).save(folder / "p10" / "a.jpg", quality=95)
    Image.fromarray(gradient(high=60000).astype(np.uint16)).save(folder / "b.png")
    rgba = np.stack([gradient().astype(np.uint8)] * 3 + [np.arange(300 * 200).reshape(300, 200) % 200], -1)
    Image.fromarray(rgba.astype(np.uint8)).save(folder / "c.png")
    write_dicom(folder / "d.dcm", gradient(high=4000).astype(np.uint16), "DX", spacing="0.2\\0.2")
    return folder


class TestReduced:
    @pytest.mark.parametrize("name", ["p10/a.jpg", "b.png", "c.png", "d.dcm"])
    def test_any_file_becomes_one_channel_of_the_longest_side(self, source, name):
        image = read_radiograph(source / name, 3, LONGEST)
        assert image.shape == (3, 64, 43)
        assert torch.equal(image[0], image[2])
        expected = np.add.outer(np.linspace(0, 0.5, 64), np.linspace(0, 0.5, 43))
        np.testing.assert_allclose(image[0], expected, atol=0.02)

    def test_small_pictures_stay_as_they_are(self, tmp_path):
        pixels = np.random.default_rng(0).integers(0, 255, (20, 30)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_picture(str(tmp_path / "a.png"), 30)[0, 0], pixels)

    def test_a_jpeg_is_decoded_no_finer_than_needed(self, source, monkeypatch):
        sizes = []

        def thumbnail(picture, size, *options, shrink=Image.Image.thumbnail, **more):
            shrink(picture, size, *options, **more)
            sizes.append(picture.decoderconfig)

        monkeypatch.setattr(Image.Image, "thumbnail", thumbnail)
        Image.fromarray(gradient(1200, 1000).astype(np.uint8)).save(source / "large.jpg")
        assert read_picture(str(source / "large.jpg"), LONGEST).shape == (1, 1, 64, 53)
        assert sizes == [(4, 0)]  # to at least twice the size

    def test_colours_are_averaged(self, tmp_path):
        pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_picture(str(tmp_path / "a.png"), 8)[0, 0], np.rint(pixels.mean(-1)))


class TestPrepared:
    def test_stores_in_as_few_bits_and_reads_the_same(self, source, tmp_path):
        stored, skipped = prepare(source, tmp_path / "out", **OPTIONS)
        assert ([case.key for case in stored], skipped) == (["b.png", "c.png", "d.dcm", "p10/a.jpg"], [])
        prepared, files = open_radiographs(tmp_path / "out", LONGEST), open_radiographs(source, LONGEST)
        assert (type(prepared), type(files)) == (PreparedRadiographs, RadiographFiles)
        for case in stored:
            np.testing.assert_allclose(prepared.read(case.key, 3), files.read(case.key, 3), atol=1e-5)
        images = PreparedImages(tmp_path / "out")
        assert images.shapes["p10__a"] == (1, 1, 64, 43)
        lengths = {case.key: case.length for case in images.index.cases}
        assert lengths["c.png"] < 64 * 43 + 200  # 8 bits
        assert [
            line for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines() if "inspected" in line
        ] == []

    def test_statistics_over_images_need_a_first_look(self, source, tmp_path):
        prepare(source, tmp_path / "out", longest=LONGEST)
        images = PreparedImages(tmp_path / "out")
        image = images.read("p10__a", (0, 0, 0), images.shapes["p10__a"][1:])
        assert (float(image.mean()), float(image.std())) == pytest.approx((0, 1), abs=1e-3)
        with pytest.raises(ValueError, match="does not hold 2D images of the range 0 to 1; prepare radiographs with"):
            open_radiographs(tmp_path / "out", LONGEST)

    def test_constant_images_and_volumes_are_skipped_by_name(self, source, tmp_path):
        Image.new("RGB", (300, 200), (90, 20, 40)).save(source / "flat.jpg")
        black = np.zeros((64, 64, 4), np.uint8)
        black[..., 3] = np.arange(64)
        Image.fromarray(black).save(source / "black.png")
        (source / "cut.jpg").write_bytes((source / "p10" / "a.jpg").read_bytes()[:900])
        np.save(source / "x.npy", black)
        summary = prepare_folder(source, tmp_path / "out", **OPTIONS)
        reasons = {line.name: line.reason for line in summary.skipped}
        assert sorted(reasons) == ["black", "cut", "flat"]
        assert "constant" in reasons["flat"]
        assert "constant" in reasons["black"]
        assert "truncated" in reasons["cut"]

    def test_goes_on_with_the_same_side_only(self, source, tmp_path):
        prepare(source, tmp_path / "out", **OPTIONS)
        with pytest.raises(ValueError, match=r"other options \(longest\)"):
            prepare(source, tmp_path / "out", **OPTIONS | {"longest": 32})
        with pytest.raises(ValueError, match="--longest shrinks pictures of one channel"):
            prepare(source, tmp_path / "other", **OPTIONS, spacing=(1, 1))

    def test_new_images_alike(self, source, tmp_path):
        """By the plan that a classifier keeps."""
        prepare(source, tmp_path / "out", **OPTIONS)
        images = PreparedImages(tmp_path / "out")
        prepare(source, tmp_path / "like", planned=(images.index.plans, images.index.configuration))
        again = PreparedImages(tmp_path / "like")
        assert again.shapes == images.shapes
        for name, shape in images.shapes.items():
            assert torch.equal(again.read(name, (0, 0, 0), shape[1:]), images.read(name, (0, 0, 0), shape[1:]))

    def test_pairs(self, source, tmp_path, bert):
        """A prepared folder in place of the files, by the table of the files."""
        prepare(source, tmp_path / "out", **OPTIONS)
        rows = ["p10/a.jpg,small left nodule,train", "b.png,a large opacity,train", "c.png,no acute finding,validate"]
        table = tmp_path / "table.csv"
        table.write_text("\n".join(["image,report,split", *rows, "e.png,one two three,train"]))
        data = ReportPairData(str(table), bert, (56, 56), 1, str(tmp_path / "out"))
        assert [len(data.training), len(data.validation)] == [2, 1]
        assert data.reports.skipped[0].reason == "image is not in the prepared folder"
        files = ReportPairData(str(table), bert, (56, 56), 1, str(source))
        assert files.reports.skipped[0].reason == "image does not exist"
        np.testing.assert_allclose(data.validation[0]["image"], files.validation[0]["image"], atol=1e-5)
