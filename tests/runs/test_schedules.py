"""Schedules of runs."""

from __future__ import annotations

import pytest
import torch

from nnunet_transformers.runs import schedules
from nnunet_transformers.runs.schedules import CosineWarmup


def schedule(steps: int, state: dict | None = None) -> CosineWarmup:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    made = CosineWarmup(optimizer, 2, steps, end_value=0.1)
    if state is not None:
        made.load_state_dict(state)
    return made


def rates(made: CosineWarmup, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        made.optimizer.step()
        made.step()
        found += made.get_last_lr()
    return found


@pytest.mark.parametrize("length", [10, 20])
def test_a_resumed_run_follows_the_schedule_of_its_length(length):
    before = schedule(10)
    rates(before, 9)
    resumed = rates(schedule(length, before.state_dict()), 6 if length > 10 else 1)
    assert resumed == pytest.approx(rates(schedule(length), 9 + len(resumed))[9:])
    assert (resumed[0] > 0.5) == (length > 10)


def test_a_polynomial_schedule_follows_the_length_too(monkeypatch):
    """As that of the matcher's embedding, resumed with more epochs."""

    def made(steps: int, state: dict | None = None):
        monkeypatch.setattr(schedules, "_warmup_and_total", lambda trainer, epochs: (0, steps))
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = schedules.polynomial_with_warmup(optimizer, None, 0)
        if state is not None:
            schedule.load_state_dict(state)
        return schedule

    before = made(10)
    rates(before, 10)
    found = rates(made(20, before.state_dict()), 5)
    assert found == pytest.approx([(1 - step / 20) ** 0.9 for step in range(11, 16)])
