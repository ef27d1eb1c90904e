"""ResUnet against UniMiSS's figure 2: a ResNet-50, four sums with its maps, an up-sampling of 32 channels."""

from __future__ import annotations

import pytest
import timm
import torch

from nnunet_transformers.architectures import create_network


@pytest.mark.parametrize("patch_size", [(64, 96), (32, 64, 32)], ids=["2d", "3d"])
def test_outputs_and_gradients(patch_size):
    small = {"widths": (8, 16, 32, 64), "depths": (2, 1, 1, 1)}
    network = create_network("resunet_50", 2, 3, patch_size, deep_supervision=True, **small)
    outputs = network(torch.randn(2, 2, *patch_size))
    sum(output.square().mean() for output in outputs).backward()
    assert all(p.grad is not None for p in network.parameters())
    resolution, expected = list(patch_size), []
    for stride in network.strides[:-1]:
        resolution = [n // s for n, s in zip(resolution, stride, strict=True)]
        expected.append((2, 3, *resolution))
    assert [tuple(output.shape) for output in outputs] == expected
    assert network.strides[1] == ([2, 2] if len(patch_size) == 2 else [1, 2, 2])
    assert [m.shape[1] for m in network.encode(torch.randn(2, 2, *patch_size))] == [32, 32, 64, 128, 256]
    norms = {type(m) for m in network.modules() if "Norm" in type(m).__name__}
    assert norms == {torch.nn.BatchNorm2d if len(patch_size) == 2 else torch.nn.InstanceNorm3d}


def test_encoder_is_a_resnet_50():
    with torch.device("meta"):
        stages = create_network("resunet_50", 3, 2, (64, 64)).encoder.stages
        theirs = timm.create_model("resnet50")
    own = [sum(p.numel() for p in stage.parameters()) for stage in stages]
    expected = [sum(p.numel() for p in theirs.get_submodule(f"layer{i}").parameters()) for i in (1, 2, 3, 4)]
    # the first block has 32 channels of the stem's instead of 64
    expected[0] -= 32 * (64 + 256)
    assert own == expected
