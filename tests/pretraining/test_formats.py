"""Every kind of image file, and what is not to be learned from."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nibabel.nifti1 import Nifti1Image
from PIL import Image
from typer.testing import CliRunner

from nnunet_transformers import cli
from nnunet_transformers.formats.dicom_series import NO_PIXELS, read_series
from nnunet_transformers.pretraining.data import PreparedImages, read_index
from nnunet_transformers.pretraining.data.cases import find_cases
from nnunet_transformers.pretraining.data.prepare import prepare
from nnunet_transformers.pretraining.data.reading import read_image
from tests.dicom import write_dicom, write_series

SIZE = (10, 14, 12)


def volume(seed=0, size=SIZE, kind=np.int16):
    return np.random.default_rng(seed).normal(100, 20, size).astype(kind)


def picture(seed=0, size=(18, 22), high=255, kind=np.uint8):
    return np.random.default_rng(seed).integers(0, high, size).astype(kind)


def values(folder, name):
    images = PreparedImages(folder)
    return images.read(name, (0, 0, 0), images.shapes[name][1:]).numpy()


class TestEndings:
    def test_all_in_one_folder(self, tmp_path):
        """The reader is that of each image, and 2D images and volumes go to two parts."""
        raw = tmp_path / "raw"
        raw.mkdir()
        for ending in (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl"):
            sitk.WriteImage(sitk.GetImageFromArray(volume()), str(raw / f"volume{ending}"))
        tifffile.imwrite(raw / "stack.tif", volume())
        for ending in (".png", ".bmp", ".tif", ".jpg", ".JPEG"):
            Image.fromarray(picture()).save(raw / f"picture{ending}")
        tifffile.imwrite(raw / "flat.tiff", picture(high=65535, kind=np.uint16))
        Image.fromarray(picture(high=65535, kind=np.uint16)).save(raw / "deep.png")
        stored, skipped = prepare(raw, tmp_path / "prepared", normalization="nonorm", spacing=(1, 1, 1))
        assert not skipped and len(stored) == 13
        with pytest.raises(ValueError, match=r"holds 2D images and volumes apart; give .*2d or .*3d"):
            read_index(tmp_path / "prepared")
        flat, deep = tmp_path / "prepared" / "2d", tmp_path / "prepared" / "3d"
        assert len(read_index(flat).cases) == 7 and len(read_index(deep).cases) == 6
        assert read_index(flat).spacing == (1, 1)
        for case in read_index(deep).cases:
            np.testing.assert_array_equal(values(deep, case.name)[0], volume(), err_msg=case.name)
        names = {case.key: case.name for case in read_index(flat).cases}
        for name in ("picture.png", "picture.bmp", "picture.tif"):
            np.testing.assert_array_equal(values(flat, names[name])[0, 0], picture(), err_msg=name)
        for name in ("flat.tiff", "deep.png"):
            wanted = picture(high=65535, kind=np.uint16)
            np.testing.assert_array_equal(values(flat, names[name])[0, 0], wanted, err_msg=name)
        assert np.abs(values(flat, names["picture.jpg"])[0, 0] - picture()).mean() < 20

    def test_later_images_of_either_kind_go_to_their_part(self, tmp_path):
        raw = tmp_path / "raw"
        raw.mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(volume()), str(raw / "a.nii.gz"))
        Image.fromarray(picture()).save(raw / "b.png")
        prepare(raw, tmp_path / "prepared")
        Image.fromarray(picture(1)).save(raw / "c.png")
        prepare(raw, tmp_path / "prepared")
        assert [case.name for case in read_index(tmp_path / "prepared" / "2d").cases] == ["b", "c"]

    def test_a_plan_for_the_other_kind(self, tmp_path):
        raw = tmp_path / "raw"
        raw.mkdir()
        Image.fromarray(picture()).save(raw / "b.png")
        prepare(raw, tmp_path / "prepared")
        sitk.WriteImage(sitk.GetImageFromArray(volume()), str(raw / "a.nii.gz"))
        _, skipped = prepare(raw, tmp_path / "prepared")
        assert skipped[0].reason == "is a volume, the folder's plan is for 2D images; prepare it into another folder"

    def test_colours(self, tmp_path):
        raw = tmp_path / "raw"
        raw.mkdir()
        grey = picture()
        colour = np.random.default_rng(2).integers(0, 255, (18, 22, 3), dtype=np.uint8)
        Image.fromarray(np.stack([grey] * 3, -1)).save(raw / "grey_in_colour.png")
        Image.fromarray(np.dstack([grey] * 3 + [np.full_like(grey, 255)])).save(raw / "with_alpha.png")
        Image.fromarray(grey).save(raw / "grey.png")
        Image.fromarray(np.dstack([np.zeros_like(grey)] * 3 + [grey])).save(raw / "black.png")
        Image.fromarray(colour).save(raw / "colour.png")
        stored, skipped = prepare(raw, tmp_path / "prepared")
        assert [case.name for case in stored] == ["grey", "grey_in_colour", "with_alpha"]
        reasons = {case.name: case.reason for case in skipped}
        assert reasons == {"black": "channel 0 is constant (0)", "colour": "has 3 channels, others 1"}


class TestBits:
    @pytest.mark.parametrize("normalization", ["zscore", "rescale_to_0_1", "nonorm"])
    @pytest.mark.parametrize("bits", [8, 12])
    def test_as_few_as_the_source_has(self, bits, normalization, tmp_path):
        (tmp_path / "raw").mkdir()
        pixels = picture(high=2**bits, kind=np.uint16)
        Image.fromarray(pixels if bits > 8 else pixels.astype(np.uint8)).save(tmp_path / "raw" / "a.png")
        prepare(tmp_path / "raw", tmp_path / "prepared", normalization=normalization)
        wanted = pixels.astype(np.float64)
        if normalization == "zscore":
            wanted = (wanted - wanted.mean()) / wanted.std()
        elif normalization == "rescale_to_0_1":
            wanted = (wanted - wanted.min()) / (wanted.max() - wanted.min())
        images = PreparedImages(tmp_path / "prepared")
        found = values(tmp_path / "prepared", "a")[0, 0]
        np.testing.assert_allclose(found, wanted, atol=2e-6 * np.ptp(wanted))
        stored = stored_type(images, "a")
        assert stored == (np.uint8 if bits == 8 else np.uint16)

    def test_resampled(self, tmp_path):
        """Then the values are in 65536 steps over their range."""
        (tmp_path / "raw").mkdir()
        image = sitk.GetImageFromArray(picture(size=(40, 40), kind=np.int16))
        image.SetSpacing((0.5, 0.5))
        sitk.WriteImage(image, str(tmp_path / "raw" / "a.nrrd"))
        sitk.WriteImage(sitk.Cast(image, sitk.sitkFloat32) / 3, str(tmp_path / "raw" / "b.nrrd"))
        prepare(tmp_path / "raw", tmp_path / "prepared", spacing=(1, 1))
        images = PreparedImages(tmp_path / "prepared")
        a, b = (values(tmp_path / "prepared", name) for name in "ab")
        assert (stored_type(images, "a"), stored_type(images, "b")) == (np.uint16, np.float32)
        # both are z-scored, of the same picture
        np.testing.assert_allclose(a, b, atol=1.1e-5 * np.ptp(b))


def stored_type(images, name):
    from nnunet_transformers.pretraining.data.image_store import open_image

    return open_image(images.folder, images.cases[name]).dtype


class TestNifti:
    def write(self, path, voxels, affine=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        Nifti1Image(voxels, np.eye(4) if affine is None else affine).to_filename(path)

    def test_nan_and_infinity(self, tmp_path):
        good = volume(kind=np.float32)
        self.write(tmp_path / "raw" / "good.nii.gz", good)
        for name, number in (("nan", np.nan), ("inf", np.inf)):
            bad = good.copy()
            bad[3, 4, 5:7] = number
            self.write(tmp_path / "raw" / f"{name}.nii.gz", bad)
            self.write(tmp_path / "raw" / f"{name}_plain.nii", bad)
        stored, skipped = prepare(tmp_path / "raw", tmp_path / "prepared")
        assert [case.name for case in stored] == ["good"]
        assert {case.reason for case in skipped} == {"holds NaN or infinity in 2 voxels"} and len(skipped) == 4

    def test_axes_that_are_not_orthonormal(self, tmp_path):
        affine = np.eye(4)
        affine[0, 1] = 0.4
        self.write(tmp_path / "raw" / "sheared.nii.gz", volume().transpose(2, 1, 0), affine)
        self.write(tmp_path / "raw" / "straight.nii.gz", volume(1).transpose(2, 1, 0))
        with pytest.raises(RuntimeError, match="orthonormal"):
            sitk.ReadImage(str(tmp_path / "raw" / "sheared.nii.gz"))
        stored, skipped = prepare(tmp_path / "raw", tmp_path / "prepared", normalization="nonorm", spacing=(1, 1, 1))
        assert len(stored) == 2 and not skipped
        np.testing.assert_array_equal(values(tmp_path / "prepared", "sheared")[0].shape[::2], (10, 12))

    def test_voxels_of_several_values(self, tmp_path):
        self.write(tmp_path / "raw" / "good.nii.gz", volume())
        image = sitk.GetImageFromArray(volume(size=(*SIZE, 3)), isVector=True)
        sitk.WriteImage(image, str(tmp_path / "raw" / "vectors.nrrd"))
        _, skipped = prepare(tmp_path / "raw", tmp_path / "prepared")
        assert skipped[0].reason == "has several values per voxel, which nnU-Net does not read"

    def test_colours(self, tmp_path):
        """NIfTI's own type of voxel."""
        self.write(tmp_path / "raw" / "good.nii.gz", volume())
        self.write(tmp_path / "raw" / "colours.nii.gz", np.zeros(SIZE, [(colour, np.uint8) for colour in "RGB"]))
        _, skipped = prepare(tmp_path / "raw", tmp_path / "prepared")
        assert "colours.nii.gz has several values per voxel (colours), which nnU-Net does not read" in skipped[0].reason

    def test_orientations(self, tmp_path):
        (tmp_path / "raw").mkdir()
        image = sitk.GetImageFromArray(volume())
        for code in ("LPS", "RAS", "PIR"):
            sitk.WriteImage(sitk.DICOMOrient(image, code), str(tmp_path / "raw" / f"{code}.nii.gz"))
        command = ["pretrain", "prepare", str(tmp_path / "raw"), str(tmp_path / "as_stored"), "--spacing", "1,1,1"]
        output = CliRunner().invoke(cli.app, command).output
        assert "note: volumes lie in several orientations (LPS 1, PIR 1, RAS 1); --reorient brings all to RAS" in output
        command[3] = str(tmp_path / "reoriented")
        assert "note" not in CliRunner().invoke(cli.app, [*command, "--reorient"]).output
        images = PreparedImages(tmp_path / "reoriented")
        assert set(images.shapes.values()) == {(1, *SIZE)}
        first, *others = (values(tmp_path / "reoriented", name) for name in images.names)
        for other in others:
            np.testing.assert_allclose(first, other, atol=1e-5)
        assert images.index.plans["image_reader_writer"] == "SimpleITKIOWithReorient"


