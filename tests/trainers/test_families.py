"""Every network and configuration from plan to prediction, and the recipes of the papers."""

from __future__ import annotations

import json
from importlib import import_module

import numpy as np
import pytest
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, preprocess
from nnunetv2.run.run_training import get_trainer_from_args

from nnunet_transformers.architectures import get_network
from nnunet_transformers.discovery import PLANNERS, TRAINERS
from tests.conftest import write_dataset

from .conftest import CPU, PLANS, predict, train


def families_to_train():
    """For each network and configuration the first planner and the trainer; QT-UNet is what the other tests train."""
    trainers = {getattr(import_module(m), n).network_class: n for n, m in reversed(TRAINERS.items())}
    families = {}
    for name, module in PLANNERS.items():
        entry = get_network(getattr(import_module(module), name).network_name)
        for ndim in () if entry.missing_extra else entry.dimensions:
            configuration = {2: "2d", 3: "3d_fullres"}[ndim]
            family = entry.class_path.rpartition(".")[2]
            trainer = next(trainers[c] for c in entry.network_class.mro() if c in trainers)
            families.setdefault((family, configuration), (name, trainer, configuration))
    return [pytest.param(*names, id="-".join(key)) for key, names in families.items() if key[0] != "QTUNet"]


@pytest.mark.parametrize("planner,trainer,configuration", families_to_train())
def test_every_family_from_plan_to_prediction(prepared, plan_with, planner, trainer, configuration):
    plans = plan_with(planner)
    train(configuration, f"{trainer}_1epoch", plans)
    label = predict(prepared, configuration, f"{trainer}_1epoch", plans)
    assert label.shape == (20, 24, 20)
    assert set(np.unique(label)) <= {0, 1, 2}


@pytest.mark.parametrize("planner", ["nnUNetPlannerSETRPUP", "nnUNetPlannerResNet50UNet"])
def test_networks_in_2d_on_images(nnunet_folders, monkeypatch, plan_smallest, planner):
    """A dataset of images; preprocessed with the configurations that nnU-Net's command has by default."""
    write_dataset(nnunet_folders / "raw", size=(1, 40, 48))
    extract_fingerprints([900], num_processes=1)
    plans = plan_smallest(planner)
    preprocess([900], plans, ("2d", "3d_fullres", "3d_lowres"), [1, 1, 1])
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    trainer = f"{planner.replace('Planner', 'Trainer')}_1epoch"
    train("2d", trainer, plans)
    assert predict(nnunet_folders, "2d", trainer, plans).shape == (1, 40, 48)


def test_recipes_of_the_papers(plan_with):
    plans = plan_with("nnUNetPlannerUNet2022T")
    trainer = get_trainer_from_args("900", "3d_fullres", 0, "nnUNetTrainerUNet2022Paper", plans, device=CPU)
    trainer.initialize()
    assert (trainer.loss.loss.weight_dice, trainer.loss.loss.weight_ce) == (1.2, 0.8)
    assert trainer.loss.weight_factors == pytest.approx((4 / 7, 2 / 7, 1 / 7))
    rates = []
    for epoch in (0, 500, 999):
        trainer.lr_scheduler.step(epoch)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-4] * 3)
    assert all(group["weight_decay"] == 0 for group in trainer.optimizer.param_groups)

    plans = plan_with("nnUNetPlannerMiT7")
    trainer = get_trainer_from_args("900", "3d_fullres", 0, "nnUNetTrainerMiTPaper", plans, device=CPU)
    trainer.initialize()
    assert trainer.num_epochs * 250 == 25_000
    # nnU-Net's weights: halved from output to output, none for the last
    outputs = len(trainer.network.strides) - 1
    weights = [2.0**-i for i in range(outputs - 1)]
    assert trainer.loss.weight_factors == pytest.approx([w / sum(weights) for w in weights] + [0])
    trainer.lr_scheduler.step(50)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4 * 0.5**0.9)


def test_a_network_of_one_output(prepared):
    """Of two resolutions, as a plan may be changed to for small images: nnU-Net's weight of it is no number."""
    folder = prepared / "preprocessed" / "Dataset900_Balls"
    plans = json.loads((folder / f"{PLANS}.json").read_text())
    configuration, plans["plans_name"] = plans["configurations"]["3d_fullres"], "nnUNetTwoStagesPlans"
    configuration["patch_size"] = [8, 8, 8]
    configuration["architecture"]["arch_kwargs"] |= {
        "patch_size": [8, 8, 8],
        "num_stages": 2,
        "patch_embed_stride": 1,
        "merge_strides": [[2, 2, 2]],
        "depths": [1, 1],
        "window_sizes": [4, 4],
        "strides": [[1, 1, 1], [2, 2, 2]],
    }
    (folder / "nnUNetTwoStagesPlans.json").write_text(json.dumps(plans))
    trainer = get_trainer_from_args("900", "3d_fullres", 0, "nnUNetTrainerQTUNet", plans["plans_name"], device=CPU)
    trainer.initialize()
    assert trainer.loss.weight_factors == (1.0,)
