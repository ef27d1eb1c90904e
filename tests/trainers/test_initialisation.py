"""Training that starts from weights: of ImageNet, of a pretrained encoder, of other packages' networks."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import timm
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiments
from nnunetv2.run.run_training import get_trainer_from_args
from typer.testing import CliRunner

from nnunet_transformers.architectures import create_network

from .conftest import CPU, PLANS, model_folder, train

QTUNET = "nnUNetTrainerQTUNet"


def test_training_starts_from_imagenet_weights(plan_with, tmp_path):
    from nnunet_transformers.weights import InitialWeights
    from nnunet_transformers.weights.attach import attach

    plans = plan_with("nnUNetPlannerUNet2022T")
    source = timm.create_model("convnext_femto")
    with torch.no_grad():
        source.stages[0].blocks[0].gamma.fill_(0.25)
    torch.save(source.state_dict(), tmp_path / "femto.pth")
    weights = InitialWeights({"imagenet": {"convnext": str(tmp_path / "femto.pth")}})
    with pytest.raises(ValueError, match=r"2d: .*femto.pth holds no weights of convnext_tiny"):
        attach(weights, "900", plans, "nnUNetUNet2022TPlans_imagenet", ["2d"])
    path, reports, _ = attach(weights, "900", plans, "nnUNetUNet2022TPlans_imagenet", min_coverage=0.4)
    assert "encoder.stages.0.0.convnext.gamma" in reports["3d_fullres"].loaded
    trainer = get_trainer_from_args("900", "3d_fullres", 0, "nnUNetTrainerUNet2022", path.stem, device=CPU)
    trainer.on_train_start()
    assert (trainer.network.encoder.stages[0][0].convnext.gamma == 0.25).all()
    # what ConvNeXt fills learns slowest in the first stage; stem, attention and decoder at the full rate
    scales = {id(p): group["lr_scale"] for group in trainer.optimizer.param_groups for p in group["params"]}
    block = trainer.network.encoder.stages[0][0]
    assert scales[id(block.convnext.gamma)] == pytest.approx(0.75**4)
    for fresh in (block.parallel.attn.qkv.weight, next(trainer.network.stem.parameters())):
        assert scales[id(fresh)] == 1
    trainer.lr_scheduler.step(20)
    trainer._freeze_encoder(20)
    assert {group["lr"] > 0 for group in trainer.optimizer.param_groups if group["lr_scale"] < 1} == {False}
    assert {group["lr"] > 0 for group in trainer.optimizer.param_groups if group["lr_scale"] == 1} == {True}
    log = next(Path(trainer.output_folder).glob("training_log*.txt")).read_text()
    assert "weights from ConvNeXt (convnext_femto" in log
    assert "stem.blocks.0 (8): not in the source" in log
    with pytest.raises(ValueError, match="cover 49% of the encoder, less than the 90%"):
        attach(weights, "900", plans, "nnUNetOtherPlans", ["3d_fullres"], min_coverage=0.9)
    with pytest.raises(FileExistsError, match="--force"):
        attach(weights, "900", plans, path.stem, ["3d_fullres"])
    with pytest.raises(ValueError, match="no network in 3d_lowres"):
        attach(weights, "900", plans, "nnUNetOtherPlans", ["3d_lowres"])


def test_training_starts_from_a_pretrained_encoder(prepared, tmp_path):
    """An encoder of another patch and window, through a plan and through nnU-Net's own -pretrained_weights."""
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    from nnunet_transformers.weights import EncoderCheckpoint, InitialWeights, encoder_weights
    from nnunet_transformers.weights.attach import attach, export_full

    overrides = {"norm_placement": "pre", "num_stages": 3, "window_sizes": 4, "patch_embed_stride": 2}
    source = create_network("qt_unet_tiny", 1, 2, (32, 32, 32), **overrides)
    checkpoint = EncoderCheckpoint(
        encoder_weights(source), "qt_unet_tiny", (32, 32, 32), 1, overrides=overrides, method="QTSSL"
    )
    checkpoint.save(tmp_path / "encoder.pth")
    weights = InitialWeights.from_source(tmp_path / "encoder.pth")
    with pytest.raises(ValueError, match="2d: the weights are of a 3D network"):
        attach(weights, "900", PLANS, "nnUNetQTUNetTPlans_ssl", ["2d"])
    path, reports, left = attach(weights, "900", PLANS, "nnUNetQTUNetTPlans_ssl")
    assert list(reports) == ["3d_fullres"]
    assert "3D network" in left["2d"]
    assert "initialisation" not in json.loads(path.read_text())["configurations"]["2d"]
    key = "encoder.stages.0.blocks.0.attn.qkv.weight"
    assert key in reports["3d_fullres"].loaded
    for is_initialised_before in (False, True):
        trainer = get_trainer_from_args("900", "3d_fullres", 0, "nnUNetTrainerQTUNet", path.stem, device=CPU)
        if is_initialised_before:
            trainer.initialize()
        trainer.on_train_start()
        assert torch.equal(trainer.network.state_dict()[key], checkpoint.weights[key])
        assert "QTSSL of qt_unet_tiny" in Path(trainer.log_file).read_text()

    export_full(weights, "900", PLANS, "3d_fullres", tmp_path / "full.pth")
    trainer = get_trainer_from_args("900", "3d_fullres", 1, "nnUNetTrainerQTUNet", PLANS, device=CPU)
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(tmp_path / "full.pth"))
    assert torch.equal(trainer.network.state_dict()[key], checkpoint.weights[key])
    # which take precedence over those of a plan
    others = {name: value + 1 for name, value in trainer.network.state_dict().items()}
    torch.save({"network_weights": others}, tmp_path / "others.pth")
    trainer = get_trainer_from_args("900", "3d_fullres", 2, "nnUNetTrainerQTUNet", path.stem, device=CPU)
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(tmp_path / "others.pth"))
    trainer.on_train_start()
    assert torch.equal(trainer.network.state_dict()[key], others[key])
    assert "initial weights stay out: others were loaded" in Path(trainer.log_file).read_text()
    with pytest.raises(FileExistsError, match="exists"):
        export_full(weights, "900", PLANS, "3d_fullres", tmp_path / "full.pth")