class TestIntensities:
    def write(self, folder, shift=0):
        folder.mkdir(exist_ok=True)
        for number in range(3):
            rng = np.random.default_rng(number)
            body = rng.normal(40, 120, SIZE)
            voxels = np.where(rng.random(SIZE) < 0.4, rng.normal(-1000, 10, SIZE), body) + shift
            sitk.WriteImage(sitk.GetImageFromArray(voxels.astype(np.int16)), str(folder / f"{number}.nii.gz"))

    def test_range(self, tmp_path):
        self.write(tmp_path / "raw")
        prepare(tmp_path / "raw", tmp_path / "prepared", intensity_range=(-175, 250))
        index = read_index(tmp_path / "prepared")
        assert index.normalization == ("CTNormalization",)
        statistics = index.plans["foreground_intensity_properties_per_channel"]["0"]
        assert (statistics["percentile_00_5"], statistics["percentile_99_5"]) == (-175, 250)
        original = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "raw" / "0.nii.gz"))).astype(np.float64)
        wanted = (original.clip(-175, 250) - statistics["mean"]) / statistics["std"]
        np.testing.assert_allclose(values(tmp_path / "prepared", "0")[0], wanted, atol=1e-4)
        # mean and deviation are of the body, without the air around it
        everything = [sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in sorted((tmp_path / "raw").iterdir())]
        body = np.concatenate([image[image > -500].clip(-175, 250) for image in everything])
        assert statistics["mean"] == pytest.approx(body.mean(), abs=2)
        assert statistics["std"] == pytest.approx(body.std(), rel=0.03)

    def test_percentiles_are_of_the_foreground(self, tmp_path):
        self.write(tmp_path / "raw")
        prepare(tmp_path / "raw", tmp_path / "prepared", normalization="ct")
        statistics = read_index(tmp_path / "prepared").plans["foreground_intensity_properties_per_channel"]["0"]
        everything = [sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in sorted((tmp_path / "raw").iterdir())]
        body = np.concatenate([image[image > -500] for image in everything])
        low, median, high = np.percentile(body, (0.5, 50, 99.5))
        assert statistics["percentile_00_5"] == pytest.approx(low, abs=15)
        assert statistics["percentile_99_5"] == pytest.approx(high, abs=15)
        assert statistics["median"] == pytest.approx(median, abs=5)

    @pytest.mark.parametrize(
        "options,message",
        [
            (["--intensity-range", "250,-175"], "must be two increasing numbers"),
            (["--intensity-range", "250"], "is not two numbers such as -175,250"),
            (["--intensity-range", "0,1", "--normalization", "zscore"], "part of the normalization ct, not of zscore"),
        ],
    )
    def test_mistakes(self, options, message, tmp_path):
        self.write(tmp_path / "raw")
        command = ["pretrain", "prepare", str(tmp_path / "raw"), str(tmp_path / "prepared"), *options]
        assert message in str(CliRunner().invoke(cli.app, command).exception)

    @pytest.mark.parametrize("background", [0, 50])
    def test_mask(self, background, tmp_path):
        """Images of which the crop to their non-zero region leaves less than three quarters."""
        (tmp_path / "raw").mkdir()
        for number in range(3):
            voxels = np.full((20, 20, 20), background, dtype=np.float32)
            voxels[4:16, 4:16, 4:16] = np.random.default_rng(number).normal(100, 10, (12, 12, 12))
            voxels[10:14, 4:8, 4:8] = 0  # open to the outside: within the box, outside of the mask
            sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "raw" / f"{number}.nii.gz"))
        prepare(tmp_path / "raw", tmp_path / "prepared")
        configuration = read_index(tmp_path / "prepared").plans["configurations"]["pretraining"]
        assert configuration["use_mask_for_norm"] == [background == 0]
        image = values(tmp_path / "prepared", "0")
        assert image.shape[1:] == ((12, 12, 12) if background == 0 else (20, 20, 20))
        if background == 0:
            assert (image[0, 6:10, 0:4, 0:4] == 0).all()


