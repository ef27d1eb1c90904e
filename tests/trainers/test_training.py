"""The main job on a small dataset, in this process: plan, preprocess, train, continue, validate, predict, share."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import timm
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import get_trainer_from_args, run_training

from nnunet_transformers.architectures import get_network
from nnunet_transformers.discovery import PLANNERS, TRAINERS
from nnunet_transformers.report import write_report
from nnunet_transformers.trainers.base import TransformerTrainer
from tests.architectures.test_networks import SMALLEST
from tests.conftest import write_dataset

TRAINER, PLANNER, PLANS = "nnUNetTrainerQTUNet_1epoch", "nnUNetPlannerQTUNetT", "nnUNetQTUNetTPlans"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def short_epochs(monkeypatch):
    monkeypatch.setattr(TransformerTrainer, "default_iterations", 2)
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")


def prepare(folders, monkeypatch, configurations=("3d_fullres",), **dataset):
    write_dataset(folders / "raw", **dataset)
    extract_fingerprints([900], num_processes=1)
    plan_experiments([900], PLANNER, gpu_memory_target_in_gb=2)
    preprocess([900], PLANS, configurations, [1] * len(configurations))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")


def train(configuration="3d_fullres", trainer=TRAINER, plans=PLANS, **kwargs):
    run_training("900", configuration, 0, trainer, plans, device=CPU, **kwargs)


def model_folder(folders, configuration="3d_fullres", trainer=TRAINER, plans=PLANS):
    return folders / "results" / "Dataset900_Balls" / f"{trainer}__{plans}__{configuration}"


def predict(folders, configuration="3d_fullres", trainer=TRAINER, plans=PLANS, probabilities=False):
    predictor = nnUNetPredictor(device=CPU, use_mirroring=False, perform_everything_on_device=False)
    predictor.initialize_from_trained_model_folder(
        str(model_folder(folders, configuration, trainer, plans)), (0,), "checkpoint_final.pth"
    )
    output = folders / f"predictions_{configuration}"
    output.mkdir(exist_ok=True)
    cases = sorted(str(p) for p in (folders / "raw" / "Dataset900_Balls" / "imagesTr").glob("ball_0_*.nii.gz"))
    predictor.predict_from_files_sequential([cases], [str(output / "ball_0.nii.gz")], save_probabilities=probabilities)
    return sitk.GetArrayFromImage(sitk.ReadImage(str(output / "ball_0.nii.gz")))


class TestMainJob:
    def test_from_raw_data_to_prediction(self, nnunet_folders, monkeypatch):
        prepare(nnunet_folders, monkeypatch, ("3d_fullres", "2d"))
        train(export_validation_probabilities=True)
        fold = model_folder(nnunet_folders) / "fold_0"
        assert (fold / "checkpoint_final.pth").is_file()
        assert list(fold.glob("*.partial")) == []
        validation = json.loads((fold / "validation" / "summary.json").read_text())
        assert set(validation["mean"]) == {"1", "2"}
        assert len(list((fold / "validation").glob("*.npz"))) == len(validation["metric_per_case"])

        page = write_report(fold).read_text()
        assert page.count("data:image/png;base64,") == 3
        for text in ("Dataset900_Balls", "1 epochs", "large", "small", "mean of 2 cases"):
            assert text in page

        label = predict(nnunet_folders, probabilities=True)
        assert label.shape == (20, 24, 20)
        assert set(np.unique(label)) <= {0, 1, 2}

        # --val on a finished training, --c on one that is not
        shutil.rmtree(fold / "validation")
        train(only_run_validation=True)
        assert (fold / "validation" / "summary.json").is_file()
        longer = "nnUNetTrainerQTUNet_5epochs"
        shutil.copytree(model_folder(nnunet_folders), model_folder(nnunet_folders, trainer=longer))
        final = model_folder(nnunet_folders, trainer=longer) / "fold_0" / "checkpoint_final.pth"
        final.rename(final.with_name("checkpoint_latest.pth"))
        train(trainer=longer, continue_training=True)
        checkpoint = torch.load(final, weights_only=False)
        assert checkpoint["current_epoch"] == 5

        # weights of one network start another of the same plan
        trainer = get_trainer_from_args("900", "3d_fullres", 1, TRAINER, PLANS, device=CPU)
        trainer.initialize()
        from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

        load_pretrained_weights(trainer.network, str(final))
        key = "encoder.stages.0.blocks.0.attn.qkv.weight"
        assert torch.equal(trainer.network.state_dict()[key], checkpoint["network_weights"][key])

        # 2d of the same plans, the best of both, and the model as a zip on another machine
        train("2d")
        from nnunetv2.evaluation.find_best_configuration import find_best_configuration
        from nnunetv2.model_sharing.model_export import export_pretrained_model
        from nnunetv2.model_sharing.model_import import install_model_from_zip_file

        models = [{"plans": PLANS, "trainer": TRAINER, "configuration": c} for c in ("2d", "3d_fullres")]
        best = find_best_configuration(900, models, allow_ensembling=False, num_processes=1, folds=(0,))
        assert best["best_model_or_ensemble"]["selected_model_or_models"][0]["plans_identifier"] == PLANS
        archive = nnunet_folders / "model.zip"
        export_pretrained_model(900, str(archive), ("3d_fullres",), TRAINER, PLANS, folds=(0,))
        shutil.rmtree(nnunet_folders / "results")
        (nnunet_folders / "results").mkdir()
        install_model_from_zip_file(str(archive))
        np.testing.assert_array_equal(predict(nnunet_folders), label)

    def test_regions_and_several_channels(self, nnunet_folders, monkeypatch):
        labels = {"background": 0, "all": [1, 2], "small": 2}
        prepare(nnunet_folders, monkeypatch, labels=labels, channels=2, regions_class_order=[1, 2])
        train()
        assert set(np.unique(predict(nnunet_folders))) <= {0, 1, 2}

    def test_ignore_label(self, nnunet_folders, monkeypatch):
        labels = {"background": 0, "large": 1, "small": 2, "ignore": 3}
        prepare(nnunet_folders, monkeypatch, labels=labels)
        train()
        assert set(np.unique(predict(nnunet_folders))) <= {0, 1, 2}

    def test_thesis_recipe(self, nnunet_folders, monkeypatch):
        prepare(nnunet_folders, monkeypatch)
        trainer = get_trainer_from_args("900", "3d_fullres", 0, "nnUNetTrainerQTUNetThesis_1epoch", PLANS, device=CPU)
        trainer.initialize()
        assert trainer.batch_size == 1
        assert isinstance(trainer.optimizer, torch.optim.Adam)
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.4e-4)
        assert trainer.loss.weight_ce == 0
        assert trainer.loss.weight_dice == 1
        with torch.autocast("cpu", torch.bfloat16):
            output = trainer.network(torch.randn(1, 1, *trainer.network.patch_size))
        assert output.dtype == torch.float32
        output.mean().backward()
        assert all(p.grad is not None for p in trainer.network.parameters())
        assert trainer.network.encoder.stages[-1].blocks[-1].drop_path.drop_prob == pytest.approx(0.2)
        train(trainer="nnUNetTrainerQTUNetThesis_1epoch")
        predict(nnunet_folders, trainer="nnUNetTrainerQTUNetThesis_1epoch")


def test_cascade(nnunet_folders, monkeypatch):
    prepare(nnunet_folders, monkeypatch)
    plans_file = nnunet_folders / "preprocessed" / "Dataset900_Balls" / f"{PLANS}.json"
    plans = json.loads(plans_file.read_text())
    configurations = plans["configurations"]
    configurations["3d_lowres"] = {
        **configurations["3d_fullres"],
        "data_identifier": f"{PLANS}_3d_lowres",
        "spacing": [1.25, 1.2, 1.25],
        "next_stage": "3d_cascade_fullres",
    }
    configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    plans_file.write_text(json.dumps(plans))
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    preprocess([900], PLANS, ("3d_lowres",), [1])
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    for fold in range(5):
        run_training("900", "3d_lowres", fold, TRAINER, PLANS, device=CPU)
    train("3d_cascade_fullres")
    weights = torch.load(
        model_folder(nnunet_folders, "3d_cascade_fullres") / "fold_0" / "checkpoint_final.pth", weights_only=False
    )["network_weights"]
    assert weights["stem.proj.weight"].shape[1] == 1 + 2


def test_under_ddp(tmp_path):
    """nnU-Net's own DDP is for CUDA; the network under DDP with gloo, every parameter used."""
    import torch.multiprocessing as mp

    mp.spawn(_ddp_worker, args=(2, str(tmp_path / "store")), nprocs=2)