def plan_of(prepared, base, name, **changes):
    """A plan of the shared dataset under another name, with changed entries of 3d_fullres."""
    folder = prepared / "preprocessed" / "Dataset900_Balls"
    plan = json.loads((folder / f"{base}.json").read_text())
    plan["plans_name"] = name
    plan["configurations"]["3d_fullres"] |= changes
    (folder / f"{name}.json").write_text(json.dumps(plan))
    return name


def attached(source, base, name):
    """Attach a source by the command; returns its output."""
    from nnunet_transformers.cli import app

    arguments = ["attach", str(source), "-d", "900", "-p", base, "-o", name, "-c", "3d_fullres", "--force"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_trained_fold_starts_another_plan(prepared, tmp_path):
    """Of a larger patch; decoder and heads are loaded as well, as the labels are the same."""
    train("3d_fullres", f"{QTUNET}_1epoch", PLANS)
    source = model_folder(prepared, trainer=f"{QTUNET}_1epoch") / "fold_0"
    trained = torch.load(source / "checkpoint_final.pth", weights_only=False)["network_weights"]
    folder = prepared / "preprocessed" / "Dataset900_Balls"
    configuration = json.loads((folder / f"{PLANS}.json").read_text())["configurations"]["3d_fullres"]
    strides = [math.prod(axis) for axis in zip(*configuration["architecture"]["arch_kwargs"]["strides"], strict=True)]
    patch_size = [n + s for n, s in zip(configuration["patch_size"], strides, strict=True)]
    plans = plan_of(prepared, PLANS, "nnUNetLargerPlans", patch_size=patch_size)
    output = attached(source, plans, "nnUNetLargerPlans_trained")
    assert "fresh: 0 tensors" in output
    trainer = get_trainer_from_args("900", "3d_fullres", 0, QTUNET, "nnUNetLargerPlans_trained", device=CPU)
    trainer.on_train_start()
    for name in ("decoder.seg_layers.0.weight", "encoder.stages.0.blocks.0.attn.qkv.weight"):
        assert torch.equal(trainer.network.state_dict()[name], trained[name])


@pytest.fixture
def stock_plan(prepared, monkeypatch):
    """nnU-Net's own plan of the shared dataset; it shares the data."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    plan_experiments([900], gpu_memory_target_in_gb=2)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    return "nnUNetPlans"


def test_stock_network_starts_from_an_encoder_of_nnssl(prepared, stock_plan, tmp_path):
    """Through a plan, and trained by nnU-Net's own recipe; the references are named."""
    from nnunet_transformers.plans.planned import PlannedConfiguration

    source = PlannedConfiguration.load("900", stock_plan, "3d_fullres").build_network()
    plan = {
        "architecture_plans": {"arch_class_name": "ResEncL", "arch_kwargs": None, "arch_kwargs_requiring_import": None},
        "pretrain_plan": {"configurations": {"onemmiso": {"patch_size": [160, 160, 160]}}},
    }
    content = {"network_weights": source.state_dict(), "citations": [{"apa_citations": ["Wald et al. 2025"]}]}
    torch.save({**content, "nnssl_adaptation_plan": plan}, tmp_path / "checkpoint_final.pth")
    attached(tmp_path, stock_plan, "nnUNetPlans_nnssl")
    trainer = "nnUNetTrainerPretrained"
    started = get_trainer_from_args("900", "3d_fullres", 0, trainer, "nnUNetPlans_nnssl", device=CPU)
    started.num_epochs, started.num_iterations_per_epoch, started.num_val_iterations_per_epoch = 1, 2, 1
    started.run_training()
    assert started.initial_lr == 1e-3
    log = next(Path(started.output_folder).glob("training_log*.txt")).read_text()
    assert "weights from nnssl's ResEncL" in log
    assert "please cite: Wald et al. 2025" in log
    with pytest.raises(RuntimeError, match="nnUNetPlans specifies no initial weights for 3d_fullres"):
        get_trainer_from_args("900", "3d_fullres", 0, trainer, stock_plan, device=CPU)


@pytest.mark.parametrize("from_scratch", [False, True])
def test_plans_of_nnunets_own_fine_tuning(prepared, tmp_path, from_scratch):
    """`nnUNetv2_preprocess_like_nnssl` names the checkpoint in `pretrain_info`, without a path for --from_scratch."""
    from nnunet_transformers.plans.planned import PlannedConfiguration
    from nnunet_transformers.weights import EncoderCheckpoint, encoder_weights

    overrides = {"num_stages": 3, "window_sizes": 4, "patch_embed_stride": 2}
    network = create_network("qt_unet_tiny", 1, 2, (32, 32, 32), **overrides)
    checkpoint = EncoderCheckpoint(encoder_weights(network), "qt_unet_tiny", (32, 32, 32), 1, overrides=overrides)
    checkpoint.save(tmp_path / "encoder.pth")
    # what nnU-Net takes from the file for its plan
    adaptation = torch.load(tmp_path / "encoder.pth", weights_only=True)["nnssl_adaptation_plan"]
    architecture = {
        "network_class_name": adaptation["architecture_plans"]["arch_class_name"],
        "arch_kwargs": adaptation["architecture_plans"]["arch_kwargs"],
        "_kw_requires_import": adaptation["architecture_plans"]["arch_kwargs_requiring_import"],
    }
    patch_size = adaptation["recommended_downstream_patchsize"]
    plans = plan_of(prepared, PLANS, "ptPlans__QTUNet", architecture=architecture, patch_size=patch_size)
    path = prepared / "preprocessed" / "Dataset900_Balls" / f"{plans}.json"
    plan = json.loads(path.read_text())
    plan["pretrain_info"] = {"checkpoint_path": None if from_scratch else str(tmp_path / "encoder.pth")}
    path.write_text(json.dumps(plan))
    assert PlannedConfiguration.load("900", plans, "3d_fullres").patch_size == (32, 32, 32)
    trainer = get_trainer_from_args("900", "3d_fullres", 0, QTUNET, plans, device=CPU)
    trainer.on_train_start()
    key = "encoder.stages.0.blocks.0.attn.qkv.weight"
    assert torch.equal(trainer.network.state_dict()[key], checkpoint.weights[key]) is not from_scratch
    train("3d_fullres", f"{QTUNET}_1epoch", plans)


def test_a_checkpoint_is_read_and_verified_once(prepared, tmp_path, file_reads):
    """By attach for several configurations, of which one takes no 3D weights, and by the start of a training."""
    from nnunet_transformers.cli import app
    from nnunet_transformers.weights import EncoderCheckpoint, encoder_weights

    folder = prepared / "preprocessed" / "Dataset900_Balls"
    plan = json.loads((folder / f"{PLANS}.json").read_text())
    plan["plans_name"] = plans = "nnUNetSeveralPlans"
    plan["configurations"]["3d_other"] = plan["configurations"]["3d_fullres"]
    (folder / f"{plans}.json").write_text(json.dumps(plan))
    source = create_network("qt_unet_tiny", 1, 2, (32, 32, 32), num_stages=3, window_sizes=4, patch_embed_stride=2)
    overrides = {"num_stages": 3, "window_sizes": 4, "patch_embed_stride": 2}
    checkpoint = EncoderCheckpoint(encoder_weights(source), "qt_unet_tiny", (32, 32, 32), 1, overrides=overrides)
    sha256 = checkpoint.save(tmp_path / "encoder.pth")
    file_reads.update(load=0, hash=0)
    command = f"attach {tmp_path}/encoder.pth -d 900 -p {plans} -o nnUNetReadOncePlans --min-coverage 0.1"
    assert CliRunner().invoke(app, command.split()).exit_code == 0
    assert file_reads == {"load": 1, "hash": 1}
    attached = json.loads((folder / "nnUNetReadOncePlans.json").read_text())["configurations"]
    specification = {"checkpoint": str((tmp_path / "encoder.pth").resolve()), "sha256": sha256}
    assert {n: c.get("initialisation") for n, c in attached.items() if "architecture" in c} == {
        "2d": None,
        "3d_fullres": specification,
        "3d_other": specification,
    }
    trainer = get_trainer_from_args("900", "3d_fullres", 0, "nnUNetTrainerQTUNet", "nnUNetReadOncePlans", device=CPU)
    file_reads.update(load=0, hash=0)
    trainer.on_train_start()
    assert file_reads == {"load": 1, "hash": 1}
    key = "encoder.stages.0.blocks.0.attn.qkv.weight"
    assert torch.equal(trainer.network.state_dict()[key], checkpoint.weights[key])
    # a missing checkpoint is named with the plan that starts from it
    (tmp_path / "encoder.pth").unlink()
    trainer = get_trainer_from_args("900", "3d_fullres", 0, "nnUNetTrainerQTUNet", "nnUNetReadOncePlans", device=CPU)
    with pytest.raises(FileNotFoundError, match=r"encoder.pth.* plan nnUNetReadOncePlans of Dataset900_Balls starts"):
        trainer.on_train_start()


def test_stock_primus_starts_from_a_pretrained_one(prepared, tmp_path):
    """An encoder of another patch, for the network that nnU-Net's own trainer builds."""
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    from nnunet_transformers.weights import InitialWeights, PrimusCheckpoint, create_primus, encoder_weights
    from nnunet_transformers.weights.attach import attach, export_full

    stock = "nnUNet_Primus_S_Trainer"
    source = create_primus("primus_s", 2, (16, 16, 32))
    checkpoint = PrimusCheckpoint(encoder_weights(source), "primus_s", (16, 16, 32), 2, method="Alice")
    checkpoint.save(tmp_path / "encoder.pth")
    weights = InitialWeights.from_source(tmp_path / "encoder.pth")
    with pytest.raises(ValueError, match="weights are of primus_s, the network is QTUNet"):
        attach(weights, "900", PLANS, "nnUNetQTUNetTPlans_primus")
    with pytest.raises(ValueError, match="Primus needs multiples of 8"):
        export_full(weights, "900", PLANS, "3d_fullres", tmp_path / "full.pth", stock)
    folder = prepared / "preprocessed" / "Dataset900_Balls"
    plan = json.loads((folder / f"{PLANS}.json").read_text())
    plan["plans_name"] = plans = "nnUNetPrimusPlans"
    plan["configurations"]["3d_fullres"]["patch_size"] = [24, 24, 16]
    (folder / f"{plans}.json").write_text(json.dumps(plan))
    report = export_full(weights, "900", plans, "3d_fullres", tmp_path / "full.pth", stock)
    assert set(report.adapted) == {"down_projection.proj.weight", "eva.pos_embed"}
    assert all(name.startswith("up_projection") for name in report.fresh)
    assert not report.unused
    trainer = get_trainer_from_args("900", "3d_fullres", 0, stock, plans, device=CPU)
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(tmp_path / "full.pth"))
    key = "eva.blocks.3.attn.q_proj.weight"
    assert torch.equal(trainer.network.state_dict()[key], checkpoint.weights[key])
    with pytest.raises(ValueError, match=r"396 channels in 12 layers.*has 792 in 12"):
        export_full(weights, "900", plans, "3d_fullres", tmp_path / "b.pth", "nnUNet_Primus_B_Trainer")
    with pytest.raises(ValueError, match="nnUNetTrainerNone"):
        export_full(weights, "900", plans, "3d_fullres", tmp_path / "b.pth", "nnUNetTrainerNone")


