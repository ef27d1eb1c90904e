"""Files of a stranger through the commands that read them: nothing that they name is executed or written elsewhere.

What each part of a plan, a recipe or a package may hold is tested beside the parts; docs/security.md lists the tests.
"""

from __future__ import annotations

import json
import lzma
import os
import shutil
import sys
from collections import Counter
from contextlib import redirect_stderr, suppress
from copy import deepcopy
from io import StringIO
from pathlib import Path
from random import Random

import numpy as np
import pytest
import SimpleITK as sitk
import yaml
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI

from nnunet_transformers._paths import inside
from nnunet_transformers._reading import read_json
from nnunet_transformers._text import code, markdown, printable
from nnunet_transformers.classification.checkpoint import ClassifierCheckpoint
from nnunet_transformers.plans.gate import check_plan
from nnunet_transformers.pretraining.data import CachedMatcher, PreparedImages
from nnunet_transformers.pretraining.data.cases import find_cases
from nnunet_transformers.pretraining.data.index import PreparedCase, read_index
from nnunet_transformers.pretraining.data.radiographs import RadiographFiles
from nnunet_transformers.pretraining.data.report_table import read_reports
from nnunet_transformers.runs.recipe import read_recipe
from nnunet_transformers.sharing.card import write_card
from nnunet_transformers.sharing.description import Description, Model
from nnunet_transformers.sharing.shareable import without_paths
from nnunet_transformers.sharing.trained import TrainedFold
from tests.conftest import HOSTILE, write_dataset
from tests.sharing.conftest import invoke
from tests.test_stored_files import STORED
from tests.trainers.conftest import PLANS
from tests.weights.test_restricted import write_pickle

(MODEL,) = (STORED / "model").iterdir()
ENCODER = STORED / "encoder_qt_unet.pth"
DATASET = "Dataset900_Balls"
NAMES_OUTSIDE = [
    "../x",
    "../../x",
    "a/../../x",
    "/x",
    "..",
    "",
    ".",
    "C:x",
    "C:/x",
    "\\\\server\\share",
    "..\\x",
    "a\\..\\x",
    "a\nb",
    "a\x1b[2Jb",
    "a\x00b",
]
# the commands that build from a folder, with the names that the test replaces
COMMANDS = {
    "predict": "predict -m MODEL -f 0 -i IN -o OUT -device cpu -npp 0 -nps 0",
    "predict by name": f"predict -d 900 -c 3d_fullres -tr TRAINER -p {PLANS} -f 0 -i IN -o OUT -device cpu",
    "package": "package make MODEL -f 0 -o OUT",
    "export-stock": "export-stock MODEL -f 0 -o OUT",
    "report": "report MODEL/fold_0",
    "attach": f"attach ENCODER -d 900 -p {PLANS} -o new -c 3d_fullres",
    "export-full": f"export-full ENCODER -d 900 -p {PLANS} -c 3d_fullres -o OUT",
    "probe": f"probe segment ENCODER -d 900 -p {PLANS} -device cpu",
    "prepare": f"pretrain prepare RAW OUT -d 900 -p {PLANS} -np 1",
}
# those that build no network
IMAGES_ONLY = ("report", "prepare")
# those whose networks need no reader
NETWORK_ONLY = ("attach", "export-full")


@pytest.fixture
def folders(nnunet_folders):
    """nnU-Net's folders with a model and its plan."""
    model = nnunet_folders / "results" / DATASET / MODEL.name
    shutil.copytree(MODEL, model)
    (model / "fold_0" / "checkpoint_final.pth").write_bytes(
        lzma.decompress((model / "fold_0" / "checkpoint_final.pth.xz").read_bytes())
    )
    preprocessed = nnunet_folders / "preprocessed" / DATASET
    preprocessed.mkdir()
    shutil.copyfile(model / "plans.json", preprocessed / f"{PLANS}.json")
    shutil.copyfile(model / "dataset.json", preprocessed / "dataset.json")
    write_dataset(nnunet_folders / "raw", size=(16, 16, 16), cases=1)
    return nnunet_folders


def change_plans(folders, change):
    """Alter the model's plan and that of the dataset, and return the model's folder."""
    model = folders / "results" / DATASET / MODEL.name
    for path in (model / "plans.json", folders / "preprocessed" / DATASET / f"{PLANS}.json"):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    return model


