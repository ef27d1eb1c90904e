"""Whole runs as a user would do them: learn, resume, predict, and every mistake in one line."""

from __future__ import annotations

import csv
import json
import math
import re
import sys

import pytest
import torch
from lightning import Callback

from nnunet_transformers import cli
from nnunet_transformers.architectures import create_network
from nnunet_transformers.classification.checkpoint import ClassifierCheckpoint
from nnunet_transformers.classification.fit import fit, list_recipes
from nnunet_transformers.cpu.linear import CPULinear
from nnunet_transformers.pretraining.data.prepare import prepare
from nnunet_transformers.weights import EncoderCheckpoint, TimmCheckpoint, create_timm, encoder_weights
from tests.classification.shapes import write_shapes

OVERRIDES = {"patch_embed_stride": 2, "num_stages": 2, "window_sizes": 4, "drop_path_rate": 0.0}
EPOCHS = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("data"), 32)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    torch.manual_seed(0)
    network = create_network("qt_unet_tiny", 1, 2, (16, 16, 16), **OVERRIDES)
    file = tmp_path_factory.mktemp("encoder") / "encoder.pth"
    EncoderCheckpoint(
        encoder_weights(network), "qt_unet_tiny", (16, 16, 16), 1, overrides=OVERRIDES, method="QTSSL"
    ).save(file)
    return file


def arguments(folder, **more):
    settings = {
        "data.init_args.num_workers": 0,
        "data.init_args.batch_size": 8,
        "data.init_args.intensity": "false",
        "model.init_args.lr": 1e-3,
        "model.init_args.warmup_steps": 2,
        "trainer.max_epochs": EPOCHS,
        "trainer.accelerator": "cpu",
        "trainer.default_root_dir": folder,
        "trainer.enable_progress_bar": "false",
        "trainer.log_every_n_steps": 1,
        **more,
    }
    return [f"--{name}={value}" for name, value in settings.items()]


