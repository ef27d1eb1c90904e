"""A small planned dataset, and functions that train and predict on it as nnU-Net's commands do."""

from __future__ import annotations

from importlib import import_module

import pytest
import SimpleITK as sitk
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import run_training

from nnunet_transformers.architectures import get_network
from nnunet_transformers.discovery import PLANNERS
from nnunet_transformers.trainers.linear_probe import nnUNetTrainerLinearProbe
from nnunet_transformers.trainers.trainer import TransformerTrainer
from tests.architectures.test_networks import EACH_CLASS, reduced
from tests.conftest import light_nnunet, set_nnunet_folders, write_dataset

TRAINER, PLANNER, PLANS = "nnUNetTrainerQTUNet_1epoch", "nnUNetPlannerQTUNetT", "nnUNetQTUNetTPlans"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def short_epochs(monkeypatch):
    for trainer in (TransformerTrainer, nnUNetTrainerLinearProbe):
        monkeypatch.setattr(trainer, "default_iterations", 2)
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")


def prepare(folders, monkeypatch, configurations=("3d_fullres",), cases=5, **dataset):
    """Of five cases a fold validates one."""
    write_dataset(folders / "raw", cases=cases, **dataset)
    extract_fingerprints([900], num_processes=1)
    plan_experiments([900], PLANNER, gpu_memory_target_in_gb=2)
    preprocess([900], PLANS, configurations, [1] * len(configurations))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")


def train(configuration="3d_fullres", trainer=TRAINER, plans=PLANS, fold=0, **kwargs):
    run_training("900", configuration, fold, trainer, plans, device=CPU, **kwargs)


def model_folder(folders, configuration="3d_fullres", trainer=TRAINER, plans=PLANS):
    return folders / "results" / "Dataset900_Balls" / f"{trainer}__{plans}__{configuration}"


def predict(folders, configuration="3d_fullres", trainer=TRAINER, plans=PLANS, probabilities=False):
    predictor = nnUNetPredictor(device=CPU, use_mirroring=False, perform_everything_on_device=False)
    predictor.initialize_from_trained_model_folder(
        str(model_folder(folders, configuration, trainer, plans)), (0,), "checkpoint_final.pth"
    )
    output = folders / f"predictions_{configuration}"
    output.mkdir(exist_ok=True)
    cases = sorted(str(p) for p in (folders / "raw" / "Dataset900_Balls" / "imagesTr").glob("ball_0_*.nii.gz"))
    predictor.predict_from_files_sequential([cases], [str(output / "ball_0.nii.gz")], save_probabilities=probabilities)
    return sitk.GetArrayFromImage(sitk.ReadImage(str(output / "ball_0.nii.gz")))


@pytest.fixture(scope="session")
def shared_folders(tmp_path_factory):
    """nnU-Net's folders with a dataset that is planned and preprocessed."""
    folders = tmp_path_factory.mktemp("prepared")
    with light_nnunet(), pytest.MonkeyPatch.context() as monkeypatch:
        set_nnunet_folders(folders, monkeypatch)
        monkeypatch.setenv("nnUNet_n_proc_DA", "1")
        prepare(folders, monkeypatch, ("3d_fullres", "2d"))
    return folders


@pytest.fixture
def prepared(shared_folders, monkeypatch):
    """nnU-Net's folders of the shared dataset."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    return set_nnunet_folders(shared_folders, monkeypatch)


@pytest.fixture
def plan_smallest(monkeypatch):
    """Plan with a planner and the smallest network of its class; returns the name of the plans."""

    def plan(planner):
        planner_class = getattr(import_module(PLANNERS[planner]), planner)
        network_class = get_network(planner_class.network_name).network_class
        smallest = next(name for name in EACH_CLASS if get_network(name).network_class is network_class)
        monkeypatch.setattr(planner_class, "network_name", smallest)
        if small := reduced(smallest):
            monkeypatch.setattr(planner_class, "network_overrides", {**planner_class.network_overrides, **small})
        elif "widths" in get_network(smallest).override_names:  # of which there is one size only
            monkeypatch.setattr(planner_class, "network_overrides", {"widths": (8, 16, 32, 64)})
        return plan_experiments([900], planner, gpu_memory_target_in_gb=4)

    return plan


@pytest.fixture
def plan_with(prepared, plan_smallest):
    """The same for the shared dataset, once for each planner."""

    def plan(planner):
        name = getattr(import_module(PLANNERS[planner]), planner).default_plans_name()
        if not (prepared / "preprocessed" / "Dataset900_Balls" / f"{name}.json").is_file():
            assert plan_smallest(planner) == name
        return name

    return plan
