"""Rates of this machine."""

from __future__ import annotations

import pytest
import torch

from nnunet_transformers.benchmarking import machine
from nnunet_transformers.benchmarking.machine import Rates, fastest, measure_rates


def test_rates_of_this_machine(monkeypatch):
    monkeypatch.setattr(machine, "SECONDS", 0.1)
    rates = measure_rates("cpu")
    # between a small board and a large server
    assert 1e8 < rates.multiply_adds_per_second < 1e14
    assert 1e8 < rates.bytes_per_second < 1e13
    a = torch.randn(512, 512)
    assert fastest(lambda: a @ a, torch.device("cpu")) > 0.2 * rates.floor(512**3, 3 * a.nbytes)


def test_floor_is_the_longer_of_both():
    rates = Rates(multiply_adds_per_second=100, bytes_per_second=10)
    assert rates.floor(200, 1) == pytest.approx(2)
    assert rates.floor(1, 200) == pytest.approx(20)


def test_unknown_device():
    with pytest.raises(ValueError, match="rates of device meta cannot be measured; use cpu or cuda"):
        measure_rates("meta")
