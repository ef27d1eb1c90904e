"""What a run finds in its folder, and how long its epochs are."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.environments import SLURMEnvironment
from torch.utils.data import TensorDataset

from nnunet_transformers.runs import command_line
from nnunet_transformers.runs.callbacks import CollapseMonitor, SeedEveryBatch
from nnunet_transformers.runs.command_line import _check_folder, _is_newest_of_requeue, is_requeued
from nnunet_transformers.runs.state import EpochState, RestSampler, ResumableLoader, SettingsOfTheCommand


class TestRequeue:
    @pytest.fixture
    def folder(self, tmp_path):
        for number, name in enumerate(("last.ckpt", "hpc_ckpt_1.ckpt")):
            (tmp_path / name).touch()
            os.utime(tmp_path / name, (number, number))
        return tmp_path

    def test_without_slurm_a_run_is_not_overwritten(self, folder, monkeypatch):
        monkeypatch.setattr(SLURMEnvironment, "detect", staticmethod(lambda: False))
        assert not is_requeued(folder)
        with pytest.raises(FileExistsError, match="already holds a run: resume it with --ckpt_path last"):
            _check_folder(folder, None, ["encoder.pth"])

    def test_a_requeued_job_goes_on_from_the_newest_state(self, folder, monkeypatch):
        monkeypatch.setattr(SLURMEnvironment, "detect", staticmethod(lambda: True))
        assert is_requeued(folder)
        _check_folder(folder, None, ["encoder.pth"])
        assert _is_newest_of_requeue(folder)
        os.utime(folder / "last.ckpt", (5, 5))
        assert not _is_newest_of_requeue(folder)
        cli = SimpleNamespace(
            check=lambda: None,
            model=None,
            held=SimpleNamespace(enter_context=lambda lease: None),
            written=(),
            config=SimpleNamespace(
                fit=SimpleNamespace(ckpt_path=None, trainer=SimpleNamespace(logger=False)),
            ),
            config_init=SimpleNamespace(fit=SimpleNamespace(ckpt_path=None)),
            trainer=SimpleNamespace(
                accelerator=None,
                default_root_dir=str(folder),
                checkpoint_callbacks=[],
                strategy=SimpleNamespace(checkpoint_io=None),
                is_global_zero=True,
            ),
        )
        command_line.RecipeCLI.before_fit(cli)
        assert cli.config_init.fit.ckpt_path == "last"


@pytest.mark.parametrize(
    ("samples", "world", "accumulated", "whole"),
    [(160, 1, 4, 128), (256, 1, 4, 256), (100, 2, 2, 64), (33, 1, 1, 32), (47, 1, 2, 0)],
)
def test_epochs_are_whole_steps(samples, world, accumulated, whole):
    """Of batches of 32 or 16; Lightning would make a step of the batches that are left, with a smaller gradient."""
    batch_size = 32 if world == 1 else 16
    drawn = []
    for rank in range(world):
        trainer = SimpleNamespace(world_size=world, global_rank=rank, accumulate_grad_batches=accumulated)
        sampler = RestSampler(TensorDataset(torch.zeros(samples)), trainer, batch_size)
        own = list(sampler)
        assert len(sampler) == len(own) and len(own) % (batch_size * accumulated) == 0
        drawn += own
    assert sorted(drawn) == list(range(whole))


@pytest.mark.parametrize("batch_size", [2, 4, 8])
def test_an_epoch_goes_on_with_another_batch_size(batch_size):
    """A run that memory ended goes on with smaller batches: no sample is left out, or seen again."""

    def loader(batch_size, processed):
        current = SimpleNamespace(processed=processed)
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=current)))
        trainer = SimpleNamespace(world_size=1, global_rank=0, accumulate_grad_batches=1, fit_loop=loop)
        return ResumableLoader(range(64), batch_size, trainer)

    state = loader(4, 6).state_dict()
    resumed = loader(batch_size, 0)
    resumed.load_state_dict(state)
    assert torch.cat([*resumed]).tolist() == [*range(24, 64)]
    resumed.load_state_dict({"batches": 6})  # of a former version
    assert next(iter(resumed))[0] == 6 * batch_size


def test_seed_is_that_of_the_run(monkeypatch):
    """Callbacks are made before the seed is set, and several runs may follow each other in a process."""
    drawn = []
    for seed in ("5", "6", "5"):
        callback = SeedEveryBatch()
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        trainer = SimpleNamespace(current_epoch=1, global_rank=0)
        callback.on_fit_start(trainer, None)
        callback.on_train_batch_start(trainer, None, None, 2)
        drawn.append(float(torch.rand(1)))
    assert drawn[0] == drawn[2] != drawn[1]


class Toy(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, index):
        return self.layer(batch[0]).mean()

    validation_step = training_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_state_of_every_epoch_after_its_files(tmp_path):
    """Also where held-out images are evaluated after some epochs only."""
    written = []

    class Noted(EpochState):
        def _save_checkpoint(self, trainer, path):
            written.append(trainer.current_epoch)

    loader = torch.utils.data.DataLoader(TensorDataset(torch.zeros(4, 1)), 2)
    trainer = Trainer(
        max_epochs=5,
        check_val_every_n_epoch=3,
        callbacks=[Noted()],
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Toy(), loader, loader)
    assert written == [0, 1, 2, 3, 4]


class Scheduled(Toy):
    def __init__(self, lr, schedule):
        super().__init__()
        self.lr, self.schedule = lr, schedule

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), self.lr, momentum=10 * self.lr)
        if self.schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule(optimizer), "interval": "step"}}


@pytest.mark.parametrize(
    ("schedule", "halved"),
    [
        (None, (False, False)),
        (lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5), (True, True)),
        (lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 ** (step // 2)), (True, True)),
        (lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, 0.5, 99), (True, True)),
    ],
    ids=["none", "chained", "closed form", "warm-up"],
)
def test_resumed_with_the_rate_of_the_command(tmp_path, schedule, halved):
    """Where the schedule has got to, whatever schedule a method has; a rate that is the same stays to the last bit."""
    loader = torch.utils.data.DataLoader(TensorDataset(torch.zeros(4, 1)), 2)
    rates = {}

    def run(lr, epochs, state=None):
        rates[lr] = []

        class Noted(Scheduled):
            def on_before_optimizer_step(self, optimizer):
                (group,) = optimizer.param_groups
                assert group["momentum"] == 10 * lr
                rates[lr].append(group["lr"])

        trainer = Trainer(
            max_epochs=epochs,
            callbacks=[SettingsOfTheCommand(), EpochState()],
            default_root_dir=tmp_path,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Noted(lr, schedule), loader, ckpt_path=state)
        return trainer

    run(0.08, 1).save_checkpoint(tmp_path / "one.ckpt")
    run(0.02, 2, tmp_path / "one.ckpt")
    resumed = rates[0.02]
    run(0.08, 2, tmp_path / "one.ckpt")
    assert resumed == pytest.approx([0.02 * (0.5 if half else 1) for half in halved])
    assert rates[0.08] == [0.08 * (0.5 if half else 1) for half in halved]


def test_one_image_a_device_is_no_divergence():
    monitor = CollapseMonitor()
    trainer = SimpleNamespace(current_epoch=0, global_step=1, callback_metrics={"loss": torch.tensor(1.0)})
    monitor.on_train_batch_end(trainer, None, None, None, 0)
    assert monitor.below == 0
