"""Folders as people have them: datasets of several makers, label maps, names, folds."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import SimpleITK as sitk
from typer.testing import CliRunner

from nnunet_transformers import cli
from nnunet_transformers.pretraining.data import PreparedImages, read_index
from nnunet_transformers.pretraining.data.cases import find_cases
from nnunet_transformers.pretraining.data.folds import validation_cases
from nnunet_transformers.pretraining.data.names import LONGEST, assign_names
from nnunet_transformers.pretraining.data.prepare import prepare
from tests.conftest import write_dataset

SIZE = (10, 12, 12)


def write(path, seed=0, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).normal(100, 20, size).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(voxels, isVector=False), str(path))


def write_decathlon(folder, cases=3, channels=1, **changes):
    """The Medical Segmentation Decathlon's layout, as downloaded."""
    names = [f"case_{number}.nii.gz" for number in range(cases)]
    for number, name in enumerate(names):
        write(folder / "imagesTr" / name, number, SIZE if channels == 1 else (channels, *SIZE))
        write(folder / "labelsTr" / name, number)
    write(folder / "imagesTs" / "test_0.nii.gz", 7, SIZE if channels == 1 else (channels, *SIZE))
    description = {
        "name": "Organ",
        "modality": {str(channel): "MRI" for channel in range(channels)},
        "labels": {"0": "background", "1": "organ"},
        "numTraining": cases,
        "numTest": 1,
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
        "test": ["./imagesTs/test_0.nii.gz"],
        **changes,
    }
    (folder / "dataset.json").write_text(json.dumps({k: v for k, v in description.items() if v is not None}))
    return folder


class TestDatasets:
    def test_decathlon(self, tmp_path):
        folder = write_decathlon(tmp_path / "Task04_Organ", channels=2)
        stored, skipped = prepare(folder, tmp_path / "prepared")
        assert [case.name for case in stored] == ["case_0", "case_1", "case_2"] and not skipped
        assert stored[0].shape == (2, *SIZE)
        assert read_index(tmp_path / "prepared").channels == ("MRI", "MRI")
        assert validation_cases_of(folder) == {"case_0", "case_1", "case_2"}

    def test_test_images_only_when_asked(self, tmp_path):
        folder = write_decathlon(tmp_path / "Task04_Organ")
        ignored = find_cases(folder).ignored
        assert ignored["imagesTs/test_0.nii.gz"] == "a test image, which --include-test takes"
        assert ignored["labelsTr/case_0.nii.gz"] == "a label map"
        stored, _ = prepare(folder, tmp_path / "prepared", include_test=True)
        assert [case.name for case in stored] == ["case_0", "case_1", "case_2", "test_0"]
        with pytest.raises(ValueError, match=r"other options \(include test\)"):
            prepare(folder, tmp_path / "prepared")

    def test_raw_layout(self, tmp_path):
        folder = write_dataset(tmp_path, cases=2)
        write(folder / "imagesTs" / "ball_0_0000.nii.gz", 5)
        assert [case.name for case in find_cases(folder).cases] == ["ball_0", "ball_1"]
        # a test image of the same name is another image
        cases = find_cases(folder, include_test=True).cases
        assert [case.name for case in cases[:2]] == ["ball_0", "ball_1"]
        assert cases[2].name.startswith("ball_0-") and cases[2].key == "imagesTs/ball_0_0000.nii.gz"

    @pytest.mark.parametrize(
        "changes",
        [
            {"channel_names": None},
            {"channel_names": ["MRI"]},
            {"channel_names": None, "modality": "MRI"},
            {"file_ending": None},
            {"numTraining": None, "labels": None},
            {"overwrite_image_reader_writer": "NibabelIO"},
        ],
        ids=str,
    )
    def test_entries_that_lack_or_differ(self, changes, tmp_path):
        folder = write_dataset(tmp_path / "raw", cases=2)
        content = json.loads((folder / "dataset.json").read_text()) | changes
        content = {key: value for key, value in content.items() if value is not None}
        (folder / "dataset.json").write_text(json.dumps(content))
        stored, skipped = prepare(folder, tmp_path / "prepared")
        assert len(stored) == 2 and not skipped
        wanted = changes.get("overwrite_image_reader_writer", "SimpleITKIO")
        assert read_index(tmp_path / "prepared").plans["image_reader_writer"] == wanted

    @pytest.mark.parametrize(
        "text,message",
        [
            ("[]", "it holds a list, not an object"),
            ("{", "truncated or not a description of a dataset"),
            ('{"channel_names": {"T1": 0}, "file_ending": ".nii.gz"}', "must have numbers as keys, it has T1"),
            ('{"file_ending": [".nii.gz"]}', "file_ending in dataset.json must be a text"),
            ('{"training": [7]}', "must list images, it holds 7"),
            ('{"dataset": {"a": {}}}', "KeyError"),
            ('{"dataset": {"a": []}}', "truncated or not a description of a dataset"),
            ("{}", "no image in"),
        ],
    )
    def test_one_line(self, text, message, tmp_path, capsys, monkeypatch):
        (tmp_path / "raw").mkdir()
        (tmp_path / "raw" / "dataset.json").write_text(text)
        command = ["nnunet-transformers", "pretrain", "prepare", str(tmp_path / "raw"), str(tmp_path / "prepared")]
        monkeypatch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 1
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1
        assert not (tmp_path / "prepared").exists()

    def test_reader_of_the_dataset(self, tmp_path):
        """As nnU-Net reads it: with reorientation the axes are others."""
        folder = write_dataset(tmp_path / "raw", cases=2, overwrite_image_reader_writer="NibabelIOWithReorient")
        for path in (folder / "imagesTr").iterdir():
            image = sitk.ReadImage(str(path))
            image.SetDirection((0, 0, 1, 1, 0, 0, 0, 1, 0))
            sitk.WriteImage(image, str(path))
        stored, _ = prepare(folder, tmp_path / "prepared")
        assert stored[0].shape == (1, 24, 20, 20)
        assert read_index(tmp_path / "prepared").plans["image_reader_writer"] == "NibabelIOWithReorient"


