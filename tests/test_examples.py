"""The examples of the documentation: a network of one's own keeps the contract of the package's."""

from __future__ import annotations

import gzip
import json
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image

from nnunet_transformers.architectures import create_network, get_network
from nnunet_transformers.detection.boxes import read_boxes
from nnunet_transformers.testing import check_network

NETWORK = "hybrid_unet"


@pytest.fixture(autouse=True)
def network(examples):
    import_module(NETWORK)


@pytest.mark.parametrize("patch_size", [(64, 96), (16, 32, 16)], ids=["2", "3"])
def test_network_keeps_the_contract(patch_size):
    check_network(NETWORK, patch_size=patch_size)


def test_network_of_anisotropic_data():
    strides = {"patch_embed_stride": (1, 4, 4), "merge_strides": [(1, 2, 2), (1, 2, 2), (2, 2, 2)]}
    example = create_network(NETWORK, 1, 3, (16, 64, 32), deep_supervision=True, **strides)
    sizes = [tuple(output.shape[2:]) for output in example(torch.randn(1, 1, 16, 64, 32))]
    assert sizes == [(16, 64, 32), (16, 16, 8), (16, 8, 4), (16, 4, 2)]


def test_network_comes_back_from_a_plan():
    built = create_network(NETWORK, 1, 3, (32, 32, 32), auxiliary_heads=True)
    entry = get_network(NETWORK)
    arguments = {k: v for k, v in {**entry.all_arguments(3), "strides": built.strides}.items() if v is not None}
    arguments = json.loads(json.dumps({**arguments, "patch_size": (32, 32, 32), "auxiliary_heads": True}))
    twin = entry.network_class(input_channels=1, num_classes=3, **arguments)
    twin.load_state_dict(built.state_dict(), strict=True)