def _ddp_worker(rank, world_size, store):
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from nnunet_transformers.architectures import create_network

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    torch.manual_seed(0)
    network = DistributedDataParallel(create_network("qt_unet_tiny", 1, 2, (32, 32), deep_supervision=True))
    torch.manual_seed(rank)
    for _ in range(2):
        network.zero_grad()
        sum(output.square().mean() for output in network(torch.randn(1, 1, 32, 32))).backward()
    gradient = network.module.stem.proj.weight.grad.flatten()
    gathered = [torch.empty_like(gradient) for _ in range(world_size)]
    dist.all_gather(gathered, gradient)
    assert torch.equal(gathered[0], gathered[1])
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A planned and preprocessed dataset that several tests share."""
    folders = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in ("raw", "preprocessed", "results"):
            (folders / name).mkdir()
            monkeypatch.setenv(f"nnUNet_{name}", str(folders / name))
        prepare(folders, monkeypatch, ("3d_fullres", "2d"))
        yield folders


def families_to_train():
    """For each network and configuration the first planner and the trainer; QT-UNet is what the other tests train."""
    trainers = {getattr(import_module(m), n).network_class_name: n for n, m in reversed(TRAINERS.items())}
    families = {}
    for name, module in PLANNERS.items():
        entry = get_network(getattr(import_module(module), name).network_name)
        for ndim in entry.dimensions:
            configuration = {2: "2d", 3: "3d_fullres"}[ndim]
            family = entry.class_path.rpartition(".")[2]
            families.setdefault((family, configuration), (name, trainers[entry.class_path], configuration))
    return [pytest.param(*names, id="-".join(key)) for key, names in families.items() if key[0] != "QTUNet"]


@pytest.fixture
def plan_smallest(monkeypatch):
    """Plan with a planner and the smallest network of its class; returns the name of the plans."""

    def plan(planner):
        planner_class = getattr(import_module(PLANNERS[planner]), planner)
        network_class = get_network(planner_class.network_name).network_class
        smallest = next(name for name in SMALLEST if get_network(name).network_class is network_class)
        monkeypatch.setattr(planner_class, "network_name", smallest)
        return plan_experiments([900], planner, gpu_memory_target_in_gb=4)

    return plan


@pytest.fixture
def plan_with(prepared, monkeypatch, plan_smallest):
    """The same for the shared dataset."""

    def plan(planner):
        monkeypatch.setenv("nnUNet_n_proc_DA", "1")  # nnU-Net plans with its number of threads and trains with 0
        plans = plan_smallest(planner)
        monkeypatch.setenv("nnUNet_n_proc_DA", "0")
        return plans

    return plan


@pytest.mark.parametrize("planner,trainer,configuration", families_to_train())
def test_every_family_from_plan_to_prediction(prepared, plan_with, planner, trainer, configuration):
    plans = plan_with(planner)
    train(configuration, f"{trainer}_1epoch", plans)
    label = predict(prepared, configuration, f"{trainer}_1epoch", plans)
    assert label.shape == (20, 24, 20)
    assert set(np.unique(label)) <= {0, 1, 2}


@pytest.mark.parametrize("planner", ["nnUNetPlannerSETRPUP", "nnUNetPlannerResNet50UNet"])
def test_networks_in_2d_on_images(nnunet_folders, monkeypatch, plan_smallest, planner):
    """A dataset of images; preprocessed with the configurations that nnU-Net's command has by default."""
    write_dataset(nnunet_folders / "raw", size=(1, 40, 48))
    extract_fingerprints([900], num_processes=1)
    plans = plan_smallest(planner)
    preprocess([900], plans, ("2d", "3d_fullres", "3d_lowres"), [1, 1, 1])
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    trainer = f"{planner.replace('Planner', 'Trainer')}_1epoch"
    train("2d", trainer, plans)
    assert predict(nnunet_folders, "2d", trainer, plans).shape == (1, 40, 48)