class TestWrongLevel:
    def test_folder_of_datasets(self, tmp_path):
        write_dataset(tmp_path / "raw", cases=1)
        write_dataset(tmp_path / "raw", "Dataset901_Other", cases=1)
        with pytest.raises(ValueError, match=r"holds datasets \(Dataset900_Balls and 1 more\): give the folder of one"):
            prepare(tmp_path / "raw", tmp_path / "prepared")

    def test_dataset_without_description(self, tmp_path):
        folder = write_dataset(tmp_path / "raw", cases=2)
        (folder / "dataset.json").unlink()
        with pytest.raises(ValueError, match=r"is a dataset without dataset\.json: add that file, or give .*imagesTr"):
            prepare(folder, tmp_path / "prepared")
        stored, _ = prepare(folder / "imagesTr", tmp_path / "prepared")
        assert len(stored) == 2

    @pytest.mark.parametrize("name", ["labels", "labelsTr", "Masks", "segmentation", "gt", "labels_1"])
    def test_folders_of_label_maps(self, name, tmp_path):
        write(tmp_path / "raw" / "images" / "a.nii.gz")
        write(tmp_path / "raw" / name / "a.nii.gz")
        found = find_cases(tmp_path / "raw")
        assert [case.name for case in found.cases] == ["images__a"]
        assert found.ignored == {f"{name}/a.nii.gz": "in a folder of label maps by its name"}

    def test_label_maps_among_images_are_noted(self, tmp_path):
        write(tmp_path / "raw" / "a.nii.gz")
        labels = np.random.default_rng(0).integers(0, 4, SIZE, dtype=np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(tmp_path / "raw" / "a_seg.nii.gz"))
        result = CliRunner().invoke(cli.app, ["pretrain", "prepare", str(tmp_path / "raw"), str(tmp_path / "out")])
        assert "note: 1 images hold so few values that they may be label maps: a_seg" in result.output

    def test_no_such_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            prepare(tmp_path / "raw", tmp_path / "prepared")


