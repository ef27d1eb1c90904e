"""nnU-Net's benchmark of a training with our trainers, as its command runs them, on CPU, in 2D, which is quicker."""

from __future__ import annotations

import json

import pytest
from nnunetv2.run.run_training import get_trainer_from_args

from nnunet_transformers.benchmarking.environment import processor_name
from nnunet_transformers.trainers.trainer import TransformerTrainer
from tests.trainers.conftest import CPU, PLANS, train

TRAINER = "nnUNetTrainerQTUNetBenchmark_5epochs"
# those of nnU-Net's nnUNetTrainerBenchmark_5epochs
KEYS = {"torch_version", "cudnn_version", "gpu_name", "fastest_epoch", "num_gpus", "hostname"}


@pytest.fixture
def folder(prepared, monkeypatch):
    """Where results go; an epoch is one iteration."""
    monkeypatch.setattr(TransformerTrainer, "default_iterations", 1)
    return prepared / "results" / "Dataset900_Balls"


def result(folder, trainer):
    fold = folder / f"{trainer}__{PLANS}__2d" / "fold_0"
    assert list(fold.glob("*.pth")) == []
    assert not (fold / "validation").exists()
    (entry,) = json.loads((fold / "benchmark_result.json").read_text()).items()
    (fold / "benchmark_result.json").unlink()
    return entry


def test_five_epochs_and_no_data_loading(folder):
    for trainer in (TRAINER, f"{TRAINER}_noDataLoading"):
        train("2d", trainer)
        key, content = result(folder, trainer)
        assert set(content) == KEYS
        assert content["gpu_name"] == processor_name()
        assert processor_name().replace(" ", "") in key
        assert 0 < content["fastest_epoch"] < 60


def test_a_crash_is_the_result(folder, monkeypatch):
    def out_of_memory(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(TransformerTrainer, "train_step", out_of_memory)
    train("2d", TRAINER)
    assert "ended due to an error" in result(folder, TRAINER)[1]["fastest_epoch"]


def test_other_folds(folder):
    with pytest.raises(ValueError, match="fold 1: a benchmark runs on fold 0 only"):
        get_trainer_from_args("900", "3d_fullres", 1, TRAINER, PLANS, device=CPU)
