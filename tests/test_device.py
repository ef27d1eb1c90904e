"""One rule for the device of every command."""

from __future__ import annotations

import pytest
import torch

from nnunet_transformers._device import find_device, no_gpu


@pytest.mark.parametrize("is_there", [True, False])
def test_auto_is_the_gpu_if_there_is_one(is_there, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_there)
    device = find_device("auto")
    assert device.type == ("cuda" if is_there else "cpu")
    # a line says that it is the CPU, unless that was asked for
    assert no_gpu("auto", device) == ("" if is_there else "no GPU: this runs on the CPU")
    assert no_gpu("cpu", find_device("cpu")) == ""


def test_what_is_asked_for_is_not_replaced(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, present in (
        ("cuda:2", "cuda:0 to cuda:1"),
        ("cuda:", "cuda:0 to"),
        ("cpu:1", "cpu:0"),
        ("cpu:", "cpu:0"),
    ):
        with pytest.raises(ValueError, match=f"--device {name} is not available; this machine has {present}"):
            find_device(name)
    assert find_device("cuda:1") == torch.device("cuda", 1) and find_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^-device cuda:1 is not available; this machine has cpu"):
        find_device("cuda:1", "-device")
    with pytest.raises(ValueError, match="gpu is not available"):
        find_device("gpu")
