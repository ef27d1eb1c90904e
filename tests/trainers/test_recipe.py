"""The trainer's recipe, checkpoints and errors, without a complete training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments
from nnunetv2.run.run_training import get_trainer_from_args

from nnunet_transformers.cpu.linear import CPULinear
from tests.conftest import write_dataset

from .conftest import CPU, PLANS, TRAINER


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

    def test_network_has_its_cpu_kernels(self, trainer):
        assert any(isinstance(module, CPULinear) for module in trainer.network.modules())
        optimised = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
        assert optimised == {id(p) for p in trainer.network.parameters()}

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

    def test_divergence_states_the_remedy(self, trainer):
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
            # writing fails as on a full disk
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
    with pytest.raises(RuntimeError, match="-pl nnUNetPlannerSETRPUP` and train with `-p nnUNetSETRPUPPlans`"):
        get_trainer_from_args("900", "2d", 0, "nnUNetTrainerSETRPUP", "nnUNetPlans", device=CPU)
    assert not any((nnunet_folders / "results").iterdir())
