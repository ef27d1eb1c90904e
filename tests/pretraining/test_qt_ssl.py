"""QT-UNet's SSL: views, networks, losses, optimiser steps, whole runs."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from lightning import Trainer
from timm.layers import DropPath

from nnunet_transformers.pretraining.data import MaskedViewData
from nnunet_transformers.pretraining.data.prepare import prepare
from nnunet_transformers.pretraining.data.transforms import cut_out, rotate, rotations_of
from nnunet_transformers.pretraining.fit import fit, list_recipes
from nnunet_transformers.pretraining.methods.qt_ssl import QTSSL
from nnunet_transformers.runs.callbacks import CheckpointWriter, CollapseMonitor, SeedEveryBatch, feature_spread
from nnunet_transformers.testing.network import shallow
from nnunet_transformers.weights import load_encoder
from tests.architectures.test_networks import SMALLEST, forms
from tests.conftest import write_dataset

from .recipes import SMALL_QT_UNET, short_run
from .steps import (
    check_logs_means_of_processes,
    check_target_follows,
    cosine,
    cosines,
    cross_entropy,
    separate,
    train,
    warmup_cosine,
)

SIZE = (16, 16, 16)
SMALL = {"patch_embed_stride": 2, "num_stages": 2, "window_sizes": 4}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    prepare(write_dataset(folder / "raw", cases=4), folder / "prepared", patch_size=SIZE)
    return folder / "prepared"


def method(**kwargs):
    torch.manual_seed(0)
    return QTSSL("qt_unet_tiny", SIZE, network_overrides=SMALL, lr=1e-3, warmup_epochs=1, **kwargs)


def trainer(folder, epochs=2, **kwargs):
    callbacks = [SeedEveryBatch(), CheckpointWriter(), *kwargs.pop("callbacks", [])]
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        reload_dataloaders_every_n_epochs=1,
        callbacks=callbacks,
        **kwargs,
    )


def data(prepared, **kwargs):
    return MaskedViewData(str(prepared), SIZE, **{"batch_size": 2, "samples_per_epoch": 4, "num_workers": 0, **kwargs})


class TestViews:
    def test_rotation_and_its_inverse(self):
        image = torch.randn(1, 3, 5, 5)
        assert torch.equal(rotate(image, 0), image)
        assert torch.equal(rotate(image, 1)[0, :, 0], image[0, :, :, -1])
        for turns in range(4):
            assert torch.equal(rotate(rotate(image, turns), 4 - turns), image)

    def test_only_rotations_that_keep_the_shape(self):
        assert rotations_of((8, 16, 16)) == [0, 1, 2, 3]
        assert rotations_of((16, 16, 8)) == [0, 2]

    def test_boxes(self):
        for _ in range(10):
            image = torch.randn(2, 24, 24, 24)
            before = image.clone()
            masked = cut_out(image)
            assert torch.equal(image, before)
            share = (masked != image).float().mean()
            assert (1 / 3) ** 3 * 0.9 < share < 3 * (2 / 3) ** 3
            assert image.min() <= masked.min()
            assert masked.max() <= image.max()

    @pytest.mark.parametrize("edge,share", [((4, 4), (4 / 24) ** 3), ((40, 64), 1.0)])
    def test_edges_in_voxels(self, edge, share):
        """They do not follow the image, and end at its borders."""
        image = torch.randn(1, 24, 24, 24)
        masked = cut_out(image, boxes=(1, 1), edge=edge)
        assert (masked != image).float().mean() == pytest.approx(share, abs=1e-3)


def views(patch_size, batch=2):
    """Make a batch of the data module's layout."""
    image, turns = torch.randn(batch, 1, *patch_size), torch.arange(batch)
    return [(image, image, turns), (image + 1, image, turns)]


@pytest.mark.parametrize("name,patch_size", forms(SMALLEST))
def test_any_network(name, patch_size):
    module = QTSSL(name, patch_size, network_overrides=shallow(name, len(patch_size)))
    module.log_dict = lambda *args, **kwargs: None
    loss = module.training_step(views(patch_size), 0)
    loss.backward()
    assert [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad is None for p in module.target.parameters())


TARGETS = {"target.encoder.": "encoder.", "target.projection.": "projection."}