def test_recipes_of_the_papers(plan_with):
    plans = plan_with("nnUNetPlannerUNet2022T")
    trainer = get_trainer_from_args("900", "3d_fullres", 0, "nnUNetTrainerUNet2022Paper", plans, device=CPU)
    trainer.initialize()
    assert (trainer.loss.loss.weight_dice, trainer.loss.loss.weight_ce) == (1.2, 0.8)
    assert trainer.loss.weight_factors == pytest.approx((4 / 7, 2 / 7, 1 / 7))
    rates = []
    for epoch in (0, 500, 999):
        trainer.lr_scheduler.step(epoch)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-4] * 3)
    assert all(group["weight_decay"] == 0 for group in trainer.optimizer.param_groups)

    plans = plan_with("nnUNetPlannerMiT7")
    trainer = get_trainer_from_args("900", "3d_fullres", 0, "nnUNetTrainerMiTPaper", plans, device=CPU)
    trainer.initialize()
    assert trainer.num_epochs * 250 == 25_000
    # nnU-Net's weights: halved from output to output, none for the last
    outputs = len(trainer.network.strides) - 1
    weights = [2.0**-i for i in range(outputs - 1)]
    assert trainer.loss.weight_factors == pytest.approx([w / sum(weights) for w in weights] + [0])
    trainer.lr_scheduler.step(50)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4 * 0.5**0.9)


