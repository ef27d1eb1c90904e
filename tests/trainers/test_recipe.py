"""The trainer's recipe, checkpoints and errors, without a complete training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_transformers.cpu.linear import CPULinear
from nnunet_transformers.trainers.qt_unet import nnUNetTrainerQTUNet
from tests.conftest import write_dataset

from .conftest import CPU, PLANS, TRAINER


class TestRecipe:
    @pytest.fixture
    def trainer(self, prepared):
        """In 2D, whose steps take a tenth of the time."""
        trainer = get_trainer_from_args("900", "2d", 0, "nnUNetTrainerQTUNet", PLANS, device=CPU)
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

    def test_the_rate_follows_the_iterations(self, trainer):
        """Of an epoch and of the next, from its start."""
        trainer.num_iterations_per_epoch = 2
        rates = []
        for epoch in (500, 501):
            trainer.current_epoch = epoch
            trainer.on_train_epoch_start()
            for _ in range(2):
                trainer.train_step(self.batch_of(trainer))
                rates.append(trainer.optimizer.param_groups[0]["lr"])
        expected = [trainer.initial_lr * (1 - progress / 1000) ** 0.9 for progress in (500, 500.5, 501, 501.5)]
        assert rates == pytest.approx(expected)

    def test_optimiser_is_fused(self, trainer):
        """On CPU, where PyTorch's own choice takes three times as long."""
        assert all(group["fused"] is True for group in trainer.optimizer.param_groups)

    def batch_of(self, trainer):
        patch = trainer.plain_network.patch_size
        target = [
            torch.zeros(2, 1, *[round(n * s) for n, s in zip(patch, scale, strict=True)])
            for scale in trainer._get_deep_supervision_scales()
        ]
        return {"data": torch.randn(2, 1, *patch), "target": target, "keys": ["a", "b"]}

    def test_network_has_its_cpu_kernels(self, trainer):
        assert any(isinstance(module, CPULinear) for module in trainer.network.modules())
        optimised = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
        assert optimised == {id(p) for p in trainer.network.parameters()}

    def test_bad_input_is_named(self, trainer):
        target = [torch.zeros(2, 1, *size) for size in self.output_sizes(trainer)]
        batch = {"data": torch.zeros(2, 1, *trainer.network.patch_size), "target": target, "keys": ["a", "b"]}
        trainer.current_epoch = 3
        bad = {**batch, "target": [t.clone() for t in target]}
        bad["target"][0][1, 0, 0, 0] = 7
        with pytest.raises(RuntimeError, match=r"label 7 in case b is not in dataset.json \(labels 0 to 2\)"):
            trainer.train_step(bad)
        bad = {**batch, "data": batch["data"].clone()}
        bad["data"][0, 0, 0, 0] = float("nan")
        with pytest.raises(RuntimeError, match="image of case a holds NaN"):
            trainer.train_step(bad)

    def test_divergence_states_the_remedy(self, trainer):
        with torch.no_grad():
            trainer.network.stem.proj.weight.fill_(float("inf"))
        target = [torch.zeros(2, 1, *size) for size in self.output_sizes(trainer)]
        batch = {"data": torch.ones(2, 1, *trainer.network.patch_size), "target": target, "keys": ["a", "b"]}
        with pytest.raises(RuntimeError, match=r"training diverged.*--c.*lower rate"):
            trainer.train_step(batch)

    def batch(self, trainer):
        target = [torch.zeros(2, 1, *size) for size in self.output_sizes(trainer)]
        return {"data": torch.ones(2, 1, *trainer.network.patch_size), "target": target, "keys": ["a", "b"]}

    def test_overflows_under_a_scaler_are_skipped(self, trainer, monkeypatch):
        monkeypatch.setattr("nnunet_transformers.trainers.trainer.MAX_OVERFLOWS", 2)
        trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        overflows = []
        trainer.network.stem.register_forward_hook(lambda _, __, tokens: tokens * float("inf" if overflows else 1))
        weights = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}

        def moved():
            return any(not torch.equal(p, weights[name]) for name, p in trainer.network.named_parameters())

        overflows.append(True)
        assert not torch.isfinite(torch.tensor(trainer.train_step(self.batch(trainer))["loss"]))
        assert not moved()
        assert trainer.grad_scaler.get_scale() == 512.0
        overflows.clear()
        trainer.train_step(self.batch(trainer))
        assert moved()
        # a finite loss starts the count again
        overflows.append(True)
        trainer.train_step(self.batch(trainer))
        with pytest.raises(RuntimeError, match=r"not finite for 2 iterations in a row\. .* training diverged"):
            trainer.train_step(self.batch(trainer))

    def test_images_that_are_not_finite_stop_it_under_a_scaler_as_well(self, trainer):
        trainer.grad_scaler = torch.amp.GradScaler("cpu")
        batch = self.batch(trainer)
        batch["data"][1, 0, 0, 0] = float("inf")
        with pytest.raises(RuntimeError, match="image of case b holds NaN or infinity"):
            trainer.train_step(batch)

    def output_sizes(self, trainer):
        scales = trainer._get_deep_supervision_scales()
        return [[round(n * s) for n, s in zip(trainer.network.patch_size, scale, strict=True)] for scale in scales]


