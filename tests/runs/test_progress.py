"""Lines of a run's epochs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from nnunet_transformers.runs import progress
from nnunet_transformers.runs.progress import EpochLines, batches_line, epoch_line, epochs_of, values_of


def test_line():
    assert epoch_line(50, 50, {"loss": 0.5, "spread": 1.0}, 3600, 3600) == (
        "epoch 50 of 50: loss 0.5, spread 1; 1.0 h, 0 s left"
    )
    assert epoch_line(2, None, {"loss": 0.5}, 1.0, 1.0) == "epoch 2: loss 0.5; 1 s"


def test_line_within_an_epoch():
    assert batches_line(1, 5, 20, 60.0) == "epoch 1: 5 of 20 batches in 1.0 min, about 3.0 min left in this epoch"
    assert batches_line(1, 5, float("inf"), 60.0) == "epoch 1: 5 batches in 1.0 min"


@pytest.mark.parametrize(("bar", "expected"), [(None, [2, 4]), ("bar", [])])
def test_a_long_epoch(monkeypatch, capsys, bar, expected):
    """Batches of 70 s have a line every two minutes, unless a progress bar is drawn."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock.now)
    trainer = SimpleNamespace(
        num_training_batches=5,
        accumulate_grad_batches=1,
        log_every_n_steps=50,
        current_epoch=0,
        progress_bar_callback=bar,
        is_global_zero=True,
    )
    lines = EpochLines()
    lines.on_train_epoch_start(trainer, None)
    for index in range(5):
        clock.now += 70
        lines.on_train_batch_end(trainer, None, None, None, index)
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(" batches")[0] for line in printed] == [f"epoch 1: {n} of 5" for n in expected]


def resumed(completed):
    """The trainer of a run that is resumed in its third epoch of five."""
    current = SimpleNamespace(completed=completed)
    return SimpleNamespace(
        num_training_batches=100,
        accumulate_grad_batches=1,
        log_every_n_steps=50,
        current_epoch=2,
        max_epochs=5,
        max_steps=-1,
        global_step=260,
        progress_bar_callback=None,
        is_global_zero=True,
        callback_metrics={},
        loggers=[],
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=current))),
    )


def test_a_run_resumed_within_an_epoch(monkeypatch, capsys):
    """Lightning starts no epoch then: 60 of 100 batches were done, 40 take 80 s, so that an epoch takes 200 s."""
    clock = SimpleNamespace(now=1e6)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock.now)
    trainer = resumed(completed=60)
    lines = EpochLines()
    lines.seconds_between_lines = 70
    lines.on_train_start(trainer, None)
    clock.now += 80
    lines.on_train_batch_end(trainer, None, None, None, 99)
    lines.on_train_epoch_end(trainer, None)
    # the next epoch was seen from its start
    lines.on_train_epoch_start(trainer, None)
    clock.now += 200
    lines.on_train_batch_end(trainer, None, None, None, 99)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 3: 100 of 100 batches, the last 40 in 1.3 min, about 0 s left in this epoch",
        "epoch 3 of 5: ; 1.3 min, 6.7 min left",
        "epoch 3: 100 of 100 batches in 3.3 min, about 0 s left in this epoch",
    ]


def test_a_run_resumed_at_the_end_of_an_epoch(monkeypatch, capsys):
    """Lightning's count is that of the finished epoch until the next one starts."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock.now)
    trainer = resumed(completed=100)
    lines = EpochLines()
    lines.on_train_start(trainer, None)
    lines.on_train_epoch_start(trainer, None)
    clock.now += 200
    lines.on_train_batch_end(trainer, None, None, None, 49)
    lines.on_train_epoch_end(trainer, None)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 3: 50 of 100 batches in 3.3 min, about 3.3 min left in this epoch",
        "epoch 3 of 5: ; 3.3 min, 6.7 min left",
    ]


def test_epochs_by_steps():
    """The smaller limit counts: 250 steps of ten an epoch are 25 epochs."""
    trainer = SimpleNamespace(max_epochs=100, max_steps=250, global_step=30, current_epoch=2)
    assert epochs_of(trainer) == 25
    trainer.max_steps = -1
    assert epochs_of(trainer) == 100
    trainer.max_epochs = -1
    assert epochs_of(trainer) is None


def test_values_of_an_epoch():
    assert values_of({"loss_step": 1.0, "loss_epoch": 2.0, "rate": 3.0}) == {"loss": 2.0, "rate": 3.0}


@pytest.mark.parametrize(("batches", "expected"), [(8, 2), (1, 1), (1000, 50), (float("inf"), 50)])
def test_a_short_epoch_has_metrics(batches, expected):
    """Of four batches a step; Lightning's default of every 50 steps would log none of a shorter epoch."""
    trainer = SimpleNamespace(
        num_training_batches=batches, accumulate_grad_batches=4, log_every_n_steps=50, current_epoch=0
    )
    EpochLines().on_train_epoch_start(trainer, None)
    assert trainer.log_every_n_steps == expected
