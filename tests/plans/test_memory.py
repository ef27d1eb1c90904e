"""The memory estimate against what training really keeps."""

from __future__ import annotations

import torch
from torch import nn

from nnunet_transformers.architectures import create_network
from nnunet_transformers.plans.memory import training_step_bytes

PATCH = (32, 32, 32)


def build():
    return create_network("qt_unet_tiny", 1, 3, PATCH, deep_supervision=True, drop_path_rate=0.0)


def test_linear_layers_can_be_counted_by_hand():
    class Pointwise(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv3d(1, 2, 1)

        def forward(self, x):
            return self.conv(x)

    fixed, peak = training_step_bytes(Pointwise, 1, (16, 16, 16), mixed_precision=False)
    voxels = 16**3
    assert fixed == 16 * 4
    # logits, their softmax and log-softmax at least, a few copies more at most
    assert 4 * voxels * 2 * 3 <= peak <= 4 * voxels * 2 * 10


def test_grows_with_the_batch_and_shrinks_with_precision():
    fixed, one = training_step_bytes(build, 1, PATCH)
    assert training_step_bytes(build, 1, PATCH)[1] == one
    twice, two = training_step_bytes(build, 1, PATCH, batch_size=2)
    assert fixed == twice
    assert 1.6 * one < two < 2.1 * one
    assert training_step_bytes(build, 1, PATCH, mixed_precision=False)[1] > one


def test_counts_at_least_what_backward_keeps():
    network, image = build().train(), torch.randn(1, 1, *PATCH)
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = network(image)
    saved = sum(kept.values())
    _, peak = training_step_bytes(build, 1, PATCH, mixed_precision=False)
    assert outputs[0].shape[2:] == PATCH
    assert saved * 0.9 < peak < 3 * saved
