"""DICOM series as cases, and DICOM-SEG, read back with pydicom alone."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_transformers.formats import dicom_segmentation
from nnunet_transformers.formats.dicom_folder import DicomFolder
from nnunet_transformers.formats.dicom_segmentation import write_dicom_segmentation
from nnunet_transformers.inference.sources import holds_dicom, open_source, predict_source
from tests import dicom

from .series import oblique, read_segmentation, write_series

SIZE = (5, 9, 7)
DATASET = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "b": 2, "a": 1}, "file_ending": ".nii.gz"}
FLAIR = {**DATASET, "channel_names": {"0": "T1", "1": "FLAIR"}}


@pytest.fixture
def image():
    return oblique(sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 900, SIZE).astype(np.int16)))


def labels(image, high=3):
    found = sitk.GetImageFromArray(np.random.default_rng(1).integers(0, high, SIZE).astype(np.uint8))
    found.CopyInformation(image)
    return found


class FakePredictor:
    """Writes the same label map for every case but one, on which it fails."""

    dataset_json = DATASET

    def __init__(self, found, fails):
        self.found, self.fails, self.predicted = found, fails, []

    def predict_from_files_sequential(self, cases, outputs, **_):
        self.predicted.append(os.path.basename(outputs[0]))
        if self.predicted[-1] == self.fails:
            raise IndexError
        sitk.WriteImage(self.found, f"{outputs[0]}.nii.gz")


class TestFolder:
    @pytest.fixture(autouse=True)
    def _installed(self):
        pytest.importorskip("pydicom")
        pytest.importorskip("highdicom")

    @pytest.mark.parametrize("modality", ["MR", "CT"])
    def test_voxels_and_geometry(self, image, tmp_path, modality):
        write_series(tmp_path / "in" / "patient" / "knee", image, modality)
        source = DicomFolder(tmp_path / "in", DATASET)
        assert source.names == ["patient__knee"]
        with source.files("patient__knee") as (path,):
            found = sitk.ReadImage(str(path))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(image))
        for name in ("GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(found, name)(), getattr(image, name)(), atol=1e-5)

    @pytest.mark.parametrize("count", [1, 2])
    def test_series_without_a_uid(self, image, tmp_path, count):
        """The case is named by a file: without a name, its segmentation would be hidden."""
        for number in range(count):
            small = image[:, : 9 - number]
            series = write_series(tmp_path / str(number), small, SeriesInstanceUID="")
            for path in series:
                (tmp_path / "in").mkdir(exist_ok=True)
                path.rename(tmp_path / "in" / f"{number}{path.name}")
        assert DicomFolder(tmp_path / "in", DATASET).names == ["0IM0005", "1IM0005"][:count]

    def test_segmentation(self, image, tmp_path):
        series = write_series(tmp_path / "in", image)
        source = DicomFolder(tmp_path / "in", DATASET)
        expected = labels(image)
        sitk.WriteImage(expected, str(tmp_path / "labels.nii.gz"))
        (name,) = source.names
        target = source.target(name, tmp_path)
        source.write(name, tmp_path / "labels.nii.gz", target)
        found, names = read_segmentation(target, image)
        assert names == ["a", "b"]
        np.testing.assert_array_equal(found, sitk.GetArrayFromImage(expected))

        from pydicom import dcmread

        written, first = dcmread(target), dcmread(series[0])
        for name in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
            assert written[name].value == first[name].value
        assert written.SeriesInstanceUID != first.SeriesInstanceUID

    def test_empty_segmentation_and_codes(self, image, tmp_path):
        series = [str(path) for path in write_series(tmp_path / "in", image)]
        sitk.WriteImage(labels(image, 1), str(tmp_path / "labels.nii.gz"))
        code = ("279204006", "SCT", "Amygdala")
        write_dicom_segmentation(tmp_path / "labels.nii.gz", series, DATASET["labels"], tmp_path / "a.dcm", {"a": code})
        assert not read_segmentation(tmp_path / "a.dcm", image)[0].any()

        from pydicom import dcmread

        segments = dcmread(tmp_path / "a.dcm").SegmentSequence
        assert len({tuple(s.RecommendedDisplayCIELabValue) for s in segments}) == len(segments)
        types = [s.SegmentedPropertyTypeCodeSequence[0] for s in segments]
        assert [t.CodeMeaning for t in types] == ["Amygdala", "b"]

    def test_regions_overlap(self, image, tmp_path):
        series = [str(path) for path in write_series(tmp_path / "in", image)]
        expected = labels(image)
        sitk.WriteImage(expected, str(tmp_path / "labels.nii.gz"))
        regions = {"background": 0, "whole": [1, 2], "core": [2]}
        write_dicom_segmentation(tmp_path / "labels.nii.gz", series, regions, tmp_path / "a.dcm")

        from highdicom.seg import segread

        found = segread(tmp_path / "a.dcm").get_volume(combine_segments=False).array
        array = sitk.GetArrayFromImage(expected)
        # a volume has the slices along the normal or against it
        masks = np.stack([array > 0, array == 2], -1)
        assert (found == masks).all() or (found[::-1] == masks).all()

    def test_labels_that_leave_numbers_out(self, image, tmp_path):
        series = [str(path) for path in write_series(tmp_path / "in", image)]
        array = sitk.GetArrayFromImage(labels(image)) * 20
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "labels.nii.gz"))
        sparse = {"background": 0, "kidney": 40, "liver": 20, "ignore": 41}
        write_dicom_segmentation(tmp_path / "labels.nii.gz", series, sparse, tmp_path / "a.dcm")
        found, names = read_segmentation(tmp_path / "a.dcm", image)
        assert names == ["liver", "kidney"]
        np.testing.assert_array_equal(found * 20, array)

    @pytest.mark.parametrize(
        "characters,patient,name",
        [
            ("ISO_IR 100", "Müller^Jörg", "肝脏"),
            ("ISO_IR 100", "Müller^Jörg", "liver"),
            (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎", "liver"),
        ],
    )
    def test_characters(self, image, tmp_path, characters, patient, name):
        """The series' may lack those of a name, or be several sets; a backslash would make two names of one."""
        given = {"SpecificCharacterSet": characters, "PatientName": patient}
        series = [str(path) for path in write_series(tmp_path / "in", image, **given)]
        sitk.WriteImage(labels(image), str(tmp_path / "labels.nii.gz"))
        names = {"background": 0, name: 1, "cyst\\tumour": 2}
        write_dicom_segmentation(tmp_path / "labels.nii.gz", series, names, tmp_path / "a.dcm")

        from pydicom import dcmread

        written = dcmread(tmp_path / "a.dcm")
        types = [segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for segment in written.SegmentSequence]
        assert [segment.SegmentLabel for segment in written.SegmentSequence] == types == [name, "cyst/tumour"]
        assert str(written.PatientName) == patient

    def test_what_the_series_lacks(self, image, tmp_path):
        dicom.write_series(tmp_path / "in", np.zeros(SIZE))
        source = DicomFolder(tmp_path / "in", DATASET)
        sitk.WriteImage(labels(image), str(tmp_path / "labels.nii.gz"))
        with pytest.raises(ValueError, match=r"the series cannot be the source of a DICOM-SEG: .*\w"):
            source.write(source.names[0], tmp_path / "labels.nii.gz", tmp_path / "a.dcm")

    @pytest.mark.parametrize("lacks", ["FrameOfReferenceUID", "PatientID", "StudyInstanceUID"])
    def test_a_case_that_cannot_be_written(self, image, tmp_path, lacks, capsys):
        """It is named, nothing is computed for it, and the others are predicted; so are those after a failure."""
        from pydicom import dcmread

        for name in "abc":
            files = write_series(tmp_path / "in" / name, image)
            for path in files if name == "a" else ():
                content = dcmread(path)
                del content[lacks]
                content.save_as(path)
        predictor = FakePredictor(labels(image), "b")
        with pytest.raises(ValueError, match="2 of 3 cases were not predicted, the first a: the series cannot be the"):
            predict_source(predictor, DicomFolder(tmp_path / "in", DATASET), tmp_path)
        assert predictor.predicted == ["b", "c"]
        assert [path.name for path in tmp_path.glob("*.dcm")] == ["c.dcm"]
        assert "b: not predicted: IndexError" in capsys.readouterr().out

    def test_grid_is_another(self, image, tmp_path):
        series = [str(path) for path in write_series(tmp_path / "in", image)]
        sitk.WriteImage(labels(image)[:, :, :4], str(tmp_path / "labels.nii.gz"))
        with pytest.raises(ValueError, match=r"the segmentation has \(4, 9, 7\) voxels, the series \(5, 9, 7\)"):
            write_dicom_segmentation(tmp_path / "labels.nii.gz", series, DATASET["labels"], tmp_path / "a.dcm")
        assert not (tmp_path / "a.dcm").exists()

    def test_series_of_one_folder_and_what_is_skipped(self, image, tmp_path, capsys):
        for number in range(2):
            for path in write_series(tmp_path / str(number), image):
                (tmp_path / "in" / "study").mkdir(parents=True, exist_ok=True)
                path.rename(tmp_path / "in" / "study" / f"{number}{path.name}")
        dicom.write_dicom(tmp_path / "in" / "study" / "report.dcm", None, "SR")
        dicom.write_series(tmp_path / "in" / "study" / "scout", np.zeros((1, 6, 6)), series="1.2.4")
        dicom.write_series(tmp_path / "in" / "study", np.zeros((1, 6, 6)), names=["localiser.dcm"])
        source = open_source(tmp_path / "in", DATASET)
        assert len(source.names) == 3 and source.names[-1] == "study__scout"
        assert all(name.startswith("study__1.2.826") for name in source.names[:2])
        said = capsys.readouterr().out
        assert "1 skipped: a single slice beside a volume" in said
        assert "1 skipped: DICOM without pixels" in said

    def test_channels_are_folders(self, image, tmp_path):
        for name in ("knee_0000", "knee_0001"):
            write_series(tmp_path / "in" / name, image)
        source = DicomFolder(tmp_path / "in", FLAIR)
        assert source.names == ["knee"]
        with source.files("knee") as files:
            assert [path.name for path in files] == ["knee_0000.nii.gz", "knee_0001.nii.gz"]
        with pytest.raises(ValueError, match="knee: has _0000, _0001, the model takes 1 channels"):
            DicomFolder(tmp_path / "in", DATASET)
        with pytest.raises(ValueError, match="number the patients, count from 0001"):
            DicomFolder(tmp_path / "in", DATASET)
        # without a _0000 beside it, a number is part of the name
        (tmp_path / "in" / "knee_0000").rename(tmp_path / "in" / "knee_2021")
        assert DicomFolder(tmp_path / "in", DATASET).names == ["knee_0001", "knee_2021"]
        (tmp_path / "in" / "knee_2021").rename(tmp_path / "in" / "knee_0000")
        (tmp_path / "in" / "knee_0001").rename(tmp_path / "in" / "flair")
        with pytest.raises(ValueError, match=r"flair: the model takes 2 channels; put each series into a folder CASE_"):
            DicomFolder(tmp_path / "in", FLAIR)

    def test_names_of_single_files(self, tmp_path):
        """Numbers from 0000 on are those of images; names that differ in the ending alone stay apart."""
        names = ["IMG_0000.dcm", "IMG_0001.dcm", "a", "a.dcm", "a.DCM", "b_0000.dcm"]
        for name in names:
            dicom.write_dicom(tmp_path / "in" / name, np.zeros((6, 6)), "DX")
        found = DicomFolder(tmp_path / "in", DATASET).names
        assert found == ["IMG_0000", "IMG_0001", "a", "a.DCM", "a.dcm", "b"]
        # the name without a number is taken
        dicom.write_dicom(tmp_path / "in" / "b.dcm", np.zeros((6, 6)), "DX")
        assert DicomFolder(tmp_path / "in", DATASET).names[-2:] == ["b", "b_0000"]

    def test_no_name_is_taken_twice(self, tmp_path):
        """A folder's name and that of a file in it may be the same as a file's beside it."""
        for name in ("x__a", "y", "x/a", "x/b"):
            dicom.write_dicom(tmp_path / "in" / name, np.zeros((6, 6)), "DX")
        assert len(DicomFolder(tmp_path / "in", DATASET).names) == 4

    def test_folders_of_one_file_are_channels(self, tmp_path):
        for name in ("knee_0000", "knee_0001"):
            dicom.write_dicom(tmp_path / "in" / name / "a.dcm", np.zeros((6, 6)), "DX")
        with pytest.raises(ValueError, match="knee: has _0000, _0001, the model takes 1 channels"):
            DicomFolder(tmp_path / "in", DATASET)

    @pytest.mark.parametrize("codes", [[], {"a": "Amygdala"}, {"a": ["1", "SCT"]}, {"c": ["1", "SCT", "C"]}])
    def test_codes_are_checked(self, codes, tmp_path):
        with pytest.raises(ValueError, match=r"dicom_codes in dataset\.json .*value, scheme, meaning"):
            DicomFolder(tmp_path, {**DATASET, "dicom_codes": codes})

    @pytest.mark.parametrize("ending", [".nii.gz", ".png"])
    def test_colours(self, image, tmp_path, ending):
        """Whatever the dataset's format could hold, the model takes one value per voxel of each series."""
        from pydicom import dcmread

        (first, *_) = write_series(tmp_path / "in" / "photo", image[:, :, :1])
        content = dcmread(first)
        content.SamplesPerPixel, content.PhotometricInterpretation, content.PlanarConfiguration = 3, "RGB", 0
        content.BitsAllocated, content.BitsStored, content.HighBit = 8, 8, 7
        content.PixelData = np.zeros((content.Rows, content.Columns, 3), np.uint8).tobytes() + b"\0"
        content.save_as(first, enforce_file_format=True)
        source = DicomFolder(tmp_path / "in", {**DATASET, "file_ending": ending})
        with (
            pytest.raises(ValueError, match=rf"{first} has 3 values .*; the model takes one \(channel MRI\)\. Convert"),
            source.files("photo"),
        ):
            pass

    def test_links_to_folders(self, image, tmp_path):
        """They are followed, but not in a circle."""
        write_series(tmp_path / "archive" / "knee", image)
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "patient").symlink_to(tmp_path / "archive")
        (tmp_path / "archive" / "up").symlink_to(tmp_path / "in")
        assert holds_dicom(tmp_path / "in", ".nii.gz")
        assert DicomFolder(tmp_path / "in", DATASET).names == ["patient__knee"]

    @pytest.mark.skipif(sys.platform != "linux", reason="other systems have names in Unicode alone")
    def test_names_that_are_not_utf8(self, image, tmp_path):
        """As old systems wrote them; SimpleITK would end the process."""
        files = write_series(tmp_path / "in", image)
        folder = os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller")
        os.rename(tmp_path / "in", folder)
        for path in files:
            os.rename(f"{folder}/{path.name}", os.fsdecode(os.fsencode(folder) + b"/\xe9" + os.fsencode(path.name)))
        source = DicomFolder(tmp_path, DATASET)
        assert source.names == ["Müller"]
        with source.files("Müller") as (path,):
            np.testing.assert_array_equal(
                sitk.GetArrayFromImage(sitk.ReadImage(str(path))), sitk.GetArrayFromImage(image)
            )

    def test_missing_slice(self, image, tmp_path):
        write_series(tmp_path / "in", image)[2].unlink()
        source = DicomFolder(tmp_path / "in", DATASET)
        with pytest.raises(ValueError, match="slices of the series are missing"), source.files(source.names[0]):
            pass