def different_views(channels=2, batch=3):
    """Make two views with different images, targets and rotations."""
    return [
        (torch.randn(batch, channels, *SIZE), torch.randn(batch, channels, *SIZE), torch.tensor(turns))
        for turns in ([0, 1, 2], [3, 1, 0])
    ]


def still(**kwargs):
    """Build the method without drop path, with a perturbed target network."""
    torch.manual_seed(0)
    module = QTSSL("qt_unet_tiny", SIZE, 2, network_overrides={**SMALL, "drop_path_rate": 0}, **kwargs).double()
    module.log_dict = lambda values, **kwargs: setattr(module, "logged", values)
    if "byol" in module.hparams.heads:
        separate(module.target)
    return module


@pytest.mark.parametrize("settings,weight", [({}, 2), ({"byol_weight": 0.5}, 0.5)])
def test_formula(settings, weight):
    """Thesis, section 3.3.12: the losses of both views and BYOL's -2 cos of both directions, halved."""
    module = still(**settings)
    batch = [(view.double(), target.double(), turns) for view, target, turns in different_views()]
    loss = module.training_step(batch, 0)
    reconstruction = rotation = byol = 0.0
    for (view, target, turns), (other, _, _) in (batch, batch[::-1]):
        features = module.encoder.encode(view)[-1]
        pooled = features.mean((2, 3, 4))
        reconstruction += (module.reconstruction(features) - target).abs().mean() / 2
        rotation += cross_entropy(module.rotation(pooled), turns) / 2
        predicted = module.prediction(module.projection(pooled))
        projected = module.target["projection"](module.target["encoder"].encode(other)[-1].mean((2, 3, 4)))
        byol -= weight * cosines(predicted, projected).mean() / 2
    for name, value in {"reconstruction": reconstruction, "rotation": rotation, "byol": byol}.items():
        torch.testing.assert_close(module.logged[name], value)
    torch.testing.assert_close(loss, reconstruction + rotation + byol)
    assert module.logged["feature_spread"] > 0.1  # or no view would differ from the other
    loss.backward()
    assert all(p.grad is None for p in module.target.parameters())


def test_target_is_a_frozen_copy_without_drop_path():
    module = QTSSL("qt_unet_tiny", SIZE, network_overrides={**SMALL, "drop_path_rate": 0.5})
    rates = {
        part: {m.drop_prob for m in network.modules() if isinstance(m, DropPath)}
        for part, network in {"online": module.encoder, "target": module.target["encoder"]}.items()
    }
    assert max(rates["online"]) == 0.5
    assert rates["target"] == {0.0}
    assert not any(parameter.requires_grad for parameter in module.target.parameters())
    for name, value in module.target["encoder"].state_dict().items():
        assert torch.equal(value, module.encoder.state_dict()[name])


class TestSteps:
    def test_target_follows_once_a_step(self):
        module = still(lr=1e-2, warmup_epochs=0, tau=0.9)
        recorder = train(module, [different_views() for _ in range(3)])
        check_target_follows(recorder, TARGETS, [cosine(step, 3, 0.9, 1.0) for step in range(3)])

    def test_target_waits_for_accumulated_batches(self):
        module = still(lr=1e-2, warmup_epochs=0, tau=0.9)
        recorder = train(module, [different_views() for _ in range(4)], accumulate_grad_batches=2)
        recorder.weights = recorder.weights[::2]
        check_target_follows(recorder, TARGETS, [0.9, 1.0])

    def test_rate_and_decay(self):
        module = still(heads=["rotation"], lr=1e-2, warmup_epochs=1, weight_decay=0.5)
        recorder = train(module, [different_views() for _ in range(2)], epochs=3)
        assert recorder.settings("lr") == pytest.approx(warmup_cosine(6, 2, 1e-2))
        # Adam's first step; its L2 penalty is part of the gradient, for weights and biases
        before, after = recorder.weights[:2]
        for name, gradient in recorder.gradients[0].items():
            gradient = gradient + 0.5 * before[name]
            expected = before[name] - 1e-2 / 2 * gradient / (gradient.abs() + 1e-8)
            torch.testing.assert_close(after[name], expected)


def test_logs_means_of_processes():
    check_logs_means_of_processes(still, different_views())


