"""Whole runs as a user would do them: learn, resume, predict, and every mistake in one line."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import sys

import pytest
import torch

from nnunet_transformers import cli
from nnunet_transformers.architectures import create_network
from nnunet_transformers.detection.boxes import read_boxes
from nnunet_transformers.detection.checkpoint import DetectorCheckpoint
from nnunet_transformers.detection.fit import fit, list_recipes
from nnunet_transformers.pretraining.data import PreparedImages
from nnunet_transformers.weights import EncoderCheckpoint, TimmCheckpoint, create_timm, encoder_weights
from tests.classification.shapes import write_shapes
from tests.detection.drawn import write_nodules


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_nodules(tmp_path_factory.mktemp("data"), 32)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    file = tmp_path_factory.mktemp("encoder") / "encoder.pth"
    torch.manual_seed(0)
    TimmCheckpoint(
        create_timm("test_resnet", 1, (32, 32)).state_dict(), "test_resnet", (32, 32), 1, method="MGCA"
    ).save(file)
    return file


def arguments(folder, **more):
    settings = {
        "model.init_args.patch_size": "null",
        "model.init_args.widths": "[8,16,32]",
        "data.init_args.num_workers": 0,
        "data.init_args.batch_size": 8,
        "trainer.max_epochs": 1,
        "trainer.accelerator": "cpu",
        "trainer.default_root_dir": folder,
        "trainer.enable_progress_bar": "false",
        "trainer.log_every_n_steps": 1,
        **more,
    }
    return [f"--{name}={value}" for name, value in settings.items()]


def command(monkeypatch, capsys, *words):
    """Run the command; return exit code and output."""
    monkeypatch.setattr(sys, "argv", ["nnunet-transformers", "detect", *map(str, words)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr()


def test_learns_and_predicts(data, encoder, tmp_path, monkeypatch, capsys):
    """Bright squares, by the commands of the documentation."""
    folder, table = data
    more = {"trainer.max_epochs": 14, "model.init_args.lr": 1e-2, "model.init_args.frozen": "false"}
    words = ["fit", folder, table, "--config", "mgca", "--encoder", encoder, *arguments(tmp_path, **more)]
    code, captured = command(monkeypatch, capsys, *words)
    assert code == 0, captured.err
    file = tmp_path / "detector.pth"
    assert f"{file}: val_loss" in captured.out
    checkpoint = DetectorCheckpoint.load(file)
    assert (checkpoint.classes, checkpoint.num_cases, checkpoint.encoder) == (
        ("object",),
        16,
        "MGCA of test_resnet, 0 images",
    )
    assert len(checkpoint.validated_on) == 8
    found = tmp_path / "boxes.csv"
    words = ["predict", file, folder, "-o", found, "--confidence", 0.3]
    code, captured = command(monkeypatch, capsys, *words)
    assert code == 0, captured.err
    assert "note: these are pixels of the prepared images" in captured.out
    with open(found) as text:
        rows = list(csv.DictReader(text))
    assert {row["image"] for row in rows} == {f"case_{n}" for n in range(32)}
    # what it was trained on at least, it finds; the file has the form of a table
    assert len(read_boxes(found, {row["image"] for row in rows}).images.names) == 32
    with open(table) as text:
        wanted = {row["image"]: row for row in csv.DictReader(text) if row["x"] and row["split"] == "train"}
    near = 0
    for name, row in wanted.items():
        for other in rows:
            if f"{other['image']}.png" == name and other["x"]:
                near += all(abs(float(other[k]) - float(row[k])) < 6 for k in ("x", "y", "width", "height"))
    assert near >= len(wanted) / 2


def test_scores(data, encoder, tmp_path, monkeypatch, capsys):
    pytest.importorskip("pycocotools")
    folder, table = data
    fit("mgca", folder, table, encoder, arguments(tmp_path))
    scores = tmp_path / "scores.json"
    words = ["predict", tmp_path / "detector.pth", folder, "-o", tmp_path / "b.csv", "--boxes", table]
    code, captured = command(monkeypatch, capsys, *words, "--scores", scores)
    assert code == 0, captured.err
    found = json.loads(scores.read_text())
    assert found["images"] == 8
    assert set(found["scores"]) == {"mAP", "AP at IoU 0.5"}
    assert 0 <= found["scores"]["mAP"] <= 1


def test_volumes_are_refused(data, encoder, tmp_path, monkeypatch, capsys):
    fit("mgca", *data, encoder, arguments(tmp_path / "run"))
    volumes, _ = write_shapes(tmp_path / "volumes", 2, normalization="rescale_to_0_1")
    words = ["predict", tmp_path / "run" / "detector.pth", volumes, "-o", tmp_path / "b.csv"]
    detector = DetectorCheckpoint.load(words[1])
    dataclasses.replace(detector, plans=PreparedImages(volumes).index.plans).save(words[1])
    code, captured = command(monkeypatch, capsys, *words)
    assert code == 1
    assert re.search("case_0 in .*prepared is a volume of 16 slices; boxes are of 2D images", captured.err)


def test_registered_network_and_like(data, tmp_path, monkeypatch):
    """A network of this package as encoder; new images are prepared as the old."""
    folder, table = data
    overrides = {"embed_dim": 12, "window_sizes": 4}
    network = create_network("qt_unet_tiny", 1, 2, (32, 32), **overrides)
    EncoderCheckpoint(encoder_weights(network), "qt_unet_tiny", (32, 32), 1, overrides=overrides, method="MAE").save(
        tmp_path / "e.pth"
    )
    fit("mgca", folder, table, tmp_path / "e.pth", arguments(tmp_path))
    like = ["prepare", folder.parent / "raw", tmp_path / "new", "--like", tmp_path / "detector.pth"]
    monkeypatch.setattr(sys, "argv", ["nnunet-transformers", "pretrain", *map(str, like)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert (tmp_path / "new" / "index.json").is_file()


def test_mistakes(data, encoder, tmp_path, monkeypatch, capsys):
    folder, table = data
    empty = tmp_path / "empty.csv"
    empty.write_text("".join(line for line in table.read_text().splitlines(True) if ",,,," in line or "image" in line))
    vit = tmp_path / "vit.pth"
    network = create_timm("vit_tiny_patch16_224", 1, (64, 64))
    TimmCheckpoint(network.state_dict(), "vit_tiny_patch16_224", (64, 64), 1).save(vit)
    start, usual = ["fit", folder, table, "--config", "mgca"], arguments(tmp_path / "run")
    for words, message in (
        (["fit", folder, empty, "--config", "mgca", "--encoder", encoder, *usual], "training images of .* has a box"),
        ([*start, "--encoder", vit, *usual], "a detector needs an encoder with three feature maps"),
        (["fit", folder, table, "--config", "mcga"], "no recipe and no file 'mcga'; there are mgca"),
        (["predict", encoder, folder, "-o", "b.csv"], "is not a checkpoint of kind detector.*`.*detect fit` writes"),
        (["predict", encoder, folder, "-o", "b.csv", "--scores", "s"], "--scores needs --boxes"),
    ):
        code, captured = command(monkeypatch, capsys, *words)
        assert code == 1, words
        assert "Traceback" not in captured.err
        assert re.search(message, captured.err), captured.err


def test_recipe_is_the_supplements():
    assert list_recipes() == ["mgca"]