def test_what_to_install(tmp_path, monkeypatch):
    dicom.write_series(tmp_path / "in", np.zeros(SIZE))
    monkeypatch.setattr(dicom_segmentation, "NEEDED", ("no_such_package",))
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'nnunet-transformers\[dicom\]'") as error:
        open_source(tmp_path / "in", DATASET)
    assert "\n" not in str(error.value)


def test_files_of_the_dataset_come_first(tmp_path):
    """A folder with nnU-Net's files is read as such, whatever lies beside them."""
    dicom.write_series(tmp_path / "series", np.zeros(SIZE))
    assert holds_dicom(tmp_path, ".nii.gz")
    (tmp_path / "case_0000.nii.gz").touch()
    assert not holds_dicom(tmp_path, ".nii.gz")
    assert open_source(tmp_path, json.loads(json.dumps(DATASET))).names == ["case"]


def test_slices_without_a_position(image, tmp_path):
    """As secondary captures have it; each is an image, named after its file, and disturbs no other."""
    from pydicom import dcmread

    write_series(tmp_path / "in" / "volume", image)
    for name in ("a.dcm", "b.dcm"):
        files = write_series(tmp_path / name, image)
        content = dcmread(files[0])
        content.ImagePositionPatient = None
        (tmp_path / "in" / "captures").mkdir(exist_ok=True)
        content.save_as(tmp_path / "in" / "captures" / name)
    assert DicomFolder(tmp_path / "in", DATASET).names == ["captures__a", "captures__b", "volume"]
