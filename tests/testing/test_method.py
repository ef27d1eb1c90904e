"""Every pretraining method keeps the contract, and a method that breaks it is found out."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_transformers import testing
from nnunet_transformers.pretraining.encoders.masked import random_mask
from nnunet_transformers.pretraining.encoders.text import load_tokenizer, tokenize
from nnunet_transformers.pretraining.methods.alice import Alice
from nnunet_transformers.pretraining.methods.anatomical_embedding import AnatomyMatching
from nnunet_transformers.pretraining.methods.mae import MAE
from nnunet_transformers.pretraining.methods.mgca import MGCA
from nnunet_transformers.pretraining.methods.qt_ssl import QTSSL
from nnunet_transformers.pretraining.methods.unimiss import UniMiSS
from nnunet_transformers.pretraining.methods.volume_fusion import VolumeFusion
from nnunet_transformers.testing.method import check_method, synthetic_index
from tests.architectures.test_stock_unet import architecture

SIZE = (16, 16, 16)
NETWORK = {
    "network": "qt_unet_tiny",
    "patch_size": SIZE,
    "network_overrides": {"patch_embed_stride": 2, "num_stages": 2, "window_sizes": 4},
}


def masked_views(batch=2):
    return [
        (torch.randn(batch, 1, *SIZE), torch.randn(batch, 1, *SIZE), torch.arange(batch) + first) for first in (0, 1)
    ]


def matched_views(batch=2, grid=(4, 4, 4)):
    given = {"is_matched": torch.ones(batch, dtype=torch.bool), "redraws": torch.zeros(batch)}
    for side in ("query", "key"):
        given |= {f"{side}_{kind}": torch.randn(batch, 1, *SIZE) for kind in ("masked", "intact")}
        masks = [torch.from_numpy(random_mask(grid, 0.75, np.random.default_rng(i))) for i in range(batch)]
        given[f"{side}_mask"] = torch.stack(masks)
    return given


def placed_views(batch=2):
    frames = torch.tensor([[[0.0, 0, 0], [1, 1, 1]], [[2.0, 1, 0], [1, 1, 1]]])
    return [(torch.randn(batch, 1, *SIZE), frame.expand(batch, 2, 3), torch.arange(batch)) for frame in frames]


def test_qt_ssl():
    check_method(QTSSL, [masked_views()], NETWORK)


def test_alice():
    arguments = {**NETWORK, "decoder_heads": 4, "decoder_depth": 1, "hidden_dim": 32}
    check_method(Alice, [matched_views()], arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        NETWORK,
        {"network": "resnet18_unet", "patch_size": (64, 64), "optimizer": "sgd"},
        {
            "network": "ResidualEncoderUNet",
            "patch_size": SIZE,
            "network_overrides": {"architecture": architecture("ResidualEncoderUNet")},
            "mask_size": 4,
        },
    ],
    ids=["mask tokens", "sparse", "sparse, of nnU-Net"],
)
def test_mae(arguments):
    size = arguments["patch_size"]
    masks = [torch.from_numpy(random_mask((4,) * len(size), 0.75, np.random.default_rng(i))) for i in range(2)]
    batch = torch.randn(2, 1, *size), torch.stack(masks)
    check_method(MAE, [batch], {**arguments, "warmup_epochs": 0}, index=synthetic_index(len(size)), steps=2)


def test_volume_fusion():
    batch = torch.randn(2, 1, *SIZE), torch.randint(5, (2, *SIZE))
    check_method(VolumeFusion, [batch], {**NETWORK, "warmup_epochs": 0}, steps=2)


def test_unimiss():
    sizes = {"patch_size_2d": (64, 64), "patch_size_3d": (16, 32, 64)}
    overrides = {"embed_dims": (8, 16, 24, 32)}
    batches = [[torch.randn(2, 3, 64, 64) for _ in range(2)], [torch.randn(2, 1, 16, 32, 64) for _ in range(2)]]
    # the last layer of the head, frozen in the first epoch, gets gradients there too, which are then dropped
    check_method(UniMiSS, batches, {**sizes, "network_overrides": overrides, "output_dim": 8}, steps=2)


def test_mgca(bert):
    reports = ("small left nodule", "there is a large cavity in the right lung", "normal chest")
    batch = {"image": torch.rand(3, 1, 32, 32), **tokenize(load_tokenizer(bert), reports, 24)}
    arguments = {
        "text_encoder": bert,
        "network": "vit_tiny_patch16_224",
        "patch_size": (32, 32),
        "input_channels": 1,
        "num_text_layers": 2,
        "num_prototypes": 8,
    }
    check_method(MGCA, [batch], arguments, 3, synthetic_index(2), {"max_length": 24}, steps=2)


def test_anatomical_embedding():
    check_method(
        AnatomyMatching, [placed_views()], {"channels": (4, 6), "dim": 8, "points": 20, "negative_radius": 4.0}
    )


def test_example_of_the_documentation(examples):
    check_method(import_module("vicreg").VICReg, [masked_views()], {**NETWORK, "hidden_dim": 32})


class TestBrokenMethods:
    """What the check is for."""

    def check(self, method_class, match, **arguments):
        with pytest.raises(AssertionError, match=match):
            check_method(method_class, [masked_views()], {**NETWORK, **arguments}, steps=2)

    def test_parameter_without_a_gradient(self):
        class Unused(QTSSL):
            def __init__(self, **arguments):
                super().__init__(**arguments)
                self.unused = torch.nn.Linear(2, 2)

        self.check(Unused, "no gradient.*unused.weight", heads=["rotation"])

    def test_loss_that_is_not_finite(self):
        class Diverging(QTSSL):
            def losses(self, batch):
                terms, features = super().losses(batch)
                return {name: value / 0 for name, value in terms.items()}, features

        self.check(Diverging, "finite scalar", heads=["rotation"])

    def test_target_that_stands_still(self):
        class Still(QTSSL):
            def optimizer_step(self, epoch, batch_index, optimizer, closure=None):
                optimizer.step(closure=closure)

        self.check(Still, "never moved", heads=["byol"])

    def test_target_of_which_a_part_does_not_follow(self):
        class Partial(QTSSL):
            def optimizer_step(self, *args, **kwargs):
                kept = [parameter.clone() for parameter in self.target["projection"].parameters()]
                super().optimizer_step(*args, **kwargs)
                with torch.no_grad():
                    for parameter, value in zip(self.target["projection"].parameters(), kept, strict=True):
                        parameter.copy_(value)

        self.check(Partial, "does not follow", heads=["byol"], tau=0.5, lr=1e-2, warmup_epochs=0)

    def test_trained_target(self):
        class Trained(QTSSL):
            def __init__(self, **arguments):
                super().__init__(**arguments)
                self.target.requires_grad_(True)

        self.check(Trained, "target", heads=["byol"])

    def test_other_random_numbers(self):
        class Unseeded(QTSSL):
            def losses(self, batch):
                terms, features = super().losses(batch)
                noise = float(np.random.default_rng().uniform())
                return {name: noise * value for name, value in terms.items()}, features

        self.check(Unseeded, "the same seed", heads=["rotation"], lr=1e-2, warmup_epochs=0)

    def test_checkpoint_of_another_network(self):
        class Another(QTSSL):
            def checkpoints(self, index, recipe):
                (name, checkpoint), *_ = super().checkpoints(index, recipe).items()
                checkpoint.weights.pop(next(n for n in checkpoint.weights if n.startswith("encoder.")))
                return {name: checkpoint}

        self.check(Another, "fills .* of encoder", heads=["rotation"])


def test_checks_hold_without_assert_statements():
    """Which `python -O` and PYTHONOPTIMIZE remove."""
    files = [*Path(testing.__file__).parent.glob("*.py")]
    asserts = [
        file.name for file in files for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Assert)
    ]
    assert files and not asserts