class TestRadiographTables:
    """The tables of public datasets, from folders laid out like theirs."""

    @pytest.fixture
    def tables(self, examples):
        return import_module("radiograph_tables")

    def test_mimic_cxr(self, tables, tmp_path):
        rows = ["d1,10000032,50,PA", "d2,10000032,50,LATERAL", "d3,19999999,51,AP", "d4,19999999,52,PA"]
        header = "dicom_id,subject_id,study_id,ViewPosition"
        (tmp_path / "mimic-cxr-2.0.0-metadata.csv").write_text("\n".join([header, *rows]))
        splits = ["d1,50,10000032,train", "d2,50,10000032,train", "d3,51,19999999,validate", "d4,52,19999999,test"]
        text = "\n".join(["dicom_id,study_id,subject_id,split", *splits])
        with gzip.open(tmp_path / "mimic-cxr-2.0.0-split.csv.gz", "wt") as file:
            file.write(text)
        sections = ["s50,No acute process.,Clear lungs.", "s51,,Small nodule", "s52,A,B"]
        (tmp_path / "mimic_cxr_sectioned.csv").write_text("\n".join(["study,impression,findings", *sections]))
        found = tables.mimic_cxr(tmp_path)
        assert found["image"].tolist() == ["p10/p10000032/s50/d1.jpg", "p19/p19999999/s51/d3.jpg"]
        assert found["split"].tolist() == ["train", "validate"]
        assert found["findings"].tolist() == ["Clear lungs.", "Small nodule"]

    def test_chexpert(self, tables, tmp_path):
        header = "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(tables.FINDINGS)
        row = "CheXpert-v1.0-small/{}/patient{:05d}/study1/view{}.jpg,F,1,{},AP,1.0,-1.0,,0.0,"
        rows = [row.format("train", n // 2, n, "Lateral" if n == 0 else "Frontal") for n in range(40)]
        (tmp_path / "train.csv").write_text("\n".join([header, *rows]))
        (tmp_path / "valid.csv").write_text("\n".join([header, row.format("valid", 64540, 1, "Frontal")]))
        found = tables.chexpert(tmp_path, validation=10)
        assert len(found) == 40
        assert found.iloc[-1]["image"] == "valid/patient64540/study1/view1.jpg"
        assert found.iloc[0][tables.FINDINGS].tolist() == [1, -1, 0, 0, 0]
        patients = found["image"].str.extract(r"(patient\d+)")[0]
        held = {split: set(patients[found["split"] == split]) for split in ("train", "val", "test")}
        assert not held["train"] & held["val"]
        assert len(held["val"]) in (5, 6)

    def test_rsna(self, tables, tmp_path):
        rows = [f"patient{n // 2},{n},1,1,1,{n // 2 % 2}" for n in range(80)]
        (tmp_path / "stage_2_train_labels.csv").write_text("\n".join(["patientId,x,y,width,height,Target", *rows]))
        found = tables.rsna(tmp_path)
        assert found["split"].value_counts().to_dict() == {"train": 28, "val": 6, "test": 6}
        assert found["image"].is_unique
        assert found.groupby("split")["label"].mean().to_dict() == {"train": 0.5, "val": 0.5, "test": 0.5}

    def test_rsna_boxes(self, tables, tmp_path):
        rows = [f"patient{n},{n},2,3,4,1" for n in range(6)] + [f"patient{n},,,,,0" for n in range(6, 12)]
        rows.append("patient0,7,8,9,10,1")
        (tmp_path / "stage_2_train_labels.csv").write_text("\n".join(["patientId,x,y,width,height,Target", *rows]))
        found = tables.rsna_boxes(tmp_path, held_out=3)
        assert found.groupby("split")["image"].nunique().to_dict() == {"train": 6, "val": 3, "test": 3}
        assert found.groupby("image")["split"].nunique().max() == 1
        boxes = boxes_of(found, tmp_path / "boxes.csv", {f"patient{n}" for n in range(12)})
        assert sorted(len(b) for b in boxes.boxes) == [0] * 6 + [1] * 5 + [2]

    def test_object_cxr(self, tables, tmp_path):
        for part in ("train", "dev"):
            (tmp_path / part).mkdir()
            for n in range(10):
                Image.new("L", (100, 50)).save(tmp_path / part / f"{n}.jpg")
            rows = ["0.jpg,0 10 20 30 40;2 50 5 60 5 60 15 50 15", *(f"{n}.jpg," for n in range(1, 10))]
            (tmp_path / f"{part}.csv").write_text("\n".join(["image_name,annotation", *rows]))
        found = tables.object_cxr(tmp_path)
        assert found.groupby("split")["image"].nunique().to_dict() == {"train": 9, "val": 1, "test": 10}
        boxes = boxes_of(
            found, tmp_path / "boxes.csv", {f"{part}__{n}" for part in ("train", "dev") for n in range(10)}
        )
        first = boxes.images.names.index("dev__0")
        assert boxes.boxes[first].tolist() == [[0.1, 0.4, 0.3, 0.8], [0.5, 0.1, 0.6, 0.3]]

    def test_covidx(self, tables, tmp_path):
        rows = [f"{n} {n}.png {'COVID-19' if n % 3 else 'normal'} source" for n in range(20)]
        (tmp_path / "train_split.txt").write_text("\n".join(rows))
        (tmp_path / "test_split.txt").write_text("99 a.jpg pneumonia source")
        found = tables.covidx(tmp_path)
        assert found["split"].value_counts().to_dict() == {"train": 18, "val": 2, "test": 1}
        assert found.iloc[-1].tolist() == ["test/a.jpg", "pneumonia", "test"]
        assert found.iloc[0]["image"] == "train/0.png"


def boxes_of(table, file, known):
    """The table as `detect` reads it."""
    table.to_csv(file, index=False)
    return read_boxes(file, known)


class TestRadiographDatasets:
    """nnU-Net's datasets of SIIM and RSNA, from folders laid out like theirs."""

    @pytest.fixture
    def datasets(self, examples, monkeypatch):
        module = import_module("radiograph_datasets")
        monkeypatch.setattr(module, "SIZE", 8)
        ramp = torch.linspace(0, 1, 64).reshape(1, 8, 8)
        monkeypatch.setattr(module, "read_radiograph", lambda file, channels, longest: ramp)
        return module

    def test_siim(self, datasets, tmp_path):
        rows = ["ImageId, EncodedPixels", "a0, 8 2 5 1", "a0, 0 1", *(f"a{n}, 60 4" for n in range(1, 10))]
        rows += [f"b{n}, -1" for n in range(30)]
        (tmp_path / "train-rle.csv").write_text("\n".join(rows))
        for name in [f"a{n}" for n in range(10)] + [f"b{n}" for n in range(30)]:
            (tmp_path / "images" / name).mkdir(parents=True)
            (tmp_path / "images" / name / f"{name}.dcm").touch()
        files, mask, parts = datasets.siim(tmp_path)
        assert len(files) == 40
        # by columns: two pixels from the top of the second, one five below, and the very first
        assert np.argwhere(mask("a0")).tolist() == [[0, 0], [0, 1], [1, 1], [7, 1]]
        assert not mask("b0").any()
        assert (len(parts["val"]), len(parts["test"])) == (6, 6)
        kinds = [name[0] for name in parts["train"]]
        assert kinds.count("a") == kinds.count("b")

    def test_rsna(self, datasets, tmp_path):
        rows = ["p0,1,2,3,4,1", "p0,6,6,2,2,1", *(f"p{n},,,,,0" for n in range(1, 20))]
        (tmp_path / "stage_2_train_labels.csv").write_text("\n".join(["patientId,x,y,width,height,Target", *rows]))
        datasets.write(tmp_path, tmp_path / "out", 4, "rsna", "opacity")
        (label,) = (tmp_path / "out").glob("labelsT?/p0.png")
        pixels = np.asarray(Image.open(label))
        # of every second pixel: columns 1 to 3, rows 2 to 5 and the last two of both
        assert pixels.shape == (4, 4)
        assert np.argwhere(pixels).tolist() == [[1, 0], [1, 1], [2, 0], [2, 1], [3, 3]]
        folds = json.loads((tmp_path / "out" / "splits_final.json").read_text())
        assert [len(fold["train"]) for fold in folds] == [12, 1, 1]
        assert set(folds[1]["train"]) <= set(folds[0]["train"])
        assert all(fold["val"] == folds[0]["val"] for fold in folds)
        content = json.loads((tmp_path / "out" / "dataset.json").read_text())
        assert content["numTraining"] == 16
        assert len(list((tmp_path / "out" / "imagesTs").iterdir())) == 4
