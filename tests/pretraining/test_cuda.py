"""A step of each pretraining method on a GPU of fake tensors: one device, and the host waits at known places only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightly.models.utils import update_momentum

from nnunet_transformers.pretraining.encoders.masked import random_mask
from nnunet_transformers.pretraining.encoders.text import load_tokenizer, tokenize
from nnunet_transformers.pretraining.methods.alice import Alice
from nnunet_transformers.pretraining.methods.anatomical_embedding import AnatomyMatching
from nnunet_transformers.pretraining.methods.mae import MAE
from nnunet_transformers.pretraining.methods.mgca import MGCA
from nnunet_transformers.pretraining.methods.qt_ssl import QTSSL
from nnunet_transformers.pretraining.methods.unimiss import UniMiSS
from nnunet_transformers.pretraining.methods.volume_fusion import VolumeFusion
from nnunet_transformers.runs.callbacks import feature_spread
from tests.fake_cuda import fake_cuda, requires_cuda_build
from tests.testing.test_method import NETWORK, SIZE, masked_views, matched_views, placed_views

# the cache of a bias identifies its table by the address of the data
pytestmark = [requires_cuda_build, pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")]


def masked(size, cells):
    masks = [torch.from_numpy(random_mask((cells,) * len(size), 0.75, np.random.default_rng(i))) for i in range(2)]
    return torch.randn(2, 1, *size), torch.stack(masks)


def step(module, batch):
    """Losses, backward pass and the target's step, by autocast in float16; returns where the host waits."""
    with fake_cuda() as device:
        module, batch = device.move(module), device.move(batch)
        with torch.autocast("cuda", torch.float16):
            losses, features = module.losses(batch)
            loss = module._with_sum(losses)["loss"]
            feature_spread(features)
        loss.backward()
        for name, network in (module.target or {}).items():
            update_momentum(module.get_submodule(name), network, 0.9)
        assert loss.isfinite().device.type == "cuda"
        assert any(p.grad is not None for p in module.parameters())
        return device.waits


UNIMISS = {"patch_size_2d": (64, 64), "patch_size_3d": (16, 32, 64), "output_dim": 8}
UNIMISS["network_overrides"] = {"embed_dims": (8, 16, 24, 32), "num_stages": 3}
SPARSE = {"network": "resnet18_unet", "patch_size": (64, 64), "optimizer": "sgd"}
PRIMUS = {"network": "primus_s", "patch_size": (16, 16, 16), "decoder_heads": 4}
POINTS = {"channels": (4, 6), "dim": 8, "points": 20, "negative_radius": 4.0}
ALICE = {**NETWORK, "decoder_heads": 4, "decoder_depth": 1, "hidden_dim": 32}


@pytest.mark.parametrize(
    "method_class,arguments,batch,waits",
    [
        (QTSSL, NETWORK, masked_views, []),
        (Alice, ALICE, matched_views, ["masked.py visible_cells", "alice.py _views"]),
        (MAE, NETWORK, lambda: masked(SIZE, 4), []),
        (MAE, SPARSE, lambda: masked((64, 64), 4), ["masked.py visible_cells"]),
        (MAE, PRIMUS, lambda: masked((16, 16, 16), 2), ["masked.py visible_cells"]),
        (VolumeFusion, NETWORK, lambda: (torch.randn(2, 1, *SIZE), torch.randint(5, (2, *SIZE))), []),
        (UniMiSS, UNIMISS, lambda: [torch.randn(2, 1, 16, 32, 64) for _ in range(2)], []),
        # the crops' size, the numbers of two volumes, which a real GPU sends at once, and both directions of each of
        # two pairs of crops
        (
            AnatomyMatching,
            POINTS,
            placed_views,
            [*["anatomical_embedding.py losses"] * 3, *["placed_crop.py shared_points"] * 4],
        ),
    ],
    ids=["qt-ssl", "alice", "mae", "mae-sparse", "mae-primus", "volume-fusion", "unimiss", "points"],
)
def test_step(method_class, arguments, batch, waits):
    assert step(method_class(**arguments), batch()) == waits


def test_step_of_reports(bert):
    batch = {"image": torch.rand(3, 1, 32, 32)}
    batch |= tokenize(load_tokenizer(bert), ("small left nodule", "there is a cavity", "normal chest"), 24)
    arguments = {"network": "vit_tiny_patch16_224", "patch_size": (32, 32), "input_channels": 1}
    module = MGCA(text_encoder=bert, **arguments, num_text_layers=2, num_prototypes=8)
    # one copy of two numbers, which a fake tensor reads one after the other
    assert step(module, batch) == ["text.py forward"] * 2 + ["heads.py apply_to_tokens"]
