"""A trained fold validated without parts of its network, and plans that train without them."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
import torch
from nnunetv2.run.run_training import get_trainer_from_args

from nnunet_transformers.evaluation.ablation import ablate
from tests.conftest import light_nnunet
from tests.sharing.conftest import MODEL, environment, initialise, invoke
from tests.trainers.conftest import CPU, prepare, train


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    """Create nnU-Net's folders with a fold that was validated before any training step."""
    folders = tmp_path_factory.mktemp("validated")
    with light_nnunet(), pytest.MonkeyPatch.context() as monkeypatch:
        environment(folders, monkeypatch)
        prepare(folders, monkeypatch)
        model = initialise(folders)
        train(only_run_validation=True)
    return folders, model / "fold_0"


@pytest.fixture
def fold(validated, monkeypatch):
    environment(validated[0], monkeypatch)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    return validated[1]


def test_command(fold):
    result = invoke("ablate", fold, "--part", "attention", "--part", "skips")
    assert result.exit_code == 0, result.output
    assert "Dice without attention" in result.output and "Dice without skips" in result.output
    stored = json.loads((fold / "ablation/ablation.json").read_text())
    assert {*stored} == {"attention", "skips"} and {*stored["skips"]} == {"large", "small"}
    whole = json.loads((fold / "validation/summary.json").read_text())
    for part in stored:
        summary = json.loads((fold / "ablation" / part / "validation/summary.json").read_text())
        assert stored[part]["large"] == {
            "whole": whole["mean"]["1"]["Dice"],
            "without": summary["mean"]["1"]["Dice"],
        }
        # each is of the whole network, less one part
        assert summary["mean"]["1"]["FP"] != whole["mean"]["1"]["FP"]
    with pytest.raises(ValueError, match="QTUNet has no 'convolution', only attention, blocks, skips"):
        ablate(fold, ["convolution"])


def test_another_checkpoint(fold):
    """It is compared with itself: the fold's own validation is that of checkpoint_final."""
    content = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    for weight in content["network_weights"].values():
        if weight.shape == (3,):  # the heads' biases: the background everywhere
            weight += torch.tensor([99.0, 0.0, 0.0])
    torch.save(content, fold / "checkpoint_best.pth")
    (found,) = ablate(fold, ["skips"], checkpoint="checkpoint_best.pth")
    summaries = [json.loads((fold / f"{at}/validation/summary.json").read_text()) for at in (".", "ablation/whole")]
    final, best = (summary["mean"]["1"]["Dice"] for summary in summaries)
    assert found.whole[0] == best == 0 < final


def test_segmentations_for_the_next_stage_stay(fold):
    """Of a cascade; nnU-Net's validation writes them, and the next stage is trained on them."""
    plans = json.loads((fold.parent / "plans.json").read_text())
    with_stage = deepcopy(plans)
    with_stage["configurations"]["3d_fullres"]["next_stage"] = "3d_cascade_fullres"
    with_stage["configurations"]["3d_cascade_fullres"] = {
        "inherits_from": "3d_fullres",
        "previous_stage": "3d_fullres",
        "data_identifier": plans["configurations"]["3d_fullres"]["data_identifier"],
    }
    (fold.parent / "plans.json").write_text(json.dumps(with_stage))
    try:
        ablate(fold, ["attention"])
    finally:
        (fold.parent / "plans.json").write_text(json.dumps(plans))
    assert not (fold.parent / "predicted_next_stage").exists()


def test_errors(fold, tmp_path):
    with pytest.raises(ValueError, match="is no folder of a fold"):
        ablate(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"summary.json is missing: finish training"):
        ablate(fold.with_name("fold_1"))


def test_retraining(fold):
    result = invoke("ablate", fold, "--part", "attention", "--retrain")
    assert result.exit_code == 0, result.output
    trainer, plans, configuration = MODEL.split("__")
    assert (
        f"nnUNetv2_train Dataset900_Balls {configuration} 0 -p {plans}_without_attention -tr {trainer}" in result.output
    )
    without = get_trainer_from_args("900", configuration, 0, trainer, f"{plans}_without_attention", device=CPU)
    without.initialize()
    frozen = {name.rpartition(".attn.")[0] for name, p in without.network.named_parameters() if not p.requires_grad}
    assert len(frozen) > 4 and type(without.plain_network).__name__ == "QTUNet_attention"
    with pytest.raises(FileExistsError, match="replace it with --force"):
        invoke("ablate", fold, "--part", "attention", "--retrain")
    with pytest.raises(ValueError, match="cannot be built without 'convolution'"):
        invoke("ablate", fold, "--part", "convolution", "--retrain")
    with pytest.raises(ValueError, match="needs a --part"):
        invoke("ablate", fold, "--retrain")