def command(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["nnunet-transformers", "classify", *map(str, words)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr()


class TestFit:
    def test_learns_predicts_and_scores(self, data, encoder, tmp_path, monkeypatch, capsys):
        """Cubes from balls, by the commands of the documentation."""
        monkeypatch.chdir(tmp_path)
        folder, table = data
        words = ["fit", folder, table, "--config", "default", "--encoder", encoder, *arguments(tmp_path / "run")]
        code, captured = command(monkeypatch, capsys, *words)
        assert code == 0, captured.err
        file = tmp_path / "run" / "classifier.pth"
        assert f"{file}: val_auc 1.000" in captured.out
        checkpoint = ClassifierCheckpoint.load(file)
        assert (checkpoint.classes, checkpoint.num_cases) == (("ball", "cube"), 16)
        assert checkpoint.encoder == "QTSSL of qt_unet_tiny, 0 images"
        assert checkpoint.recipe["lr"] == 1e-3
        with open(tmp_path / "run" / "lightning_logs" / "version_0" / "metrics.csv") as metrics:
            rows = list(csv.DictReader(metrics))
        assert sum(bool(row["val_auc"]) for row in rows) == EPOCHS

        predictions, scores = tmp_path / "predictions.csv", tmp_path / "scores.json"
        words = ["predict", file, folder, "-o", predictions, "--labels", table, "--scores", scores]
        code, captured = command(monkeypatch, capsys, *words)
        assert code == 0, captured.err
        with open(predictions) as text:
            rows = {row["image"]: row for row in csv.DictReader(text)}
        assert len(rows) == 32
        assert float(rows["case_6"]["cube"]) + float(rows["case_6"]["ball"]) == pytest.approx(1, abs=1e-5)
        assert (rows["case_6"]["prediction"], rows["case_7"]["prediction"]) == ("cube", "ball")
        found = json.loads(scores.read_text())
        assert found["images"] == 8  # those of the split test
        assert found["scores"]["AUC"]["value"] > 0.9
        assert "95 % intervals" in " ".join(captured.out.split())  # the title may be wrapped

        # images that it has seen are left out, or the scores say so
        with open(table) as text:
            given = list(csv.DictReader(text))
        seen = {split: [row for row in given if row["split"] == split] for split in ("train", "val", "test")}
        for splits, number, note in (
            (
                ("train", "val", "test"),
                8,
                "24 images that the classifier was trained on or chosen by are left out; it knows them by name",
            ),
            (("train", "val"), 8, "NO IMAGE IS NEW to the classifier"),
        ):
            rows = [f"{row['image']},{row['label']}" for split in splits for row in seen[split]]
            (tmp_path / "all.csv").write_text("\n".join(["image,label", *rows, "nobody.nii.gz,cube"]))
            words = ["predict", file, folder, "-o", predictions, "--labels", tmp_path / "all.csv", "--scores", scores]
            code, captured = command(monkeypatch, capsys, *words)
            assert code == 0, captured.err
            assert note in captured.out
            assert "1 images of the table are not in the folder, first nobody.nii.gz" in captured.out
            assert json.loads(scores.read_text())["images"] == number
        unseen = {row["image"] for split in ("train", "val") for row in seen[split]}
        assert not any(name in file.read_bytes().decode("latin-1") for name in unseen)

        (tmp_path / "trained.csv").write_text(f"image,label\n{seen['train'][0]['image']},{seen['train'][0]['label']}\n")
        for content, message in (
            (
                (tmp_path / "trained.csv").read_text(),
                "was trained on images of all these 1 names, so scores would mean nothing; if they are other images",
            ),
            ("image,label\ncase_0,cone\n", "label 'cone' is none of the classes ball, cube"),
            ("image,label,split\ncase_0,cube,train\n", "has test for no prepared image"),
        ):
            (tmp_path / "bad.csv").write_text(content)
            words = ["predict", file, folder, "-o", predictions, "--labels", tmp_path / "bad.csv"]
            code, captured = command(monkeypatch, capsys, *words)
            assert code == 1
            assert message in captured.err

    def test_new_images_are_prepared_as_the_old(self, data, tmp_path, monkeypatch, capsys):
        folder, table = data
        fit("default", folder, table, arguments=[*arguments(tmp_path, **{"trainer.max_epochs": 1}), *random_weights()])
        other = write_shapes(tmp_path / "new", 2, (20, 16, 16), spacing=(0.5, 1, 1))[0]
        words = ["predict", tmp_path / "classifier.pth", other, "-o", tmp_path / "p.csv"]
        code, captured = command(monkeypatch, capsys, *words)
        assert code == 1
        assert "has spacing 0.5, 1, 1 mm, the classifier was trained on 1, 1, 1 mm" in captured.err
        like = ["prepare", tmp_path / "new" / "raw", tmp_path / "like", "--like", tmp_path / "classifier.pth"]
        monkeypatch.setattr(sys, "argv", ["nnunet-transformers", "pretrain", *map(str, like)])
        with pytest.raises(SystemExit):
            cli.main()
        assert command(monkeypatch, capsys, *words[:2], tmp_path / "like", *words[3:])[0] == 0
        monkeypatch.setattr(
            sys, "argv", [*sys.argv[:1], "pretrain", *map(str, like[:-3]), "again", *like[3:], "--spacing=1,1,1"]
        )
        with pytest.raises(SystemExit):
            cli.main()
        assert "--spacing contradicts --plans or --like" in capsys.readouterr().err

    def test_resumed_run_equals_uninterrupted_one(self, data, tmp_path):
        folder, table = data
        more = {"trainer.max_epochs": 3, "data.init_args.intensity": "true"}
        fit("default", folder, table, arguments=[*arguments(tmp_path / "whole", **more), *random_weights()])
        half = [*arguments(tmp_path / "half", **more), *random_weights()]
        stop = "--trainer.callbacks+=tests.classification.test_runs.StopAfterTwo"
        fit("default", folder, table, arguments=[*half, stop])
        state = torch.load(tmp_path / "half" / "last.ckpt", weights_only=True)
        assert state["global_step"] == 4
        fit("default", folder, table, arguments=[*half, "--ckpt_path=last"])
        states = [torch.load(tmp_path / f / "last.ckpt", weights_only=True)["state_dict"] for f in ("whole", "half")]
        for name, value in states[0].items():
            assert torch.equal(states[1][name], value), name
        whole, resumed = (ClassifierCheckpoint.load(tmp_path / f / "classifier.pth") for f in ("whole", "half"))
        assert whole.scores == resumed.scores
        assert all(torch.equal(whole.weights[name], value) for name, value in resumed.weights.items())

    def test_resumed_with_other_classes(self, data, tmp_path):
        folder, table = data
        more = [*arguments(tmp_path / "run", **{"trainer.max_epochs": 1}), *random_weights()]
        fit("default", folder, table, arguments=more)
        for labels, found in ((("ball", "round"), "cube, round"), (("cube", "tube"), "ball, tube")):
            (tmp_path / "other.csv").write_text(table.read_text().replace(*labels))
            with pytest.raises(ValueError, match=f"with the classes ball, cube, the table has {found} now"):
                fit("default", folder, tmp_path / "other.csv", arguments=[*more, "--ckpt_path=last"])

    def test_frozen(self, data, encoder, tmp_path):
        folder, table = data
        more = arguments(tmp_path, **{"model.init_args.frozen": "true", "trainer.max_epochs": 2})
        trainer = fit("default", folder, table, encoder, arguments=more)
        network = trainer.lightning_module.network
        before = torch.load(encoder, weights_only=True)["network_weights"]
        after = network.backbone.encoder.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())
        assert not network.backbone.training
        assert any(isinstance(module, CPULinear) for module in network.modules())  # the accelerator is the CPU

    def test_several_labels(self, data, tmp_path, monkeypatch, capsys):
        folder, table = data
        with open(table) as text:
            rows = list(csv.DictReader(text))
        several = tmp_path / "several.csv"
        lines = [
            f"{r['image']},{int(r['label'] == 'cube')},{'' if i % 5 == 0 else int(r['label'] == 'ball')},{r['split']}"
            for i, r in enumerate(rows)
        ]
        several.write_text("\n".join(["image,cube,round,split", *lines]))
        more = [*arguments(tmp_path / "run", **{"trainer.max_epochs": 6}), *random_weights()]
        fit("default", folder, several, labels=["cube", "round"], arguments=more)
        words = ["predict", tmp_path / "run" / "classifier.pth", folder, "-o", tmp_path / "p.csv", "--labels", several]
        code, captured = command(monkeypatch, capsys, *words)
        assert code == 0, captured.err
        assert "AUC of round" in captured.out
        assert (tmp_path / "p.csv").read_text().startswith("image,cube,round\n")

    def test_mistakes(self, data, encoder, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        folder, table = data
        one_class = tmp_path / "one.csv"
        one_class.write_text("image,label\ncase_0,a\ncase_1,a\n")
        unknown = tmp_path / "unknown.csv"
        unknown.write_text("image,label\nnobody,a\nno_one,b\n")
        missing = tmp_path / "missing.csv"
        missing.write_text("image,label,split\ncase_0,a,train\ncase_1,a,train\ncase_2,b,val\n")
        start, usual = ["fit", folder], ["--config", "default", "--encoder", encoder, *arguments(tmp_path / "run")]
        for words, message in (
            ([*start, table, *usual, "--labels", "grade"], "has no column grade; it has image, label, split"),
            ([*start, one_class, *usual], "all images in .*one.csv have the label 'a'; a classifier needs two"),
            ([*start, unknown, *usual], "none of the 2 images in .*: the table's first is nobody, the folder's case_0"),
            ([*start, missing, *usual], "class 'a' cannot be learned: all training images of"),
            ([*start, table, "--config", "defalt"], "no recipe and no file 'defalt'; there are default"),
            ([*start, table, "--config", "default", *arguments(tmp_path / "run")], "set --model.init_args.patch_size"),
            (["fit", tmp_path, table, *usual], "holds no prepared images; run"),
            (["fit", "--trainer.max_epochs", "3", folder, table, *usual], "come before other options, got --trainer"),
            ([*start, table, *usual, "--encoder", tmp_path / "no.pth"], "no such checkpoint"),
            ([*start, table, *usual, "--trainer.max_steps=1"], "ends after 1 steps, before the first validation"),
            (["predict", encoder, folder, "-o", tmp_path / "p.csv"], "is not a checkpoint of kind classifier"),
            (["predict", encoder, folder, "-o", "p.csv", "--scores", "s.json"], "--scores needs --labels"),
        ):
            code, captured = command(monkeypatch, capsys, *words)
            assert code == 1, words
            assert "Traceback" not in captured.err
            assert "Union" not in captured.err
            assert re.search(message, captured.err), captured.err

    def test_several_validations_in_an_epoch(self, data, tmp_path):
        """The best is kept, with the weights that it was of."""
        more = [*arguments(tmp_path, **{"trainer.max_epochs": 1, "model.init_args.warmup_steps": 0}), *random_weights()]
        more += [
            "--trainer.val_check_interval=0.5",
            "--trainer.callbacks+=tests.classification.test_runs.BestInTheMiddle",
        ]
        fit("default", *data, arguments=more)
        checkpoint = ClassifierCheckpoint.load(tmp_path / "classifier.pth")
        assert (checkpoint.scores["val_auc"], checkpoint.recipe["steps"]) == (1, 1)
        wanted = torch.load(tmp_path / "first.pt", weights_only=True)
        assert all(torch.equal(checkpoint.weights[name], value) for name, value in wanted.items())

    @pytest.mark.parametrize("limit", ["limit_val_batches=3", "fast_dev_run=true"])
    def test_some_validation_images_only(self, limit, data, tmp_path):
        """Scores are of those that were validated."""
        more = {"trainer.max_epochs": 1, "data.init_args.batch_size": 4}
        fit("default", *data, arguments=[*arguments(tmp_path, **more), *random_weights(), f"--trainer.{limit}"])
        assert math.isfinite(ClassifierCheckpoint.load(tmp_path / "classifier.pth").scores["val_loss"])

    def test_folder_with_a_run_is_not_overwritten(self, data, encoder, tmp_path):
        (tmp_path / "last.ckpt").touch()
        with pytest.raises(FileExistsError, match="already holds a run"):
            fit("default", *data, encoder, arguments=arguments(tmp_path))


class BestInTheMiddle(Callback):
    """The first validation of an epoch is perfect, the second one hopeless."""

    def on_validation_epoch_end(self, trainer, module):
        right = torch.from_numpy(module.data.val_targets)
        module.collected[:, :-1] = right if trainer.global_step == 1 else 1 - right
        if trainer.global_step == 1:
            torch.save(module.network.state_dict(), f"{trainer.default_root_dir}/first.pt")


class StopAfterTwo(Callback):
    """As if the run had been killed between two epochs."""

    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = trainer.current_epoch == 1


def random_weights():
    network = json.dumps(OVERRIDES)
    return ["--model.init_args.patch_size=[16,16,16]", f"--model.init_args.network_overrides={network}"]


class TestRecipes:
    @pytest.mark.parametrize("recipe", list_recipes())
    def test_runs_at_a_small_size(self, recipe, data, tmp_path):
        folder, table = data
        three, size = "[16,16,16]", "[32,64]"
        small = {"trainer.max_epochs": 1, "trainer.max_steps": -1, "trainer.check_val_every_n_epoch": 1}
        if recipe in ("mgca_linear", "unimiss_chestxr"):
            small |= {"model.init_args.patch_size": size, "data.init_args.canvas": "[40,64]"}
        else:
            small |= {"model.init_args.patch_size": three}
        if recipe == "mgca_linear":
            small["model.init_args.network"] = "vit_tiny_patch16_224"
        elif recipe.startswith("unimiss"):
            small["model.init_args.network"] = "mit_7"
            if recipe == "unimiss_ricord":
                size = "[16,32,64]"
                small |= {"model.init_args.patch_size": size, "data.init_args.evaluation_canvas": size}
        else:
            small["model.init_args.network_overrides"] = json.dumps(OVERRIDES)
        if recipe == "alice_covid":
            small["data.init_args.canvas"] = three
        if recipe in ("alice_covid", "unimiss_ricord"):
            prepare(folder.parent / "raw", tmp_path / "raw_values", normalization="nonorm")
            folder = tmp_path / "raw_values"
        fit(recipe, folder, table, arguments=arguments(tmp_path, **small))
        checkpoint = ClassifierCheckpoint.load(tmp_path / "classifier.pth")
        assert set(checkpoint.scores) == {"val_auc", "val_accuracy", "val_loss"}

    def test_timm_encoder(self, data, tmp_path):
        network = create_timm("resnet10t", 3, (32, 32))
        TimmCheckpoint(network.state_dict(), "resnet10t", (32, 32), 3, method="MGCA").save(tmp_path / "encoder.pth")
        small = {"trainer.max_epochs": 1, "model.init_args.patch_size": "null", "data.init_args.canvas": "[32,32]"}
        fit("mgca_linear", *data, tmp_path / "encoder.pth", arguments=arguments(tmp_path, **small))
        assert ClassifierCheckpoint.load(tmp_path / "classifier.pth").encoder == "MGCA of resnet10t, 0 images"