MGCA_NETWORKS = [
    ("nnUNetPlannerSETRPUP", "nnUNetTrainerSETRPUP", "vit_tiny_patch16_224"),
    ("nnUNetPlannerResNet50UNet", "nnUNetTrainerResNet50UNet", "resnet18"),
]


@pytest.fixture
def timm_plans(plan_with, tmp_path, request):
    """A plan, another that names a checkpoint of timm's network, the trainer, and the checkpoint as it is loaded."""
    from nnunet_transformers.weights import InitialWeights, TimmCheckpoint, create_timm, load_encoder
    from nnunet_transformers.weights.attach import attach

    planner, trainer, name = request.param
    plans, path = plan_with(planner), tmp_path / "encoder.pth"
    source = create_timm(name, 3, (64, 64)).train()
    with torch.no_grad():
        source(torch.randn(2, 3, 64, 64))  # moves the statistics of batch norms
    TimmCheckpoint(source.state_dict(), name, (64, 64), 3, method="MGCA").save(path)
    attached, reports, _ = attach(InitialWeights.from_source(path), "900", plans, f"{plans}_mgca", force=True)
    assert list(reports) == ["2d"]
    assert "channels 3 to 1" in reports["2d"].adapted.values()
    return plans, attached.stem, trainer, load_encoder(path)


