"""The best of models of two families: a stock network and one of ours, with trainers and plans of their own."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.ensembling.ensemble import entry_point_ensemble_folders
from nnunetv2.evaluation.find_best_configuration import find_best_configuration
from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiments
from nnunetv2.run.run_training import get_trainer_from_args

from nnunet_transformers.evaluation import best
from nnunet_transformers.evaluation.best import Choice, TrainedModel, find_best
from tests.cli.test_cli import run_main
from tests.conftest import light_nnunet, set_nnunet_folders
from tests.trainers.conftest import CPU, PLANS, TRAINER, prepare

DATASET = "Dataset900_Balls"
OURS, STOCK = f"{TRAINER}__{PLANS}__3d_fullres", "nnUNetTrainer_1epoch__nnUNetPlans__3d_fullres"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """nnU-Net's folders with fold 0 of both, trained for a step and validated with probabilities."""
    folders = tmp_path_factory.mktemp("trained")
    with light_nnunet(), pytest.MonkeyPatch.context() as monkeypatch:
        set_nnunet_folders(folders, monkeypatch)
        monkeypatch.setenv("nnUNet_n_proc_DA", "1")
        prepare(folders, monkeypatch)
        monkeypatch.setenv("nnUNet_n_proc_DA", "1")
        plan_experiments([900])
        monkeypatch.setenv("nnUNet_n_proc_DA", "0")
        for name in (OURS, STOCK):
            trainer_name, plans, configuration = name.split("__")
            trainer = get_trainer_from_args("900", configuration, 0, trainer_name, plans, device=CPU)
            trainer.num_iterations_per_epoch = trainer.num_val_iterations_per_epoch = 1
            trainer.run_training()
            trainer.perform_actual_validation(save_probabilities=True)
    return folders


@pytest.fixture
def results(trained, tmp_path, monkeypatch):
    """A copy of the dataset's results, and nnU-Net's other folders."""
    set_nnunet_folders(trained, monkeypatch)
    folder = tmp_path / "results" / DATASET
    shutil.copytree(trained / "results" / DATASET, folder)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    return folder


def another(results: Path, name: str, source: str = STOCK) -> Path:
    """A further model: a copy under another name."""
    shutil.copytree(results / source, results / name)
    return results / name


def segmentation(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def test_as_nnunet(results, monkeypatch, capsys):
    """Scores, ensemble and postprocessing are those of nnU-Net's function, to which the same models are given."""
    code, captured = run_main(monkeypatch, capsys, "find-best", "-d", "900", "--folds", "0", "-np", "1")
    assert code == 0, captured.err
    ours = json.loads((results / "inference_information.json").read_text())
    models = [dict(zip(("trainer", "plans", "configuration"), n.split("__"), strict=True)) for n in (OURS, STOCK)]
    theirs = find_best_configuration(900, models, num_processes=1, folds=(0,))
    assert ours["all_results"] == pytest.approx(theirs["all_results"], nan_ok=True)
    assert len({*ours["all_results"].values()}) == 3
    assert ours["best_model_or_ensemble"] == theirs["best_model_or_ensemble"]
    assert ours["considered_models"] == theirs["considered_models"]
    assert f"best: {next(iter(ours['all_results']))}" in captured.out


def test_ensemble_across_families(results, tmp_path, monkeypatch):
    """The ensemble that is compared is what nnUNetv2_ensemble makes of the two models' predictions."""
    find_best(DATASET, folds=(0,))
    (merged,) = (results / "ensembles").glob("ensemble___*")
    inputs = [results / name / "fold_0/validation" for name in (OURS, STOCK)]
    for name in ("dataset.json", "plans.json"):
        shutil.copy(results / OURS / name, inputs[0])
    output = tmp_path / "ensembled"
    arguments = ["-i", *map(str, inputs), "-o", str(output), "-np", "1"]
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_ensemble", *arguments])
    entry_point_ensemble_folders()
    (case,) = output.glob("*.nii.gz")
    np.testing.assert_array_equal(segmentation(case), segmentation(merged / case.name))
    probabilities = [np.load(folder / case.name.replace(".nii.gz", ".npz"))["probabilities"] for folder in inputs]
    np.testing.assert_array_equal(segmentation(case), np.mean(probabilities, axis=0).argmax(0))


def test_models_that_lack_something(results):
    """Without probabilities a model is in no ensemble; without the fold it is left out, unless it was named."""
    for file in another(results, "nnUNetTrainerA__nnUNetPlans__3d_fullres").rglob("*.npz"):
        file.unlink()
    (another(results, "nnUNetTrainerB__nnUNetPlans__3d_fullres") / "fold_0/validation/summary.json").unlink()
    another(results, "nnUNetTrainerA__nnUNetPlans__3d_fullres__backup")
    choice = find_best(DATASET, folds=(0,))
    assert len(choice.scores) == 4
    assert sum(name.startswith("ensemble") for name in choice.scores) == 1
    without, backup, missing = sorted(choice.notes)
    assert backup == "nnUNetTrainerA__nnUNetPlans__3d_fullres__backup is no TRAINER__PLANS__CONFIGURATION, left out"
    assert "nnUNetTrainerA__nnUNetPlans__3d_fullres has no probabilities" in without
    assert "nnUNetTrainerB__nnUNetPlans__3d_fullres lacks the validation of fold 0, left out" in missing
    assert [*find_best(DATASET, ["*A__*"], (0,)).scores] == ["nnUNetTrainerA__nnUNetPlans__3d_fullres"]
    with pytest.raises(ValueError, match=r"lacks .* fold 0: `nnUNetv2_train .* 0 -tr nnUNetTrainerB -p nnUNetPlans"):
        find_best(DATASET, ["nnUNetTrainerB__nnUNetPlans__3d_fullres"], (0,))
    with pytest.raises(ValueError, match=r"has folds 0, 1; .*Choose other --folds"):
        find_best(DATASET, folds=(0, 1))
    with pytest.raises(ValueError, match=rf"no trained model nnUNetTrainerC.*there are: .*{OURS}"):
        find_best(DATASET, ["nnUNetTrainerC*"])


def test_models_that_cannot_be_compared(results):
    other = another(results, "nnUNetTrainerA__nnUNetPlans__3d_fullres")
    (case,) = (other / "fold_0/validation").glob("*.nii.gz")
    case.rename(case.with_name("another.nii.gz"))
    with pytest.raises(ValueError, match=r"different cases \(another and 1 more are of one only\)"):
        find_best(DATASET, folds=(0,))
    description = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps({**description, "labels": {"background": 0, "ball": 1}}))
    with pytest.raises(ValueError, match=r"differ in labels of dataset\.json"):
        find_best(DATASET, folds=(0,))