def test_training_starts_from_imagenet_weights(plan_with, tmp_path):
    from nnunet_transformers.plans.attach import attach

    plans = plan_with("nnUNetPlannerUNet2022T")
    source = timm.create_model("convnext_femto")
    with torch.no_grad():
        source.stages[0].blocks[0].gamma.fill_(0.25)
    torch.save(source.state_dict(), tmp_path / "femto.pth")
    specification = {"imagenet": {"convnext": str(tmp_path / "femto.pth")}}
    with pytest.raises(ValueError, match=r"2d: .*femto.pth holds no weights of convnext_tiny"):
        attach(specification, "900", plans, "nnUNetUNet2022TPlans_imagenet", ["2d"])
    path, reports, _ = attach(specification, "900", plans, "nnUNetUNet2022TPlans_imagenet", min_coverage=0.4)
    assert "encoder.stages.0.0.convnext.gamma" in reports["3d_fullres"].loaded
    trainer = get_trainer_from_args("900", "3d_fullres", 0, "nnUNetTrainerUNet2022", path.stem, device=CPU)
    trainer.on_train_start()
    assert (trainer.network.encoder.stages[0][0].convnext.gamma == 0.25).all()
    # the stem learns slowest, the decoder at the full rate; at first the encoder rests
    scales = {group["lr_scale"] for group in trainer.optimizer.param_groups}
    assert min(scales) == pytest.approx(0.75**5)
    assert max(scales) == 1
    trainer.lr_scheduler.step(20)
    trainer._rest_encoder(20)
    assert {group["lr"] > 0 for group in trainer.optimizer.param_groups if group["lr_scale"] < 1} == {False}
    assert {group["lr"] > 0 for group in trainer.optimizer.param_groups if group["lr_scale"] == 1} == {True}
    log = next(Path(trainer.output_folder).glob("training_log*.txt")).read_text()
    assert "weights from ConvNeXt (convnext_femto" in log
    assert "stem.blocks.0 (8): not in the source" in log
    with pytest.raises(ValueError, match="cover 49% of the encoder, less than the 90%"):
        attach(specification, "900", plans, "nnUNetOtherPlans", ["3d_fullres"], min_coverage=0.9)
    with pytest.raises(FileExistsError, match="--force"):
        attach(specification, "900", plans, path.stem, ["3d_fullres"])
    with pytest.raises(ValueError, match="no network in 3d_lowres"):
        attach(specification, "900", plans, "nnUNetOtherPlans", ["3d_lowres"])