def run(command, folders, model, *more):
    """Run a command of ``COMMANDS``."""
    places = {
        "MODEL": str(model),
        "TRAINER": model.name.partition("__")[0],
        "ENCODER": str(ENCODER),
        "RAW": str(folders / "raw" / DATASET),
        "IN": str(folders / "raw" / DATASET / "imagesTr"),
        "OUT": str(folders / "out"),
    }
    words = COMMANDS[command].split()
    return invoke(*(places.get(w, w.replace("MODEL", str(model))) for w in words), *more)


class TestPlans:
    @pytest.mark.parametrize("command", [c for c in COMMANDS if c not in IMAGES_ONLY])
    @pytest.mark.parametrize("entry", ["network_class_name", "norm_op"])
    def test_networks(self, command, entry, folders, hostile):
        def change(plans):
            architecture = plans["configurations"]["3d_fullres"]["architecture"]
            if entry == "network_class_name":
                architecture[entry] = f"{HOSTILE}.Network"
            else:
                architecture["arch_kwargs"][entry] = f"{HOSTILE}.layer"
                architecture["_kw_requires_import"] = [entry]

        model = change_plans(folders, change)
        with pytest.raises(ValueError, match=f"names '{HOSTILE}.* as (network|norm_op), which is part of neither"):
            run(command, folders, model)
        assert HOSTILE not in sys.modules
        assert not (folders / "out").is_file()
        assert not list((folders / "out").glob("*"))

    @pytest.mark.parametrize("command", [c for c in COMMANDS if c not in NETWORK_ONLY])
    def test_readers(self, command, folders):
        model = change_plans(folders, lambda plans: plans.update(image_reader_writer="load_pickle"))
        with pytest.raises(ValueError, match="names 'load_pickle' as image_reader_writer"):
            run(command, folders, model)

    def test_the_plan_in_a_classifier(self, folders, hostile):
        plans = json.loads((STORED / "prepared" / "index.json").read_text())["plans"]
        checkpoint = ClassifierCheckpoint.load(STORED / "classifier.pth")
        plans["configurations"]["pretraining"]["resampling_fn_data"] = "deepcopy"
        values = {**vars(checkpoint), "plans": plans, "configuration": "pretraining"}
        values.pop("sha256", None)
        ClassifierCheckpoint(**values).save(folders / "classifier.pth")
        with pytest.raises(ValueError, match="names 'deepcopy' as resampling_fn_data"):
            invoke(
                "pretrain", "prepare", folders / "raw" / DATASET, folders / "out", "--like", folders / "classifier.pth"
            )

    def test_trust(self, folders, hostile):
        """With --trust the network is looked for, and its module runs."""

        def change(plans):
            plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = f"{HOSTILE}.Network"

        model = change_plans(folders, change)
        with pytest.raises(Exception, match="Network class could not be found"):
            run("predict", folders, model, "--trust")
        assert hostile.exists()
        hostile.unlink()


class TestWeights:
    @pytest.mark.parametrize("command", ["attach", "export-full", "probe", "convert"])
    def test_pickles(self, command, folders, hostile):
        """What a weight file names is neither imported nor called, also beside weights."""
        path = folders / "weights.pth"
        write_pickle(path, f"\x80\x02}}X\x01\x00\x00\x00ac{HOSTILE}\nThing\n)Rs.".encode("latin1"))
        words = COMMANDS.get(command, "convert qt_unet ENCODER -o OUT").split()
        places = {"ENCODER": str(path), "OUT": str(folders / "out")}
        with pytest.raises(ValueError, match=f"weights.pth holds {HOSTILE}.Thing besides weights and plain types"):
            invoke(*(places.get(word, word) for word in words))
        assert HOSTILE not in sys.modules
        assert not (folders / "out").exists()