@pytest.mark.parametrize("timm_plans", MGCA_NETWORKS, indirect=True, ids=["vit", "resnet"])
class TestEncoderOfTimm:
    def trained(self, prepared, trainer, plans):
        train("2d", trainer, plans)
        file = model_folder(prepared, "2d", trainer, plans) / "fold_0" / "checkpoint_final.pth"
        return torch.load(file, weights_only=False)["network_weights"]

    def assert_unmoved(self, weights, checkpoint):
        """Weights and statistics are the checkpoint's, but for what another patch and one channel change."""
        changed = [name for name, value in checkpoint.weights.items() if not torch.equal(weights[name], value)]
        assert set(changed) <= {"stem.proj.weight", "stem.conv1.weight", "encoder.position.weight"}

    def test_paper_recipe(self, prepared, timm_plans):
        """A fixed rate; the ViT never moves, ResNet-50 does from the start."""
        plans, attached, trainer, checkpoint = timm_plans
        recipe = get_trainer_from_args("900", "2d", 0, f"{trainer}Paper", attached, device=CPU)
        recipe.initialize()
        assert (recipe.num_epochs, recipe.initial_lr, recipe.weight_decay) == (50, 5e-4, 1e-6)
        recipe.lr_scheduler.step(25)
        assert {group["lr"] for group in recipe.optimizer.param_groups} == {5e-4}
        optimised = {id(p) for group in recipe.optimizer.param_groups for p in group["params"]}
        if "ResNet" in trainer:
            assert optimised == {id(p) for p in recipe.network.parameters()}
            return
        assert optimised == {id(p) for p in recipe.network.decoder.parameters()}
        weights = self.trained(prepared, f"{trainer}Paper_1epoch", attached)
        self.assert_unmoved(weights, checkpoint)
        statistics = [n for n in weights if n.startswith("decoder.") and n.endswith("running_mean")]
        assert all(weights[name].abs().sum() > 0 for name in statistics)
        with pytest.raises(
            RuntimeError, match=r"Paper keeps a pretrained encoder .* specifies no initial weights for 2d.* attach "
        ):
            get_trainer_from_args("900", "2d", 0, f"{trainer}Paper", plans, device=CPU)

    def test_it_is_frozen_and_then_learns(self, prepared, timm_plans):
        _, attached, trainer, checkpoint = timm_plans
        fine_tuned = get_trainer_from_args("900", "2d", 0, trainer, attached, device=CPU)
        fine_tuned.on_train_start()
        norms = [m for m in fine_tuned.network.encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for epoch, frozen in ((0, True), (49, True), (50, False)):
            fine_tuned.current_epoch = epoch
            fine_tuned.on_train_epoch_start()
            assert all(norm.training is not frozen for norm in norms)
            assert fine_tuned.network.decoder.training
        scales = [group["lr_scale"] for group in fine_tuned.optimizer.param_groups]
        assert len(set(scales)) == (15 if "SETR" in trainer else 6)
        weights = self.trained(prepared, f"{trainer}_1epoch", attached)
        with pytest.raises(AssertionError):
            self.assert_unmoved(weights, checkpoint)

    def test_other_ways_to_use_it(self, prepared, timm_plans, tmp_path):
        from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
        from typer.testing import CliRunner

        from nnunet_transformers import cli

        plans, _, trainer, checkpoint = timm_plans
        common = [str(tmp_path / "encoder.pth"), "-d", "900", "-p", plans, "-c", "2d"]
        result = CliRunner().invoke(cli.app, ["export-full", *common, "-o", str(tmp_path / "full.pth")])
        assert result.exit_code == 0, result.output
        other = get_trainer_from_args("900", "2d", 1, trainer, plans, device=CPU)
        other.initialize()
        load_pretrained_weights(other.network, str(tmp_path / "full.pth"))
        self.assert_unmoved(other.network.state_dict(), checkpoint)
        probe = ["-tr", "nnUNetTrainerLinearProbe_1epoch", "--device", "cpu"]
        result = CliRunner().invoke(cli.app, ["probe", "segment", *common, *probe])
        assert result.exit_code == 0, result.output
        assert "label 1: Dice" in result.output


def test_linear_probe(prepared, tmp_path, monkeypatch):
    """Heads are trained on an encoder that stays as it was; `probe segment` from checkpoint to Dice."""
    from typer.testing import CliRunner

    from nnunet_transformers import cli
    from nnunet_transformers.weights import EncoderCheckpoint, encoder_weights

    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    planned = json.loads((prepared / "preprocessed" / "Dataset900_Balls" / f"{PLANS}.json").read_text())
    planned = planned["configurations"]["3d_fullres"]
    overrides = {k: v for k, v in planned["architecture"]["arch_kwargs"].items() if k not in ("patch_size", "strides")}
    patch_size = tuple(planned["patch_size"])
    source = create_network("qt_unet_tiny", 1, 2, patch_size, **overrides)
    checkpoint = EncoderCheckpoint(encoder_weights(source), "qt_unet_tiny", patch_size, 1, overrides=overrides)
    checkpoint.save(tmp_path / "encoder.pth")
    arguments = [tmp_path / "encoder.pth", "-d", 900, "-p", PLANS, "-tr", "nnUNetTrainerLinearProbe_1epoch"]
    figures = []
    for _ in range(2):
        result = CliRunner().invoke(cli.app, ["probe", "segment", *map(str, arguments), "--device", "cpu"])
        assert result.exit_code == 0, result.output
        figures.append(re.findall(r"label \d: Dice ([\d.]+)", result.output))
    assert len(figures[0]) == 2 and figures[0] == figures[1]
    path, again = sorted((prepared / "preprocessed" / "Dataset900_Balls").glob(f"{PLANS}_probe_*.json"))
    assert again.stem == f"{path.stem}_2"  # the first run's results are kept
    model = model_folder(prepared, trainer="nnUNetTrainerLinearProbe_1epoch", plans=path.stem)
    weights = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    for name, value in encoder_weights(source).items():
        assert torch.equal(weights[f"network.{name}"], value), name
    assert weights["heads.0.0.running_mean"].abs().sum() > 0
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    plan_experiments([900])
    with pytest.raises(
        RuntimeError, match=r"trains nnunet_transformers.architectures.SegmentationNetwork, but nnUNetPlans plans"
    ):
        get_trainer_from_args("900", "3d_fullres", 0, "nnUNetTrainerLinearProbe", "nnUNetPlans", device=CPU)
