"""The gate for recipes: those of the package pass, and nothing else that a file names is even imported."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import yaml
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI

from nnunet_transformers import _declared, classification, pretraining
from nnunet_transformers.plans.planned import PlannedConfiguration
from nnunet_transformers.pretraining.from_plan import model_arguments
from nnunet_transformers.runs.gate import check_arguments, check_recipe
from nnunet_transformers.runs.recipe import list_recipes, read_recipe
from tests.conftest import EXAMPLES, HOSTILE
from tests.sharing.conftest import invoke
from tests.test_stored_files import STORED

PACKAGE = pretraining.__name__
RECIPES = [(name, package) for package in (PACKAGE, classification.__name__) for name in list_recipes(package)]
EVIL = f"{HOSTILE}.Thing"
QTSSL = "nnunet_transformers.pretraining.methods.qt_ssl.QTSSL"
# entries of a recipe by their path, and what they are replaced by
HOSTILE_ENTRIES = {
    "method": ("model.class_path", EVIL),
    "data": ("data.class_path", EVIL),
    "data as method": ("model.class_path", "nnunet_transformers.pretraining.data.MaskedViewData"),
    "by way of an import": ("model.class_path", "nnunet_transformers.runs.command_line.LightningModule"),
    "a method of a class": (
        "model.class_path",
        "nnunet_transformers.runs.command_line.LightningModule.load_from_checkpoint",
    ),
    "no class": ("model.class_path", ["a"]),
    "method as a string": ("model", EVIL),
    "method as a file": ("model", "callback.yaml"),
    "arguments as a file": ("model.init_args", "callback.yaml"),
    "further arguments": ("model.dict_kwargs", {"a": EVIL}),
    "any argument": ("model.init_args.network_overrides", {"x": {"class_path": EVIL}}),
    "in a list": ("model.init_args.network_overrides", {"x": [{"class_path": EVIL}]}),
    "YAML in a string": ("model.init_args.network_overrides", {"x": f"{{class_path: {EVIL}}}"}),
    "escaped YAML": ("model.init_args.network_overrides", {"x": f'{{"cl\\x61ss_path": "{EVIL}"}}'}),
    "lines of YAML": ("model.init_args.network_overrides", f"x:\n  class_path: {EVIL}"),
    "callback": ("trainer.callbacks", [{"class_path": EVIL}]),
    "callback alone": ("trainer.callbacks", {"class_path": EVIL}),
    "callback as a string": ("trainer.callbacks", [EVIL]),
    "callback by its last name": ("trainer.callbacks", ["LambdaCallback"]),
    "callback as a file": ("trainer.callbacks", "callback.yaml"),
    "callbacks as YAML": ("trainer.callbacks", f"[{{class_path: {EVIL}}}]"),
    "more callbacks": ("trainer.callbacks+", [{"class_path": EVIL}]),
    "function of a callback": (
        "trainer.callbacks",
        [{"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"on_fit_start": EVIL}}],
    ),
    "other modules of Lightning": (
        "trainer.callbacks",
        [{"class_path": "lightning.pytorch.callbacks.early_stopping.torch.hub.load"}],
    ),
    "logger": ("trainer.logger", {"class_path": "lightning.pytorch.loggers.WandbLogger"}),
    "plugin": ("trainer.plugins", [{"class_path": "lightning.pytorch.plugins.io.AsyncCheckpointIO"}]),
    "profiler": ("trainer.profiler", EVIL),
    "strategy": ("trainer.strategy", {"class_path": EVIL}),
    "accelerator": ("trainer.accelerator", "callback.yaml"),
    "trainer": ("trainer", "callback.yaml"),
    "no argument of the trainer": ("trainer.fit", {"class_path": EVIL}),
    "no argument of the trainer, plain": ("trainer.resume", "stranger.ckpt"),
    "more of an argument": ("model.init_args.losses+", ["views"]),
    "a dotted argument": ("model.init_args", {"network_overrides.x": 1}),
    "optimiser": ("optimizer", {"class_path": EVIL}),
    "schedule": ("lr_scheduler", EVIL),
    "subcommand": ("fit", {"ckpt_path": "a.ckpt"}),
    "another file": ("config", "callback.yaml"),
    "checkpoint": ("ckpt_path", "stranger.ckpt"),
    "how to read it": ("weights_only", False),
    "an address": ("trainer.default_root_dir", "ftp://stranger/run"),
    "a chain of addresses": ("data.init_args.folder", "simplecache::https://stranger/folder"),
}


def recipe(path: str = "", value: object = None) -> dict:
    """A whole recipe, with another entry at a path."""
    content = {
        "seed_everything": 0,
        "model": {"class_path": QTSSL, "init_args": {"network": "qt_unet_tiny", "patch_size": [32, 32, 32]}},
        "data": {
            "class_path": "nnunet_transformers.pretraining.data.MaskedViewData",
            "init_args": {"folder": "prepared"},
        },
        "trainer": {"max_epochs": 1, "logger": False, "accelerator": "cpu"},
    }
    *folders, name = path.split(".")
    entry = content
    for folder in folders:
        entry = entry[folder]
    if name:
        entry[name] = value
    return content


@pytest.fixture
def stranger(hostile, tmp_path, monkeypatch):
    """Work in a stranger's folder, with a file that a recipe could name."""
    monkeypatch.chdir(tmp_path)
    Path("callback.yaml").write_text(f"class_path: {EVIL}\n")