class TestNames:
    @pytest.mark.parametrize("name", NAMES_OUTSIDE)
    def test_outside(self, name, tmp_path):
        with pytest.raises(ValueError, match=r"leads out of its folder|is no name of a file"):
            inside(tmp_path, name)

    @pytest.mark.parametrize("name", ["case_0", "patient.1", "p10/s1/x.png", "..x", "Fälle 3", "a..b", "./a"])
    def test_inside(self, name, tmp_path):
        assert inside(tmp_path, name).resolve().is_relative_to(tmp_path)

    @pytest.mark.parametrize("name", ["../../x", "/tmp/x"])
    def test_dataset_table(self, name, tmp_path):
        image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32))
        (tmp_path / "source").mkdir()
        sitk.WriteImage(image, str(tmp_path / "source" / "image.nii.gz"))
        description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}
        table = {name: {"images": ["image.nii.gz"]}}
        (tmp_path / "source" / "dataset.json").write_text(json.dumps({**description, "dataset": table}))
        with pytest.raises(ValueError, match="leads out of its folder"):
            find_cases(tmp_path / "source")
        with pytest.raises(ValueError, match="leads out of its folder"):
            invoke("pretrain", "prepare", tmp_path / "source", tmp_path / "a" / "b" / "out", "-np", 1)
        assert {path.name for path in tmp_path.iterdir()} == {"source"}

    @pytest.mark.parametrize("name", ["../ball_0", "/ball_0", 7])
    def test_index(self, name, tmp_path):
        folder = Path(shutil.copytree(STORED / "prepared", tmp_path / "prepared"))
        index = json.loads((folder / "index.json").read_text())
        index["cases"][0]["name"] = name
        (folder / "index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match="is truncated or not an index of prepared images"):
            read_index(folder)
        with pytest.raises(ValueError, match="is truncated or not an index of prepared images"):
            invoke("pretrain", "show-matches", folder, "ball_1", "ball_1", tmp_path / "figure.png")

    @pytest.mark.parametrize(
        "line",
        [
            {"stored": "../ball_0", "shape": [1, 4, 4, 4]},
            {"stored": "ball_0", "shape": [1, 4, 4, 4], "shard": "../../secret"},
            {"stored": "ball_0", "shape": [1, 4, 4, 4], "shard": "s.tar", "offset": -7},
            {"stored": "ball_0", "shape": [1, 4, 4, 4], "scale": [1.0, 1.0], "shift": [0.0, 0.0]},
            {"skipped": 7, "reason": "none"},
        ],
        ids=str,
    )
    def test_manifest(self, line, tmp_path):
        head = {"format": 2, "channels": ["CT"], "spacing": [1, 1, 1], "normalization": ["CTNormalization"]}
        (tmp_path / "index.json").write_text(json.dumps(head))
        (tmp_path / "manifest.jsonl").write_text(json.dumps(line) + "\n")
        with pytest.raises(ValueError, match="is truncated or not an index of prepared images"):
            read_index(tmp_path)

    def test_manifest_to_go_on_with(self, hostile, tmp_path):
        """Its plan is of whoever made the folder."""
        image = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
        (tmp_path / "in").mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(image), str(tmp_path / "in" / "a.nii.gz"))
        invoke("pretrain", "prepare", tmp_path / "in", tmp_path / "out", "-np", 1)
        path = tmp_path / "out" / "manifest.jsonl"
        path.write_text(path.read_text().replace('"DefaultPreprocessor"', f'"{HOSTILE}.Preprocessor"'))
        sitk.WriteImage(sitk.GetImageFromArray(image + 1), str(tmp_path / "in" / "b.nii.gz"))
        with pytest.raises(ValueError, match=r"names .* as preprocessor_name"):
            invoke("pretrain", "prepare", tmp_path / "in", tmp_path / "out", "-np", 1)

    def test_readers_of_prepared_images(self, tmp_path):
        images = PreparedImages(Path(shutil.copytree(STORED / "prepared", tmp_path / "prepared")))
        with pytest.raises(ValueError, match="there is no image"):
            images.read("../ball_0", (0, 0, 0), (1, 1, 1))
        images.cases["../ball_0"] = PreparedCase("../ball_0")  # as a forged manifest could name it
        with pytest.raises(ValueError, match="leads out"):
            images.read("../ball_0", (0, 0, 0), (1, 1, 1))
        with pytest.raises(ValueError, match="leads out"):
            CachedMatcher(images, "affine").features("../../ball_0")

    def test_report_table(self, tmp_path):
        (tmp_path / "images").mkdir()
        for file in (tmp_path / "secret.png", tmp_path / "images" / "a.png"):
            file.write_bytes(b"")
        table = tmp_path / "reports.csv"
        rows = [
            "a.png,No acute findings here",
            "../secret.png,No findings of note",
            f"{tmp_path}/secret.png,None at all here",
        ]
        table.write_text("\n".join(["image,report", *rows]) + "\n")
        reports = read_reports(table, RadiographFiles(tmp_path / "images", 256))
        assert [pair.image for pair in reports.pairs] == ["a.png"]
        assert {skipped.reason for skipped in reports.skipped} == {"image is outside of the folder of the images"}

    @pytest.mark.parametrize("folder", ["models/..", "models/../..", "/models/a", "elsewhere"])
    def test_models_of_a_package(self, folder, tmp_path):
        Description((Model("models/a", "2d", ("0",), "t", "t", "n", None),)).save(tmp_path)
        content = json.loads((tmp_path / "models.json").read_text())
        assert Description.load(tmp_path).models[0].folder == "models/a"
        content["models"][0]["folder"] = folder
        (tmp_path / "models.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="describes no models"):
            Description.load(tmp_path)


class TestTexts:
    TEXTS = ("\x1b[2J\x1b]0;title\x07", "a\rerror", "a\u202eb", "\x9b31m", "a\u2028b", "\x00")

    @pytest.mark.parametrize("text", TEXTS)
    def test_terminal(self, text):
        assert printable(text).isprintable()
        assert printable(printable(text)) == printable(text)

    def test_readable_texts_stay(self):
        assert printable("Leber, größer\n\tnext 日本") == "Leber, größer\n\tnext 日本"

    def test_markdown(self):
        name = "liver\n# Benign\n\n<script>alert(1)</script> | [x](http://y) `c` *b* &lt; $\\frac{"
        shown = markdown(name)
        assert "\n" not in shown
        assert not [c for i, c in enumerate(shown) if c in "#<>|[]`*&$" and shown[i - 1] != "\\"]
        assert markdown("nnUNetQTUNetTPlans__3d_fullres") == "nnUNetQTUNetTPlans__3d_fullres"
        assert markdown("_a_") == "\\_a\\_"
        assert code("`a`\n# b") == "`a # b`"

    def test_commands(self, tmp_path):
        """The names of images reach the terminal of `prepare` by its list of skipped ones."""
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a\x1b[2J.nii.gz").write_bytes(b"no image")
        image = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
        sitk.WriteImage(sitk.GetImageFromArray(image), str(tmp_path / "in" / "b.nii.gz"))
        result = invoke("pretrain", "prepare", tmp_path / "in", tmp_path / "out", "-np", 1)
        assert "skipped a_[2J-" in result.output
        assert "\x1b" not in result.output

    def test_card(self, folders):
        """A card shows names as they are: no heading, tag, table or escape code comes from one."""
        hostile = "x`\n\n# Benign\n<img src=x onerror=y>|\x1b[2J"

        def change(plans):
            plans |= {"dataset_name": hostile, "plans_name": hostile}
            plans["configurations"]["3d_fullres"]["batch_size"] = hostile

        model = change_plans(folders, change)
        package, name = folders / "package", f"models/{MODEL.name}"
        shutil.copytree(model, package / name)
        content = json.loads((model / "dataset.json").read_text())
        content |= {"description": hostile, "numTraining": hostile, "channel_names": {"0": hostile}}
        content |= {"labels": {"background": 0, hostile: 1}, "file_ending": hostile}
        (package / name / "dataset.json").write_text(json.dumps(content))
        summary = {"mean": {"1": {"Dice": 0.5}, hostile: {"Dice": 0.5}}, "foreground_mean": {"Dice": 0.5}}
        (model / "fold_0" / "validation").mkdir()
        (model / "fold_0" / "validation" / "summary.json").write_text(json.dumps(summary))
        (package / name / "fold_0.safetensors").write_bytes(b"")
        described = Model(name, "3d_fullres", ("0",), hostile, "nnUNetTrainer", hostile, None)
        fold = TrainedFold("0", {}, hostile, "3d_fullres", None, 1, False)
        write_card(package, Description((described,)), {name: [fold]}, {name: model}, "CC0")
        card = (package / "README.md").read_text()
        assert "\x1b" not in card
        assert card.count("Benign") > 8
        lines = card.splitlines()
        assert [line.lstrip("# ") for line in lines if line.startswith("#")][1:] == [
            "Data",
            "Use",
            MODEL.name,
            "Versions",
        ]
        assert all("\\<img" in line for line in lines if "<img" in line and "`" not in line)


class TestPaths:
    def test_plans_to_share(self):
        plans = {
            "attached": {"checkpoint": "/home/me/runs/encoder.pth", "sha256": "0"},
            "configurations": {
                "2d": {"initialisation": {"imagenet": {"convnext": "hub", "swin": "C:\\me\\swin.pth", "spread": True}}},
                "3d_fullres": {"patch_size": [1], "initialisation": {"checkpoint": "/home/me/e.pth", "sha256": "0"}},
            },
        }
        assert without_paths(plans) == {
            "attached": {"checkpoint": "encoder.pth", "sha256": "0"},
            "configurations": {
                "2d": {"initialisation": {"imagenet": {"convnext": "hub", "swin": "swin.pth", "spread": True}}},
                "3d_fullres": {"patch_size": [1], "initialisation": {"checkpoint": "e.pth", "sha256": "0"}},
            },
        }
        assert without_paths({"labels": {}, "dataset": {"a": {"images": ["/home/me/a.nii.gz"]}}}) == {"labels": {}}

    @pytest.mark.parametrize("command", ["package", "export-stock"])
    def test_no_path_leaves_the_machine(self, command, folders):
        def change(plans):
            for entry in (plans, plans["configurations"]["3d_fullres"]):
                key = "attached" if entry is plans else "initialisation"
                entry[key] = {"checkpoint": str(ENCODER), "sha256": "0"}

        model = change_plans(folders, change)
        fold = model / "fold_0"
        (fold / "validation").mkdir(exist_ok=True)
        case = {"prediction_file": str(fold / "a.nii.gz"), "reference_file": str(folders / "b.nii.gz"), "metrics": {}}
        (fold / "validation" / "summary.json").write_text(
            json.dumps({"metric_per_case": [case], "mean": {}, "foreground_mean": {"Dice": 0.5}})
        )
        (fold / "debug.json").write_text(json.dumps({"hostname": "our-server", "output_folder": str(fold)}))
        assert run(command, folders, model).exit_code == 0
        for file in (path for path in (folders / "out").rglob("*") if path.is_file()):
            assert str(folders).encode() not in file.read_bytes(), file
            assert b"our-server" not in file.read_bytes(), file
        (shared,) = (folders / "out").rglob("plans.json")
        assert str(ENCODER.parent) in (model / "plans.json").read_text()
        assert str(ENCODER.parent) not in shared.read_text()
        assert ENCODER.name in shared.read_text()

    def test_report_of_another_machines_fold(self, folders, monkeypatch):
        """Files are found by name, labels with TeX-like and HTML-like names are shown as they are."""
        model = folders / "results" / DATASET / MODEL.name
        labels = {"background": 0, "$\\frac$": 1, "<b>small": 2}
        content = json.loads((model / "dataset.json").read_text())
        (model / "dataset.json").write_text(json.dumps({**content, "labels": labels}))
        validation = model / "fold_0" / "validation"
        validation.mkdir()
        shutil.copyfile(folders / "raw" / DATASET / "labelsTr" / "ball_0.nii.gz", validation / "ball_0.nii.gz")
        secret = folders / "elsewhere"
        metrics = {"1": {"Dice": 0.5}, "2": {"Dice": 0.25}}
        case = {"prediction_file": "D:\\runs\\ball_0.nii.gz", "reference_file": str(secret / "a.nii.gz")}
        summary = {"metric_per_case": [{**case, "metrics": metrics}], "mean": metrics, "foreground_mean": {"Dice": 0.4}}
        (validation / "summary.json").write_text(json.dumps(summary))
        epoch = ["Epoch 0", "train_loss -0.1", "val_loss -0.2", "Pseudo dice [0.5, 0.25]", "Epoch time: 1.0 s"]
        (validation.parent / "training_log_1.txt").write_text("".join(f"2026: {line}\n" for line in epoch))
        result = run("report", folders, model)
        assert result.exit_code == 0, result.output
        page = (model / "fold_0" / "report.html").read_text()
        assert "<b>small" not in page
        assert "&lt;b&gt;small" in page
        assert page.count("data:image/png") == 2 + 4
        monkeypatch.delenv("nnUNet_preprocessed")
        (folders / "raw" / DATASET / "labelsTr").rename(folders / "labels")
        with pytest.raises(FileNotFoundError, match=r"no label of case ball_0 .*; name the folder with --labels"):
            run("report", folders, model)
        assert run("report", folders, model, "--labels", folders / "labels").exit_code == 0


class TestMutations:
    """Changed plans, indices and recipes are refused in one line or still name nothing else; ``MUTATIONS`` of each."""

    NUMBER = int(os.environ.get("MUTATIONS", "100"))
    EVIL = f"{HOSTILE}.Thing"
    VALUES = (
        None,
        True,
        -1,
        1e300,
        "",
        EVIL,
        "torch.hub.load",
        "../x",
        "\x1b[2J",
        "https://stranger/x",
        f"{{class_path: {EVIL}}}",
        f"- {EVIL}",
        [],
        {},
        [EVIL],
        {"class_path": EVIL},
        [{"class_path": EVIL, "init_args": {"x": EVIL}}],
        {"network_class_name": EVIL, "arch_kwargs": {"x": EVIL}, "_kw_requires_import": ["x"]},
    )
    KEYS = ("class_path", "init_args", "callbacks", "ckpt_path", "architecture", "_kw_requires_import", "name", "x", "")

    def places(self, content):
        """Yield each container in a content with each of its keys."""
        for key in list(content) if isinstance(content, dict) else range(len(content)):
            yield content, key
            if isinstance(content[key], (dict, list)):
                yield from self.places(content[key])

    def mutated(self, content, random):
        content = deepcopy(content)
        for _ in range(random.randint(1, 3)):
            places = list(self.places(content)) or [(content, None)]
            container, key = random.choice(places)
            match random.choice(["replace", "remove", "add", "move"]):
                case "replace" if key is not None:
                    container[key] = deepcopy(random.choice(self.VALUES))
                case "remove" if key is not None:
                    del container[key]
                case "add" if isinstance(container, dict):
                    container[random.choice(self.KEYS)] = deepcopy(random.choice(self.VALUES))
                case "move" if key is not None:
                    other, other_key = random.choice(places)
                    container[key] = deepcopy(other[other_key]) if other_key in range_of(other) else None
        return content

    def damaged(self, text, random):
        """Bytes of a file, a third of them damaged."""
        content = bytearray(text.encode())
        if random.random() < 1 / 3:
            content[random.randrange(len(content))] = random.randrange(256)
            del content[random.choice([random.randrange(len(content)), len(content)]) :]
        return bytes(content)

    def refused(self, read):
        """Read a file; tells whether it is refused, which must be in one line."""
        try:
            read()
        except ValueError as error:
            assert "\n" not in str(error)
            return True
        finally:
            assert HOSTILE not in sys.modules
        return False

    def test_plans(self, tmp_path, hostile):
        random, path = Random(0), tmp_path / "plans.json"
        original = json.loads((MODEL / "plans.json").read_text())
        numbers = Counter()
        for _ in range(self.NUMBER):
            path.write_bytes(self.damaged(json.dumps(self.mutated(original, random)), random))
            numbers[self.refused(lambda: check_plan(read_json(path), str(path)))] += 1
        assert len(numbers) == 2

    def test_indices(self, tmp_path, hostile):
        random, folder = Random(0), tmp_path / "prepared"
        folder.mkdir()
        original = json.loads((STORED / "prepared" / "index.json").read_text())
        numbers = Counter()
        for _ in range(self.NUMBER):
            (folder / "index.json").write_bytes(self.damaged(json.dumps(self.mutated(original, random)), random))
            numbers[self.refused(lambda: read_index(folder))] += 1
        assert len(numbers) == 2

    def test_recipes(self, tmp_path, hostile, monkeypatch):
        monkeypatch.chdir(tmp_path)
        random, path = Random(0), tmp_path / "recipe.yaml"
        package = "nnunet_transformers.pretraining"
        originals = [read_recipe(name, package).content for name in ("qt_ssl_ct", "mgca")]
        numbers = Counter()
        for number in range(self.NUMBER):
            text = yaml.safe_dump(self.mutated(originals[number % 2], random))
            path.write_bytes(self.damaged(text, random))
            is_refused = self.refused(lambda: read_recipe(str(path), package))
            numbers[is_refused] += 1
            if not is_refused:
                content = yaml.safe_dump(read_recipe(str(path), package).content)
                with suppress(Exception, SystemExit), redirect_stderr(StringIO()):
                    ParsedOnly(
                        LightningModule,
                        LightningDataModule,
                        subclass_mode_model=True,
                        subclass_mode_data=True,
                        args=["fit", "--config", content],
                    )
                assert HOSTILE not in sys.modules
        assert len(numbers) == 2


class ParsedOnly(LightningCLI):
    """Parses a recipe, which is when Lightning imports what it names, and builds nothing."""

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def range_of(container):
    return container if isinstance(container, dict) else range(len(container))
