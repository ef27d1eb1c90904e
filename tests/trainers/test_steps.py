"""Freezing, layer-wise rates and weight decay as a training step applies them."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_transformers.architectures.qt_unet import QTUNet
from nnunet_transformers.discovery import TRAINERS
from nnunet_transformers.plans.training import TrainingSettings
from nnunet_transformers.trainers.linear_probe import nnUNetTrainerLinearProbe
from nnunet_transformers.trainers.mit import nnUNetTrainerMiT
from nnunet_transformers.trainers.qt_unet import nnUNetTrainerQTUNet

from .conftest import CPU, PLANS

RATE = 1e-3


def initialised(configuration, trainer, plans, pretrained=False, fresh=(), **recipe):
    """A trainer at its first iteration, with a fixed rate unless the recipe has another schedule."""
    trainer = get_trainer_from_args("900", configuration, 0, trainer, plans, device=CPU)
    if pretrained:
        # the recipe of pretrained weights; on_train_start, which would load them, is not called
        trainer.configuration_manager.configuration["initialisation"] = {"checkpoint": "encoder.pth", "fresh": fresh}
    for name, value in {
        "initial_lr": RATE,
        "warmup_fraction": 0.0,
        "lr_power": 0.0,
        "num_epochs": 10,
        **recipe,
    }.items():
        assert hasattr(trainer, name)
        setattr(trainer, name, value)
    trainer.initialize()
    with torch.no_grad():
        for block in trainer.network.encoder.modules():
            if hasattr(block, "bn2"):
                block.bn2.weight.fill_(1.0)  # timm's zero leaves a block's other weights without a gradient
    return trainer


def step(trainer, epoch=0):
    """One iteration; returns how far each entry of the state dict moved."""
    network = trainer.plain_network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    trainer.current_epoch = epoch
    trainer.on_train_epoch_start()
    patch = network.patch_size
    target = [
        torch.randint(0, 3, (2, 1, *[round(n * s) for n, s in zip(patch, scale, strict=True)])).float()
        for scale in trainer._get_deep_supervision_scales()
    ]
    trainer.train_step({"data": torch.randn(2, 1, *patch), "target": target, "keys": ["a", "b"]})
    return {name: value.double() - before[name].double() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("layer_decay", [1.0, 0.75])
@pytest.mark.parametrize(
    "planner,trainer",
    [("nnUNetPlannerResNet50UNet", "nnUNetTrainerResNet50UNet"), ("nnUNetPlannerUNet2022T", "nnUNetTrainerUNet2022")],
)
def test_encoder_is_frozen_and_then_learns(plan_with, planner, trainer, layer_decay):
    recipe = {"layer_decay": layer_decay, "frozen_fraction": 0.2}
    trainer = initialised("2d", trainer, plan_with(planner), pretrained=True, **recipe)
    names = [name for name, _ in trainer.network.named_parameters()]
    of_encoder = [name for name in names if name.startswith(("stem.", "encoder."))]
    # nnU-Net leaves the coarsest output out of its loss
    unused = () if trainer.use_all_outputs else f"decoder.seg_layers.{len(trainer.network.decoder.seg_layers) - 1}."
    of_decoder = [name for name in names if name.startswith("decoder.") and not name.startswith(unused)]
    moved = step(trainer, epoch=1)
    # statistics of batch norms included
    assert [n for n, change in moved.items() if n.startswith(("stem.", "encoder.")) and change.any()] == []
    assert [n for n in of_decoder if not moved[n].any()] == []
    moved = step(trainer, epoch=2)
    assert [n for n in of_encoder if not moved[n].any()] == []
    statistics = [n for n in moved if n.startswith(("stem.", "encoder.")) and n.endswith("running_mean")]
    assert bool(statistics) == ("ResNet" in type(trainer).__name__)
    assert all(moved[n].any() for n in statistics)


@pytest.mark.parametrize("epoch", [1, 2])
def test_what_weights_leave_out_is_trained_like_the_decoder(plan_with, epoch):
    """Frozen and slowed are only the parameters that were loaded, here one convolution and batch norm of two."""
    recipe = {"layer_decay": 0.75, "frozen_fraction": 0.2, "weight_decay": 0.0}
    fresh = [f"encoder.layer1.0.{name}" for name in ("conv1.weight", "bn1.weight", "bn1.bias")]
    plans = plan_with("nnUNetPlannerResNet50UNet")
    trainer = initialised("2d", "nnUNetTrainerResNet50UNet", plans, pretrained=True, fresh=fresh, **recipe)
    moved = step(trainer, epoch)
    changes = moved["encoder.layer1.0.conv1.weight"].abs()
    assert changes[changes > 0].median().item() == pytest.approx(RATE, rel=0.01)
    assert moved["encoder.layer1.0.bn1.running_mean"].any()
    for name in ("encoder.layer1.0.conv2.weight", "encoder.layer1.0.bn2.running_mean", "stem.conv1.weight"):
        assert bool(moved[name].any()) is (epoch == 2), name


@pytest.mark.parametrize("name", [name for name in TRAINERS if name.endswith(("Paper", "Thesis"))])
def test_papers_train_at_one_rate(name):
    """Also where a plan names initial weights; MGCA freezes its ViT throughout."""
    trainer = getattr(import_module(TRAINERS[name]), name)
    assert (trainer.layer_decay, trainer.frozen_fraction) == (1.0, float(name == "nnUNetTrainerSETRPUPPaper"))


def test_random_encoder_is_not_frozen(plan_with):
    plans = plan_with("nnUNetPlannerResNet50UNet")
    trainer = initialised("2d", "nnUNetTrainerResNet50UNet", plans, frozen_fraction=0.5)
    moved = step(trainer)
    assert moved["stem.conv1.weight"].any()
    assert moved["stem.bn1.running_mean"].any()


def test_group_of_encoder_and_decoder_cannot_be_frozen(plan_with):
    plans = plan_with("nnUNetPlannerResNet50UNet")
    trainer = initialised("2d", "nnUNetTrainerResNet50UNet", plans, pretrained=True, frozen_fraction=0.5)
    trainer.optimizer = torch.optim.AdamW(trainer.network.parameters())
    with pytest.raises(
        RuntimeError, match=r"cannot freeze the encoder for the first 50% .* a group with parameters of"
    ):
        step(trainer)


def test_overflow_under_a_scaler_leaves_no_trace(plan_with):
    """The scaler skips the step of the weights; batch norm's statistics would be infinite from then on."""
    trainer = initialised("2d", "nnUNetTrainerResNet50UNet", plan_with("nnUNetPlannerResNet50UNet"))
    trainer.grad_scaler = torch.amp.GradScaler("cpu")
    hook = trainer.network.stem.register_forward_pre_hook(lambda _, images: images[0] * float("inf"))
    moved = step(trainer)
    assert [n for n, change in moved.items() if change.any() and not n.endswith("num_batches_tracked")] == []
    hook.remove()
    assert step(trainer)["stem.bn1.running_mean"].any()