def test_training_starts_from_a_pretrained_encoder(prepared, tmp_path):
    """An encoder of another patch and window, through a plan and through nnU-Net's own -pretrained_weights."""
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    from nnunet_transformers.architectures import create_network
    from nnunet_transformers.checkpoints import EncoderCheckpoint, encoder_weights
    from nnunet_transformers.plans.attach import attach, export_full

    overrides = {"norm_placement": "pre", "num_stages": 3, "window_sizes": 4, "patch_embed_stride": 2}
    source = create_network("qt_unet_tiny", 1, 2, (32, 32, 32), **overrides)
    checkpoint = EncoderCheckpoint(
        encoder_weights(source), "qt_unet_tiny", (32, 32, 32), 1, overrides=overrides, method="QTSSL"
    )
    checkpoint.save(tmp_path / "encoder.pth")
    specification = {"checkpoint": str(tmp_path / "encoder.pth")}
    with pytest.raises(ValueError, match="2d: the weights are of a 3D network"):
        attach(specification, "900", PLANS, "nnUNetQTUNetTPlans_ssl", ["2d"])
    path, reports, left = attach(specification, "900", PLANS, "nnUNetQTUNetTPlans_ssl")
    assert list(reports) == ["3d_fullres"]
    assert "3D network" in left["2d"]
    assert "initialisation" not in json.loads(path.read_text())["configurations"]["2d"]
    trainer = get_trainer_from_args("900", "3d_fullres", 0, "nnUNetTrainerQTUNet", path.stem, device=CPU)
    trainer.on_train_start()
    key = "encoder.stages.0.blocks.0.attn.qkv.weight"
    assert key in reports["3d_fullres"].loaded
    assert torch.equal(trainer.network.state_dict()[key], checkpoint.weights[key])
    log = next(Path(trainer.output_folder).glob("training_log*.txt")).read_text()
    assert "QTSSL of qt_unet_tiny" in log

    export_full(specification, "900", PLANS, "3d_fullres", tmp_path / "full.pth")
    trainer = get_trainer_from_args("900", "3d_fullres", 1, "nnUNetTrainerQTUNet", PLANS, device=CPU)
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(tmp_path / "full.pth"))
    assert torch.equal(trainer.network.state_dict()[key], checkpoint.weights[key])
    with pytest.raises(FileExistsError, match="exists"):
        export_full(specification, "900", PLANS, "3d_fullres", tmp_path / "full.pth")


def test_stock_primus_starts_from_a_pretrained_one(prepared, tmp_path):
    """An encoder of another patch, for the network that nnU-Net's own trainer builds."""
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    from nnunet_transformers.checkpoints import PrimusCheckpoint, create_primus, primus_weights
    from nnunet_transformers.plans.attach import attach, export_full

    stock = "nnUNet_Primus_S_Trainer"
    source = create_primus("primus_s", 2, (16, 16, 32))
    checkpoint = PrimusCheckpoint(primus_weights(source), "primus_s", (16, 16, 32), 2, method="Alice")
    checkpoint.save(tmp_path / "encoder.pth")
    specification = {"checkpoint": str(tmp_path / "encoder.pth")}
    with pytest.raises(ValueError, match="weights are of primus_s, the network is QTUNet"):
        attach(specification, "900", PLANS, "nnUNetQTUNetTPlans_primus")
    with pytest.raises(ValueError, match="Primus needs multiples of 8"):
        export_full(specification, "900", PLANS, "3d_fullres", tmp_path / "full.pth", stock)
    folder = prepared / "preprocessed" / "Dataset900_Balls"
    plan = json.loads((folder / f"{PLANS}.json").read_text())
    plan["plans_name"] = plans = "nnUNetPrimusPlans"
    plan["configurations"]["3d_fullres"]["patch_size"] = [24, 24, 16]
    (folder / f"{plans}.json").write_text(json.dumps(plan))
    report = export_full(specification, "900", plans, "3d_fullres", tmp_path / "full.pth", stock)
    assert set(report.adapted) == {"down_projection.proj.weight", "eva.pos_embed"}
    assert all(name.startswith("up_projection") for name in report.fresh)
    assert not report.unused
    trainer = get_trainer_from_args("900", "3d_fullres", 0, stock, plans, device=CPU)
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(tmp_path / "full.pth"))
    key = "eva.blocks.3.attn.q_proj.weight"
    assert torch.equal(trainer.network.state_dict()[key], checkpoint.weights[key])
    with pytest.raises(ValueError, match=r"396 channels in 12 layers.*has 792 in 12"):
        export_full(specification, "900", plans, "3d_fullres", tmp_path / "b.pth", "nnUNet_Primus_B_Trainer")
    with pytest.raises(RuntimeError, match="nnUNetTrainerNone"):
        export_full(specification, "900", plans, "3d_fullres", tmp_path / "b.pth", "nnUNetTrainerNone")


MGCA_NETWORKS = [
    ("nnUNetPlannerSETRPUP", "nnUNetTrainerSETRPUP", "vit_tiny_patch16_224"),
    ("nnUNetPlannerResNet50UNet", "nnUNetTrainerResNet50UNet", "resnet18"),
]