class TestNames:
    def test_every_image_is_stored(self, tmp_path):
        raw = tmp_path / "raw"
        long = "x" * 240
        for number, name in enumerate(("X", "X_seg", "a/b", "a__b", "b/a__b", long, f"{long}y", "back\\slash", "a\nb")):
            write(raw / f"{name}.nii.gz", number)
        write(raw / "p.nii.gz", 20)
        os.rename(raw / "p.nii.gz", os.fsencode(raw) + b"/\xff\xfe.nii.gz")
        write(raw / "X.nrrd", 21)
        stored, skipped = prepare(raw, tmp_path / "prepared")
        assert not skipped and len(stored) == 11
        assert len({case.name for case in stored}) == 11
        assert len({case.key for case in stored}) == 11
        images = PreparedImages(tmp_path / "prepared")
        for case in stored:
            assert case.name.isprintable() and len(case.name.encode()) < 200
            assert os.path.exists(raw / case.key)
            assert images.read(case.name, (0, 0, 0), SIZE).shape == (1, *SIZE)
        names = {case.key: case.name for case in stored}
        assert (names["X.nii.gz"], names["X_seg.nii.gz"], names["a__b.nii.gz"]) == ("X", "X_seg", "a__b")

    def test_bounded_and_unique(self):
        wanted = {"a" * 300: "a" * 300, "b" * 300: "a" * 300, "ü" * 150: "ü" * 150, "/": ""}
        names = assign_names(wanted, {})
        assert len(set(names.values())) == 4
        assert all(len(name.encode()) <= LONGEST + 9 for name in names.values())
        assert assign_names(wanted, {"b" * 300: "known"})["b" * 300] == "known"


def validation_cases_of(folder):
    return {strip.removesuffix(".nii.gz") for strip in os.listdir(folder / "labelsTr")}


class TestFolds:
    def test_own_folds_of_few_cases(self, nnunet_folders):
        source = write_dataset(nnunet_folders / "raw", cases=4)
        with pytest.raises(ValueError, match="has 4 labelled images, too few for nnU-Net's 5 folds"):
            validation_cases(source, 0)
        folder = nnunet_folders / "preprocessed" / source.name
        folder.mkdir()
        (folder / "splits_final.json").write_text(json.dumps([{"train": ["ball_0"], "val": ["ball_3"]}]))
        assert validation_cases(source, 0) == ["ball_3"]
        (folder / "splits_final.json").write_text("[{}]")
        with pytest.raises(ValueError, match=r"splits_final\.json is truncated or not a file of folds"):
            validation_cases(source, 0)

    def test_labels_elsewhere(self, nnunet_folders):
        source = write_dataset(nnunet_folders / "raw", cases=6)
        (source / "labelsTr").rename(nnunet_folders / "labels")
        with pytest.raises(ValueError, match="no labels in labelsTr"):
            validation_cases(source, 0)
        table = {
            f"ball_{n}": {"images": [f"imagesTr/ball_{n}_0000.nii.gz"], "label": f"../../labels/ball_{n}.nii.gz"}
            for n in range(6)
        }
        content = json.loads((source / "dataset.json").read_text()) | {"dataset": table}
        (source / "dataset.json").write_text(json.dumps(content))
        folds = [set(validation_cases(source, fold)) for fold in range(5)]
        assert set.union(*folds) == set(table)

    def test_decathlon(self, nnunet_folders):
        source = write_decathlon(nnunet_folders / "raw" / "Task04_Organ", cases=5)
        assert len(validation_cases(source, 0)) == 1