@pytest.mark.parametrize(("name", "package"), RECIPES)
def test_own_recipes_pass(name, package):
    check_recipe(read_recipe(name, package).content, name)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("", None),
        ("ckpt_path", "last"),
        ("weights_only", None),
        ("trainer.strategy", "ddp_find_unused_parameters_true"),
        ("trainer.logger", {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}}),
        ("trainer.callbacks", [{"class_path": "EarlyStopping", "init_args": {"monitor": "loss"}}]),
        ("trainer.callbacks", [{"class_path": "nnunet_transformers.runs.callbacks.CollapseMonitor"}]),
        ("trainer.callbacks", [{"class_path": "lightning.pytorch.callbacks.early_stopping.EarlyStopping"}]),
    ],
)
def test_what_recipes_hold(path, value):
    check_recipe(recipe(path, value), "the recipe")


@pytest.mark.parametrize(("path", "value"), HOSTILE_ENTRIES.values(), ids=HOSTILE_ENTRIES)
def test_hostile_recipes(path, value, stranger):
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe(path, value)))
    with pytest.raises(ValueError, match=r"recipe\.yaml has .*give --trust only if you know who made it"):
        invoke("pretrain", "fit", "--config", "recipe.yaml")


def test_dotted_entries(stranger):
    Path("recipe.yaml").write_text(yaml.safe_dump({**recipe(), "trainer.callbacks": [{"class_path": EVIL}]}))
    with pytest.raises(ValueError, match=r"has the entry 'trainer\.callbacks'"):
        invoke("pretrain", "fit", "--config", "recipe.yaml")


def test_base(stranger):
    """A base is checked like the recipe that starts from it."""
    Path("base.yaml").write_text(yaml.safe_dump(recipe("trainer.callbacks", [EVIL])))
    Path("recipe.yaml").write_text("base: base.yaml\n")
    with pytest.raises(ValueError, match=r"base\.yaml has"):
        read_recipe("recipe.yaml", PACKAGE)
    for text in ("base: recipe.yaml", "base: {}", "base: base.yaml"):
        Path("base.yaml").write_text("base: recipe.yaml")
        Path("recipe.yaml").write_text(text)
        with pytest.raises(ValueError, match="as base, which is no recipe"):
            read_recipe("recipe.yaml", PACKAGE)


def test_classification(stranger):
    Path("recipe.yaml").write_text(yaml.safe_dump({"base": "default", "model": {"class_path": EVIL}}))
    with pytest.raises(ValueError, match=r"recipe\.yaml has .* as model"):
        invoke("classify", "fit", ".", "labels.csv", "--config", "recipe.yaml")


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("address", ["https://stranger/last.ckpt", "simplecache::ftp://stranger/last.ckpt"])
def test_addresses_of_checkpoints_are_never_opened(tmp_path, address, trust):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe("ckpt_path", address)))
    with pytest.raises(ValueError, match=r"recipe\.yaml resumes from .*; download the checkpoint"):
        read_recipe(str(file), PACKAGE, trust)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [*a]\n", "has YAML's aliases"),
        ("[" * 5000, "is truncated or not a recipe in YAML"),
        ("a: 2024-13-01", "is truncated or not a recipe in YAML"),
        ("a: !!python/object/apply:os.getcwd []", "is truncated or not a recipe in YAML"),
        ("\xff: {", "is truncated or not a recipe in YAML"),
    ],
)
def test_damaged_files(tmp_path, text, message):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        read_recipe(str(file), PACKAGE)


def test_trust(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe("model.class_path", EVIL)))
    assert read_recipe(str(file), PACKAGE, trust=True).content["model"]["class_path"] == EVIL


def test_declared(examples, monkeypatch):
    path = str(EXAMPLES / "vicreg.yaml")
    with pytest.raises(ValueError, match=r"has 'vicreg\.VICReg' as model"):
        read_recipe(path, PACKAGE)
    assert "vicreg" not in sys.modules
    monkeypatch.setattr(_declared, "declared", lambda: ("vicreg.VICReg",))
    assert read_recipe(path, PACKAGE).part("model").__name__ == "VICReg"


@pytest.mark.parametrize("value", [{"class_path": EVIL}, f"{{class_path: {EVIL}}}", [{"a": {"init_args": {}}}]])
def test_arguments_of_plans(value):
    """`pretrain fit -p` hands a plan's arguments to the command line, which would build objects from them."""
    check_arguments({"depths": [2, 2], "norm": "pre", "strides": None, "rate": 0.1}, "the plan")
    with pytest.raises(ValueError, match=r"the plan has .* plain value"):
        check_arguments({"depths": value}, "the plan")


def test_a_plan_for_pretraining(hostile):
    content = json.loads((STORED / "plans" / "nnUNetQTUNetTPlans.json").read_text())
    dataset_json = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
    known = read_recipe("qt_ssl_ct", PACKAGE).parameters("model")
    assert model_arguments(PlannedConfiguration(content, dataset_json, "3d_fullres"), known)
    arguments = content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    arguments["depths"] = [{"class_path": EVIL}]
    with pytest.raises(ValueError, match=r"3d_fullres of the plan nnUNetQTUNetTPlans has the entry .*class_path"):
        model_arguments(PlannedConfiguration(content, dataset_json, "3d_fullres"), known)


def test_lightnings_record_of_a_run_is_a_recipe(tmp_path):
    """Lightning writes config.yaml beside a run's state."""
    arguments = [
        "fit",
        "--config",
        yaml.safe_dump(recipe()),
        "--data.init_args.patch_size=[32,32,32]",
        "--print_config",
    ]
    with pytest.raises(SystemExit), redirect_stdout(StringIO()) as printed:
        LightningCLI(
            LightningModule, LightningDataModule, subclass_mode_model=True, subclass_mode_data=True, args=arguments
        )
    (tmp_path / "config.yaml").write_text(printed.getvalue())
    assert read_recipe(str(tmp_path / "config.yaml"), PACKAGE).part("model").__name__ == "QTSSL"