@pytest.mark.parametrize("layer_decay", [1.0, 0.75])
def test_layer_wise_rates(plan_with, layer_decay):
    """The first step of AdamW moves each weight by about its rate."""
    recipe = {"layer_decay": layer_decay, "frozen_fraction": 0.0, "weight_decay": 0.0}
    plans = plan_with("nnUNetPlannerResNet50UNet")
    trainer = initialised("2d", "nnUNetTrainerResNet50UNet", plans, pretrained=True, **recipe)
    moved = step(trainer)
    parts = ["stem.", *(f"encoder.layer{stage}." for stage in (1, 2, 3, 4)), "decoder."]
    for layer, part in enumerate(parts):
        names = [n for n, _ in trainer.network.named_parameters() if n.startswith(part)]
        changes = torch.cat([moved[n].abs().flatten() for n in names])
        rate = RATE * layer_decay ** (len(parts) - 1 - layer)
        # on a map of one element only a kernel's centre gets a gradient
        assert changes[changes > 0].median().item() == pytest.approx(rate, rel=0.01), part


class ForeignQTUNet(QTUNet):
    """A network that states an embedding of its own, with a layer that states its own table."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.zeros(3, 3))

        def no_weight_decay(self):
            return {"table", "dist_token"}  # like some of timm's layers, also one that it does not have

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.encoder.pos_embed = nn.Parameter(torch.zeros(1, 9, 4))
        self.encoder.tokens = self.Tokens()

    def no_weight_decay(self):
        return super().no_weight_decay() | {"encoder.pos_embed"}


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("foreign", [False, True])
def test_tables_do_not_decay(prepared, monkeypatch, pretrained, foreign):
    if foreign:
        monkeypatch.setattr("nnunet_transformers.architectures.qt_unet.QTUNet", ForeignQTUNet)
        monkeypatch.setattr(nnUNetTrainerQTUNet, "network_class", ForeignQTUNet)
    recipe = {"weight_decay": 100.0, "frozen_fraction": 0.0, "layer_decay": 1.0}
    trainer = initialised("3d_fullres", "nnUNetTrainerQTUNet", PLANS, pretrained, **recipe)
    network = trainer.network
    assert type(network).__name__ == ("ForeignQTUNet" if foreign else "QTUNet")
    tables = network.no_weight_decay()
    assert ({"encoder.pos_embed", "encoder.tokens.table"} <= tables) == foreign
    with torch.no_grad():
        for name in tables:
            network.get_parameter(name).fill_(1.0)
    weights = {n: p.detach().double().clone() for n, p in network.named_parameters() if n.endswith("qkv.weight")}
    if foreign:
        # without a gradient they would not decay in any case
        for parameter in (network.encoder.pos_embed, network.encoder.tokens.table):
            network.stem.register_forward_hook(lambda _, __, out, p=parameter: out + 1e-3 * p.sum())
    moved = step(trainer)
    assert weights
    for name, weight in weights.items():
        assert (moved[name] + 100 * RATE * weight).abs().max() < 1.1 * RATE, name
    for name in tables:
        assert moved[name].abs().max() < 1.1 * RATE, name


def test_groups_through_a_wrapper(prepared):
    trainer = initialised("3d_fullres", "nnUNetTrainerQTUNet", PLANS)
    tables = {id(trainer.network.get_parameter(name)) for name in trainer.network.no_weight_decay()}
    trainer.network = torch.compile(trainer.network)
    decayed = {id(p) for group in trainer._parameter_groups() if group["weight_decay"] for p in group["params"]}
    assert tables
    assert decayed
    assert not tables & decayed


class TestNetworkOfAPlan:
    def check(self, trainer, path):
        architecture = {"network_class_name": path, "arch_kwargs": {}, "_kw_requires_import": []}
        configurations = {"3d_fullres": {"architecture": architecture}}
        plans = PlansManager({"plans_name": "P", "dataset_name": "Dataset900_Balls", "configurations": configurations})
        object.__new__(trainer)._check_plan(plans, "3d_fullres", TrainingSettings())

    @pytest.mark.parametrize(
        "path",
        [
            "nnunet_transformers.architectures.mit.MiT",  # plans of before MiT was a package
            "nnunet_transformers.architectures.mit.segmentation.MiT",
        ],
    )
    def test_is_found_by_its_class(self, path):
        self.check(nnUNetTrainerMiT, path)
        self.check(nnUNetTrainerLinearProbe, path)

    def test_of_another_package(self, examples):
        import hybrid_unet

        self.check(hybrid_unet.nnUNetTrainerHybrid, "hybrid_unet.HybridUNet")
        self.check(nnUNetTrainerLinearProbe, "hybrid_unet.HybridUNet")

    @pytest.mark.parametrize(
        "path",
        [
            "nnunet_transformers.architectures.mit.MiTPair",
            "nnunet_transformers.architectures.mit.NoSuchClass",
            "nnunet_transformers.architectures.qt_unet.QTUNet",
        ],
    )
    def test_of_another_class(self, path):
        message = (
            rf"trains nnunet_transformers.architectures.mit.MiT, but P plans {path}\. Plan with .* -d 900 -pl "
            r"nnUNetPlannerMiT7` .or nnUNetPlannerMiT22"
        )
        with pytest.raises(RuntimeError, match=message):
            self.check(nnUNetTrainerMiT, path)

    def test_trainers_without_planners(self, monkeypatch):
        monkeypatch.setattr(nnUNetTrainerMiT, "planners", ())
        with pytest.raises(RuntimeError, match=r"but P plans nnunet_transformers\.architectures\.qt_unet\.QTUNet\.$"):
            self.check(nnUNetTrainerMiT, "nnunet_transformers.architectures.qt_unet.QTUNet")
