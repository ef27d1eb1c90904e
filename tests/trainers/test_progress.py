"""What a training says of itself within a long epoch."""

from __future__ import annotations

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_transformers.evaluation.report.training_log import MEMORY, VERSIONS, read_curves
from nnunet_transformers.trainers import progress
from nnunet_transformers.trainers.progress import ShowsProgress


class Trainer(ShowsProgress):
    """One whose steps take ``seconds`` of a clock, and which only notes what it logs."""

    def __init__(self, seconds):
        self.seconds, self.clock, self.lines = seconds, 0.0, []
        self.local_rank, self.current_epoch, self.num_epochs, self.num_iterations_per_epoch = 0, 1, 3, 10

    def print_to_log_file(self, *texts, **_):
        self.lines += texts


@pytest.fixture
def trainer(monkeypatch):
    def step(self, batch):
        self.clock += self.seconds
        return {"loss": 0.0}

    for name in ("on_train_start", "on_train_epoch_start"):
        monkeypatch.setattr(nnUNetTrainer, name, lambda self: None)
    monkeypatch.setattr(nnUNetTrainer, "train_step", step)

    def make(seconds):
        made = Trainer(seconds)
        monkeypatch.setattr(progress.time, "monotonic", lambda: made.clock)
        return made

    return make


def test_a_long_epoch(trainer):
    """Every two minutes: of steps of 90 s after the second, fourth ..."""
    long = trainer(90)
    assert long.train_step({}) == {"loss": 0.0} and not long.lines  # outside of an epoch
    long.on_train_epoch_start()
    for _ in range(10):
        long.train_step({})
    assert len(long.lines) == 5
    # 8 of 10 steps in 12 minutes; 2 steps here and 10 of the third epoch are left
    expected = "Epoch 1: 8 of 10 iterations in 12.0 min, about 3.0 min left in this epoch, 18.0 min in all 3 epochs"
    assert long.lines[3].startswith(expected)


def test_a_first_step_that_compiles(trainer):
    """It says nothing about the others."""
    compiling = trainer(600)
    compiling.on_train_epoch_start()
    compiling.train_step({})
    compiling.seconds = 60
    compiling.train_step({})
    compiling.train_step({})
    assert compiling.lines[0] == "Epoch 1: 1 of 10 iterations in 10.0 min"
    # seven steps here and ten of the third epoch are left
    assert compiling.lines[1].startswith(
        "Epoch 1: 3 of 10 iterations in 12.0 min, about 7.0 min left in this epoch, 17.0 min in all 3 epochs"
    )


def test_a_short_epoch(trainer):
    short = trainer(11)
    short.on_train_epoch_start()
    for _ in range(10):
        short.train_step({})
    assert not short.lines


def test_the_report_reads_it(trainer, tmp_path):
    started = trainer(1)
    started.on_train_start()
    log = tmp_path / "training_log_1.txt"
    lines = ("10:00:00.1: " + started.lines[0], "11:00:00.1: Epoch time: 9 s", f"12:00:00.1: {MEMORY}1.50 GB")
    log.write_text("".join(f"2026-11-26 {line} \n" for line in lines))
    curves = read_curves(tmp_path)
    assert curves.versions.startswith("nnunet-transformers ") and "PyTorch" in curves.versions
    assert (curves.memory, curves.first, curves.last) == ("1.50 GB", "2026-11-26 10:00", "2026-11-26 11:00")
    assert started.lines[0].startswith(VERSIONS)
