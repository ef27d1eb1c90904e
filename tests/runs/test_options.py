"""Short names of settings, and the folder of a run."""

from __future__ import annotations

import pytest

from nnunet_transformers.runs.options import given, long_names, with_folder
from nnunet_transformers.runs.recipe import read_recipe, recipe_purposes

PRETRAINING = "nnunet_transformers.pretraining"


@pytest.fixture
def recipe():
    return read_recipe("qt_ssl_in_task", PRETRAINING)


class TestShortNames:
    def test_long_names(self, recipe):
        words = ["--epochs", "50", "--batch-size=8", "--lr=1e-3", "--data.init_args.seed", "1", "--folder", "prepared"]
        assert long_names(recipe, words) == [
            *("--trainer.max_epochs", "50", "--data.init_args.batch_size=8", "--model.init_args.lr=1e-3"),
            *("--data.init_args.seed", "1", "--data.init_args.folder", "prepared"),
        ]

    def test_the_first_setting_that_a_recipe_has(self):
        assert long_names(read_recipe("unimiss", PRETRAINING), ["--folder=x"]) == ["--data.init_args.folder_3d=x"]

    def test_a_recipe_without_it(self):
        with pytest.raises(ValueError, match=r"--folder: the recipe mgca has no data.init_args.folder or"):
            long_names(read_recipe("mgca", PRETRAINING), ["--folder", "x"])

    def test_values_are_left_alone(self, recipe):
        assert long_names(recipe, ["--data.init_args.folder", "epochs"]) == ["--data.init_args.folder", "epochs"]


class TestFolder:
    def test_last_value_counts(self, recipe):
        words = ["--trainer.max_epochs", "5", "--trainer.max_epochs=6"]
        assert given(recipe, words, "trainer.max_epochs") == "6"
        assert given(recipe, [], "trainer.max_epochs") == 350
        assert given(recipe, [], "trainer.default_root_dir") is None

    def test_in_the_results(self, recipe, monkeypatch, tmp_path):
        monkeypatch.setenv("nnUNet_results", str(tmp_path))
        (folder,) = with_folder(recipe, [], "pretraining", "Dataset004_X/nnUNetPlans__3d_fullres")
        path = tmp_path / "pretraining/Dataset004_X/nnUNetPlans__3d_fullres/qt_ssl_in_task"
        assert folder == f"--trainer.default_root_dir={path}"
        (tmp_path / "ct_0.5mm").mkdir()
        words = ["--data.init_args.folder", str(tmp_path / "ct_0.5mm")]
        assert with_folder(recipe, words, "pretraining")[-1].endswith("pretraining/ct_0.5mm/qt_ssl_in_task")
        # a link has its own name, by which two of them stay apart
        (tmp_path / "lungs").symlink_to(tmp_path / "ct_0.5mm")
        words = ["--data.init_args.folder", str(tmp_path / "ct_0.5mm" / ".." / "lungs")]
        assert with_folder(recipe, words, "pretraining")[-1].endswith("pretraining/lungs/qt_ssl_in_task")
        words = ["--data.init_args.folder", "scans/"]
        path = tmp_path / "pretraining/scans/qt_ssl_in_task"
        assert with_folder(recipe, words, "pretraining") == [*words, f"--trainer.default_root_dir={path}"]

    def test_given(self, recipe, monkeypatch):
        monkeypatch.delenv("nnUNet_results", raising=False)
        words = ["--trainer.default_root_dir", "here"]
        assert with_folder(recipe, words, "pretraining") == words
        with pytest.raises(ValueError, match="export nnUNet_results, or give --output FOLDER"):
            with_folder(recipe, [], "pretraining")


def test_every_recipe_says_what_it_is_for():
    for package in (PRETRAINING, "nnunet_transformers.classification", "nnunet_transformers.detection"):
        for recipe, purpose in recipe_purposes(package).items():
            assert 20 < len(purpose) < 250, recipe