@pytest.mark.parametrize("off", ["class", "instance"])
def test_every_parameter_has_a_gradient_without_deep_supervision(prepared, monkeypatch, off):
    """As DDP requires; inference builds the same network from the plan beside the model."""
    if off == "class":
        monkeypatch.setattr(nnUNetTrainerQTUNet, "default_deep_supervision", False)
    trainer = get_trainer_from_args("900", "3d_fullres", 0, "nnUNetTrainerQTUNet", PLANS, device=CPU)
    if off == "instance":
        trainer.enable_deep_supervision = False
    trainer.initialize()
    patch_size = trainer.network.patch_size
    batch = {"data": torch.randn(2, 1, *patch_size), "target": torch.zeros(2, 1, *patch_size), "keys": ["a", "b"]}
    trainer.train_step(batch)
    assert [name for name, p in trainer.network.named_parameters() if p.grad is None] == []
    stored = PlansManager(trainer.plans_manager.plans).get_configuration("3d_fullres")
    network = nnUNetTrainer.build_network_architecture(None, stored, 1, 3, False)
    network.load_state_dict(trainer.network.state_dict())


@pytest.mark.parametrize("heads", [None, True, False])
def test_deep_supervision_needs_auxiliary_heads(prepared, heads):
    """A plan that does not mention them is of a network that has them."""
    folder = prepared / "preprocessed/Dataset900_Balls"
    plans, dataset = (json.loads((folder / name).read_text()) for name in (f"{PLANS}.json", "dataset.json"))
    arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    del arguments["auxiliary_heads"]
    if heads is not None:
        arguments["auxiliary_heads"] = heads
    trainer = nnUNetTrainerQTUNet({**plans, "continue_training": False}, "3d_fullres", 0, dataset, CPU)
    assert trainer.enable_deep_supervision is (heads is not False)


def test_labels_with_a_gap(prepared):
    plans = json.loads((prepared / "preprocessed/Dataset900_Balls" / f"{PLANS}.json").read_text())
    dataset = json.loads((prepared / "preprocessed/Dataset900_Balls/dataset.json").read_text())
    plans["continue_training"] = False

    def make(labels, **entries):
        labels = {**dataset, "labels": {"background": 0, **labels}, **entries}
        return nnUNetTrainerQTUNet(dict(plans), "3d_fullres", 0, labels, CPU)

    with pytest.raises(ValueError, match=r"labels in dataset.json are 0, 1, 3, but"):
        make({"a": 1, "b": 3})
    trainer = make({"a": 1, "b": 2, "ignore": 3})
    batch = {"target": torch.tensor([0, 1, 2, 3.0]).view(1, 1, 4), "keys": ["case"]}
    trainer._check_labels(batch)
    batch["target"][0, 0, 0] = 4
    with pytest.raises(RuntimeError, match=r"label 4 in case case is not in dataset.json \(labels 0 to 3\)"):
        trainer._check_labels(batch)
    make({"all": [1, 3], "b": 3}, regions_class_order=[1, 3])._check_labels(batch)


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
            # writing fails as on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
            with pytest.raises(RuntimeError, match=r"could not write .*Free some space"):
                trainer.save_checkpoint(str(path))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        assert path.read_bytes() == before
        assert list(path.parent.glob("*.partial*")) == []
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

    def test_damaged(self, trained):
        """PyTorch would load it: the damage is in a weight."""
        trainer, path = trained
        content = bytearray(path.read_bytes())
        weight = max(trainer.network.state_dict().values(), key=torch.numel).cpu().numpy().tobytes()
        content[content.index(weight) + len(weight) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(RuntimeError, match=r"is truncated or not a checkpoint: .*'.*' is not as it was written"):
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
    with pytest.raises(RuntimeError, match=r"-pl nnUNetPlannerSETRPUP` .or .*train with `-p nnUNetSETRPUPPlans`"):
        get_trainer_from_args("900", "2d", 0, "nnUNetTrainerSETRPUP", "nnUNetPlans", device=CPU)
    assert not any((nnunet_folders / "results").iterdir())