def test_commands_of_a_cascade(results):
    """Its first stage is predicted first, which nnU-Net's own instructions leave out."""
    cascade = another(results, "nnUNetTrainer__nnUNetPlans__3d_cascade_fullres")
    plans = json.loads((cascade / "plans.json").read_text())
    plans["configurations"]["3d_lowres"] = plans["configurations"]["3d_fullres"]
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    (cascade / "plans.json").write_text(json.dumps(plans))
    members = (TrainedModel(cascade), TrainedModel(results / OURS))
    lines = Choice(DATASET, (0, 1), {}, members, results / "ensembles/best", 0.5, ()).commands()
    assert lines == [
        f"nnUNetv2_predict -d {DATASET} -i INPUT_FOLDER -f 0 1 -tr nnUNetTrainer -p nnUNetPlans -c 3d_lowres "
        "-o OUTPUT_FOLDER_MODEL_1_3d_lowres",
        f"nnUNetv2_predict -d {DATASET} -i INPUT_FOLDER -f 0 1 -tr nnUNetTrainer -p nnUNetPlans -c 3d_cascade_fullres "
        "-o OUTPUT_FOLDER_MODEL_1 --save_probabilities -prev_stage_predictions OUTPUT_FOLDER_MODEL_1_3d_lowres",
        f"nnUNetv2_predict -d {DATASET} -i INPUT_FOLDER -f 0 1 -tr {TRAINER} -p {PLANS} -c 3d_fullres "
        "-o OUTPUT_FOLDER_MODEL_2 --save_probabilities",
        "nnUNetv2_ensemble -i OUTPUT_FOLDER_MODEL_1 OUTPUT_FOLDER_MODEL_2 -o OUTPUT_FOLDER",
        f"nnUNetv2_apply_postprocessing -i OUTPUT_FOLDER -o OUTPUT_FOLDER_PP "
        f"-pp_pkl_file {results}/ensembles/best/postprocessing.pkl -plans_json {results}/ensembles/best/plans.json",
    ]


def test_a_label_that_no_case_has(results, monkeypatch):
    """nnU-Net's mean is NaN, which JSON does not have: the choice is written all the same."""
    monkeypatch.setattr(best, "_dice", lambda folder: float("nan"))
    choice = find_best(DATASET, folds=(0,), ensembles=False)
    information = json.loads((results / "inference_information.json").read_text())
    assert {*information["all_results"].values()} == {None} and len(information["all_results"]) == len(choice.scores)
    assert information["best_model_or_ensemble"]["result_on_crossval_post_pp"] is None


def test_paths_are_quoted(results, tmp_path):
    spaced = tmp_path / "my disk"
    line = Choice(DATASET, (0,), {}, (TrainedModel(results / OURS),), spaced, 0.5, ()).commands()[-1]
    assert f"-pp_pkl_file '{spaced}/postprocessing.pkl' -plans_json '{spaced}/plans.json'" in line