@pytest.fixture
def timm_plans(plan_with, tmp_path, request):
    """A plan, another that names a checkpoint of timm's network, the trainer, and the checkpoint as it is loaded."""
    from nnunet_transformers.checkpoints import TimmCheckpoint, create_timm, encoder_specification, load_encoder
    from nnunet_transformers.plans.attach import attach

    planner, trainer, name = request.param
    plans, path = plan_with(planner), tmp_path / "encoder.pth"
    source = create_timm(name, 3, (64, 64)).train()
    with torch.no_grad():
        source(torch.randn(2, 3, 64, 64))  # moves the statistics of batch norms
    TimmCheckpoint(source.state_dict(), name, (64, 64), 3, method="MGCA").save(path)
    attached, reports, _ = attach(encoder_specification(path), "900", plans, f"{plans}_mgca", force=True)
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
            RuntimeError, match=r"Paper keeps a pretrained encoder .* names no weights for 2d.* attach "
        ):
            get_trainer_from_args("900", "2d", 0, f"{trainer}Paper", plans, device=CPU)

    def test_it_rests_and_then_learns(self, prepared, timm_plans):
        _, attached, trainer, checkpoint = timm_plans
        fine_tuned = get_trainer_from_args("900", "2d", 0, trainer, attached, device=CPU)
        fine_tuned.on_train_start()
        norms = [m for m in fine_tuned.network.encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for epoch, rests in ((0, True), (49, True), (50, False)):
            fine_tuned.current_epoch = epoch
            fine_tuned.on_train_epoch_start()
            assert all(norm.training is not rests for norm in norms)
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


class TestRecipe:
    @pytest.fixture
    def trainer(self, prepared):
        trainer = get_trainer_from_args("900", "3d_fullres", 0, "nnUNetTrainerQTUNet", PLANS, device=CPU)
        trainer.initialize()
        return trainer

    def test_schedule_clip_and_decay(self, trainer):
        rates = []
        for epoch in (0, 25, 50, 500, 999):
            trainer.lr_scheduler.step(epoch)
            rates.append(trainer.optimizer.param_groups[0]["lr"])
        assert rates[0] < rates[1] < rates[2]
        assert rates[2] > rates[3] > rates[4] > 0
        assert max(rates) <= trainer.initial_lr
        assert rates[3] == pytest.approx(trainer.initial_lr * 0.5**0.9)
        for parameter in trainer.network.parameters():
            parameter.grad = torch.full_like(parameter, 10.0)
        trainer.optimizer.step()
        norm = torch.stack([p.grad.norm() for p in trainer.network.parameters()]).norm()
        assert norm == pytest.approx(1.0, rel=1e-3)
        decayed = {id(p) for g in trainer.optimizer.param_groups if g["weight_decay"] for p in g["params"]}
        for name, parameter in trainer.network.named_parameters():
            assert (id(parameter) in decayed) == (parameter.ndim > 1 and not name.endswith("bias.table")), name

    def test_bad_input_is_named(self, trainer):
        target = [torch.zeros(2, 1, *size) for size in self.output_sizes(trainer)]
        batch = {"data": torch.zeros(2, 1, *trainer.network.patch_size), "target": target, "keys": ["a", "b"]}
        trainer.current_epoch = 3
        bad = {**batch, "target": [t.clone() for t in target]}
        bad["target"][0][1, 0, 0, 0, 0] = 7
        with pytest.raises(RuntimeError, match=r"label 7 in case b is not in dataset.json \(labels 0 to 2\)"):
            trainer.train_step(bad)
        bad = {**batch, "data": batch["data"].clone()}
        bad["data"][0, 0, 0, 0, 0] = float("nan")
        with pytest.raises(RuntimeError, match="image of case a holds NaN"):
            trainer.train_step(bad)

    def test_divergence_says_what_to_do(self, trainer):
        with torch.no_grad():
            trainer.network.stem.proj.weight.fill_(float("inf"))
        target = [torch.zeros(2, 1, *size) for size in self.output_sizes(trainer)]
        batch = {"data": torch.ones(2, 1, *trainer.network.patch_size), "target": target, "keys": ["a", "b"]}
        with pytest.raises(RuntimeError, match=r"training diverged.*--c.*lower rate"):
            trainer.train_step(batch)

    def output_sizes(self, trainer):
        scales = trainer._get_deep_supervision_scales()
        return [[round(n * s) for n, s in zip(trainer.network.patch_size, scale, strict=True)] for scale in scales]


class TestCheckpoints:
    @pytest.fixture
    def trained(self, prepared):
        trainer = get_trainer_from_args("900", "3d_fullres", 0, TRAINER, PLANS, device=CPU)
        trainer.initialize()
        trainer.logger.log("epoch_start_timestamps", 0.0, 0)
        path = Path(trainer.output_folder) / "checkpoint_latest.pth"
        trainer.save_checkpoint(str(path))
        return trainer, path

    def test_full_disk_keeps_the_last_good_one(self, trained):
        resource = pytest.importorskip("resource")
        signal = pytest.importorskip("signal")
        trainer, path = trained
        before = path.read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            # the system refuses to write more, as it does on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
            with pytest.raises(RuntimeError, match=r"could not write .*Free some space"):
                trainer.save_checkpoint(str(path))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        assert path.read_bytes() == before
        assert list(path.parent.glob("*.partial")) == []
        trainer.load_checkpoint(str(path))

    def test_other_ranks_leave_files_alone(self, trained):
        trainer, path = trained
        stale = path.with_name(f"{path.name}.partial")
        stale.write_text("half")
        before = path.read_bytes()
        trainer.local_rank = 1
        trainer.save_checkpoint(str(path))
        assert (path.read_bytes(), stale.read_text()) == (before, "half")
        stale.unlink()

    def test_truncated(self, trained):
        trainer, path = trained
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(RuntimeError, match="is truncated or not a checkpoint"):
            trainer.load_checkpoint(str(path))

    def test_of_another_network(self, trained):
        trainer, path = trained
        checkpoint = torch.load(path, weights_only=False)
        checkpoint["network_weights"] = {"conv.weight": torch.zeros(1)}
        torch.save(checkpoint, path)
        with pytest.raises(RuntimeError, match="belongs to another network or plan"):
            trainer.load_checkpoint(str(path))


def test_plan_of_another_network(nnunet_folders, monkeypatch):
    write_dataset(nnunet_folders / "raw")
    extract_fingerprints([900], num_processes=1)
    plan_experiments([900])
    with pytest.raises(
        RuntimeError, match=r"nnUNetPlans plans .*PlainConvUNet.*-pl nnUNetPlannerQTUNetT` .or nnUNetPlannerQTUNetS"
    ):
        get_trainer_from_args("900", "3d_fullres", 0, TRAINER, "nnUNetPlans", device=CPU)
    with pytest.raises(RuntimeError, match="-pl nnUNetPlannerSETRPUP` and train with `-p nnUNetSETRPUPPlans`"):
        get_trainer_from_args("900", "2d", 0, "nnUNetTrainerSETRPUP", "nnUNetPlans", device=CPU)
    assert not any((nnunet_folders / "results").iterdir())


def test_linear_probe(prepared, tmp_path, monkeypatch):
    """Heads are trained on an encoder that stays as it was; `probe segment` from checkpoint to Dice."""
    from typer.testing import CliRunner

    from nnunet_transformers import cli
    from nnunet_transformers.architectures import create_network
    from nnunet_transformers.checkpoints import EncoderCheckpoint, encoder_weights

    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    planned = json.loads((prepared / "preprocessed" / "Dataset900_Balls" / f"{PLANS}.json").read_text())
    planned = planned["configurations"]["3d_fullres"]
    overrides = {k: v for k, v in planned["architecture"]["arch_kwargs"].items() if k not in ("patch_size", "strides")}
    patch_size = tuple(planned["patch_size"])
    source = create_network("qt_unet_tiny", 1, 2, patch_size, **overrides)
    checkpoint = EncoderCheckpoint(encoder_weights(source), "qt_unet_tiny", patch_size, 1, overrides=overrides)
    checkpoint.save(tmp_path / "encoder.pth")
    arguments = [tmp_path / "encoder.pth", "-d", 900, "-p", PLANS, "-tr", "nnUNetTrainerLinearProbe_1epoch"]
    result = CliRunner().invoke(cli.app, ["probe", "segment", *map(str, arguments), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "label 1: Dice" in result.output
    (path,) = (prepared / "preprocessed" / "Dataset900_Balls").glob(f"{PLANS}_probe_*.json")
    model = model_folder(prepared, trainer="nnUNetTrainerLinearProbe_1epoch", plans=path.stem)
    weights = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    for name, value in encoder_weights(source).items():
        assert torch.equal(weights[f"network.{name}"], value), name
    assert weights["heads.0.0.running_mean"].abs().sum() > 0
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    plan_experiments([900])
    with pytest.raises(RuntimeError, match=r"trains nnunet_transformers.architectures, but nnUNetPlans plans"):
        get_trainer_from_args("900", "3d_fullres", 0, "nnUNetTrainerLinearProbe", "nnUNetPlans", device=CPU)