class TestRuns:
    def test_writes_an_encoder(self, prepared, tmp_path):
        module = method()
        name = "encoder.encoder.norm.weight"
        module.target.get_parameter(name).data.fill_(0.5)  # the encoder's value is 1, so a move is visible
        trainer(tmp_path).fit(module, data(prepared))
        checkpoint = load_encoder(tmp_path / "encoder.pth")
        assert (checkpoint.method, checkpoint.num_cases, checkpoint.recipe["steps"]) == ("QTSSL", 4, 4)
        weights = checkpoint.weights["encoder.norm.weight"]
        assert torch.equal(weights, module.encoder.encoder.norm.weight)
        # four small steps towards the encoder
        moved = module.target.get_parameter(name)
        assert ((moved > 0.5) & (moved < 0.5 + 4 * 0.004 * 0.6)).all()

    def test_resumed_run_equals_uninterrupted_one(self, prepared, tmp_path):
        whole = method()
        trainer(tmp_path / "whole", epochs=3).fit(whole, data(prepared))
        half = method()
        first = trainer(tmp_path / "half", epochs=3, callbacks=[_StopAfter(1)])
        first.fit(half, data(prepared))
        first.save_checkpoint(tmp_path / "state.ckpt")
        resumed = QTSSL("qt_unet_tiny", SIZE, network_overrides=SMALL, lr=1e-3, warmup_epochs=1)
        trainer(tmp_path / "half", epochs=3).fit(resumed, data(prepared), ckpt_path=tmp_path / "state.ckpt")
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0, msg=name)

    @pytest.mark.parametrize("head", ["reconstruction", "rotation", "byol"])
    def test_one_head_alone(self, prepared, tmp_path, head):
        module = method(heads=[head])
        trainer(tmp_path, epochs=1).fit(module, data(prepared))
        others = {"reconstruction", "rotation", "projection"} - {"projection" if head == "byol" else head}
        assert not any(hasattr(module, other) for other in others)

    def test_collapse_stops_the_run(self, prepared, tmp_path):
        module = method()
        monitor = CollapseMonitor(threshold=10.0, patience=2)
        with pytest.raises(RuntimeError, match=r"collapsed.*Lower the learning rate"):
            trainer(tmp_path, epochs=5, callbacks=[monitor]).fit(module, data(prepared))

    def test_spread(self):
        assert feature_spread(torch.ones(8, 16)) == pytest.approx(0, abs=1e-6)
        assert feature_spread(torch.randn(4096, 16)) == pytest.approx(1, abs=0.05)

    def test_held_out_images_are_validated(self, prepared, tmp_path):
        """As soon as there are some, and the file counts the others."""
        settings = {**SMALL_QT_UNET, "data.init_args.val_images": 0.5}
        done = fit("qt_ssl_in_task", short_run(prepared, tmp_path, settings))
        assert done.callback_metrics["val_loss"] > 0
        assert load_encoder(tmp_path / "encoder.pth").num_cases == 2

    def test_mistakes(self, prepared, tmp_path):
        with pytest.raises(ValueError, match="heads must be some of"):
            method(heads=["jigsaw"])
        with pytest.raises(ValueError, match="batch_size must be at least 2"):
            trainer(tmp_path, epochs=1).fit(method(), data(prepared, batch_size=1))


class _StopAfter(CheckpointWriter):
    def __init__(self, epochs):
        super().__init__()
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


class TestRecipes:
    @pytest.mark.parametrize("recipe", [name for name in list_recipes() if name.startswith("qt_ssl")])
    def test_runs_at_a_small_size(self, recipe, prepared, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        settings = {
            **SMALL_QT_UNET,
            "data.init_args.samples_per_epoch": 2,
            "model.init_args.input_channels": 1,
            "trainer.logger": "true",
        }
        fit(recipe, short_run(prepared, tmp_path, settings))
        assert load_encoder(tmp_path / "encoder.pth").name == "qt_unet_tiny"
        if recipe == "qt_ssl_in_task":
            monkeypatch.setattr("nnunet_transformers.pretraining.fit.CollapseMonitor", partial(CollapseMonitor, 10.0))
            with pytest.raises(
                RuntimeError, match=r"after 1 steps without encoder.pth: the features .* last 1 batches"
            ):
                fit(recipe, short_run(prepared, tmp_path / "short", settings))