class TestDicom:
    def test_series(self, tmp_path):
        """By their UID and place, whatever the files are called and wherever they lie."""
        raw, voxels = tmp_path / "raw", volume()
        names = [f"{'ab'[n % 2]}/IM{9 - n}.dcm" for n in range(len(voxels))]
        write_series(raw, voxels, "1.2.3", names)
        write_series(raw / "a", volume(1, (5, *SIZE[1:])), "1.2.4", [f"Z{n}.dcm" for n in range(5)])
        (raw / "DICOMDIR").write_bytes(b"nothing")
        found = find_cases(raw)
        assert [(case.name, len(case.files)) for case in found.cases] == [("1.2.3", 10), ("1.2.4", 5)]
        stored, skipped = prepare(raw, tmp_path / "prepared", normalization="nonorm")
        assert not skipped and len(stored) == 2
        index = read_index(tmp_path / "prepared")
        assert index.spacing == pytest.approx((2.5, 0.8, 0.8))
        np.testing.assert_array_equal(values(tmp_path / "prepared", "1.2.3")[0], voxels)

    def test_without_an_ending(self, tmp_path):
        raw = tmp_path / "raw"
        write_series(raw, volume())
        for number, path in enumerate(sorted(raw.iterdir())):
            path.rename(raw / f"IM{number:05d}")
        stored, skipped = prepare(raw, tmp_path / "prepared")
        assert [case.name for case in stored] == ["1.2.3"] and not skipped

    def test_missing_and_doubled_slices(self, tmp_path):
        raw = tmp_path / "raw"
        write_series(raw / "good", volume(), "1.1")
        write_series(raw / "gap", volume(), "1.2", places=[0, 1, 2, 3, 4, 9, 10, 11, 12, 13])
        write_series(raw / "twice", volume(), "1.3", places=[0, 1, 2, 3, 4, 4, 5, 6, 7, 8])
        _, skipped = prepare(raw, tmp_path / "prepared")
        reasons = {case.name: case.reason for case in skipped}
        assert reasons["1.2"].endswith("slices of the series are missing: they are 1 mm apart, once 5 mm")
        assert reasons["1.3"].endswith("1 slices of the series are at the place of another")

    @pytest.mark.parametrize(
        "slopes,intercepts",
        [("1 0.37 0.37 0.37", "0 0 0 0"), ("1 1 1 0.37", "0 0 0 0"), ("1 1 1 1", "0 -1024 -1024 30000")],
    )
    def test_slices_of_different_rescaling(self, tmp_path, slopes, intercepts):
        """As PET has it; the first slice's type cuts off or wraps the values of others."""
        stored = np.random.default_rng(0).integers(0, 60_000, (4, 8, 8))
        slopes, intercepts = slopes.split(), intercepts.split()
        for number, plane in enumerate(stored):
            tags = {"slope": slopes[number], "intercept": intercepts[number], "position": f"0\\0\\{5 * number}"}
            write_dicom(tmp_path / f"{number}.dcm", plane, directions="1\\0\\0\\0\\1\\0", **tags)
        (found,) = find_cases(tmp_path).cases
        wanted = [s * float(a) + float(b) for s, a, b in zip(stored, slopes, intercepts, strict=True)]
        np.testing.assert_allclose(read_image(found).voxels[0], wanted, atol=0.01)

    def test_tilted_gantry(self, tmp_path):
        """Its slices are no grid of right angles, which harms labels only; shifts below a pixel are roundings."""
        for degrees in (0.3, 20):
            across = f"0\\{np.cos(np.radians(degrees)):.6f}\\{-np.sin(np.radians(degrees)):.6f}"
            for number, plane in enumerate(volume()):
                tags = {
                    "position": f"0\\0\\{2.5 * number}",
                    "directions": f"1\\0\\0\\{across}",
                    "series": f"1.{degrees}",
                }
                write_dicom(tmp_path / f"{degrees}_{number}.dcm", plane, **tags)
        straight, tilted = sorted(find_cases(tmp_path).cases, key=lambda found: found.name)
        for case in (straight, tilted):
            assert read_image(case).voxels.shape == (1, *SIZE)
        assert read_series(straight.files).GetSize() == SIZE[::-1]
        with pytest.raises(ValueError, match=r"sheared by 20 degrees.* up to 7\.7 mm beside the first; resample it"):
            read_series(tilted.files)

    @pytest.mark.skipif(sys.platform != "linux", reason="other systems have names in Unicode alone")
    def test_names_that_are_not_utf8(self, tmp_path):
        """SimpleITK would end the process."""
        write_dicom(tmp_path / "raw" / "a.dcm", picture(), "DX")
        os.rename(tmp_path / "raw" / "a.dcm", os.fsencode(tmp_path / "raw") + b"/M\xfcller.dcm")
        (stored,), skipped = prepare(tmp_path / "raw", tmp_path / "prepared")
        assert stored.name.startswith("M_ller-") and not skipped

    def test_radiographs(self, tmp_path):
        raw, pixels = tmp_path / "raw", picture(high=4096, kind=np.uint16)
        write_dicom(raw / "one.dcm", pixels, "DX", series="1.5")
        write_dicom(raw / "two.dcm", pixels, "DX", series="1.5", photometric="MONOCHROME1")
        write_dicom(raw / "report.dcm", None, "SR")
        write_dicom(raw / "label.dcm", pixels, "SEG")
        found = find_cases(raw)
        assert [case.name for case in found.cases] == ["one", "two"]
        assert found.ignored == {"label.dcm": "DICOM with a segmentation (SEG)", "report.dcm": NO_PIXELS}
        prepare(raw, tmp_path / "prepared", normalization="rescale_to_0_1", spacing=(1, 1))
        one, two = (values(tmp_path / "prepared", name) for name in ("one", "two"))
        np.testing.assert_allclose(one, 1 - two, atol=1e-6)
        np.testing.assert_allclose(one[0, 0], (pixels - pixels.min()) / np.ptp(pixels), atol=1e-6)

    def test_broken(self, tmp_path):
        write_dicom(tmp_path / "raw" / "good.dcm", picture())
        (tmp_path / "raw" / "bad.dcm").write_bytes(bytes(128) + b"DICM" + bytes(40))
        found = find_cases(tmp_path / "raw")
        assert [case.name for case in found.cases] == ["good"]
        assert list(found.ignored) == ["bad.dcm"]
