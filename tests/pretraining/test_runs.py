"""Whole runs of methods: killed and resumed, and in two processes."""

from __future__ import annotations

import csv
import os
import signal
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from nnunet_transformers import cli
from nnunet_transformers.pretraining.data.prepare import prepare
from nnunet_transformers.weights import load_encoder
from nnunet_transformers.weights.file import read_state
from tests.conftest import write_dataset

COMMAND = Path(sys.executable).with_name("nnunet-transformers")
IMPORTED = ["nnunet_transformers.cli", "nnunet_transformers.pretraining.fit", "tests.pretraining.killer"]
IMPORTED += [f"nnunet_transformers.pretraining.methods.{name}" for name in ("qt_ssl", "unimiss")] + ["omegaconf"]
IMPORTED += [f"nnunet_transformers.pretraining.data.{name}" for name in ("masked_views", "two_views")]
EPOCHS, STEPS = 2, 4
# without drop path, whose random numbers differ between processes
QT_UNET = '{"embed_dim": 12, "patch_embed_stride": 2, "num_stages": 2, "window_sizes": 4, "drop_path_rate": 0}'
MIT = '{"embed_dims": [48,48,48,48], "num_heads": [1,1,1,1], "decoder_num_heads": [1,1,1]}'
METHODS = {
    "qt_ssl_in_task": {
        "data.init_args.folder": None,
        "model.init_args.patch_size": "[16,16,16]",
        "model.init_args.network_overrides": QT_UNET,
        "model.init_args.lr": 1e-2,
        "trainer.accumulate_grad_batches": 1,
    },
    "unimiss": {
        "data.init_args.folder_3d": None,
        "data.init_args.period": 1,
        "model.init_args.network": "mit_7",
        "model.init_args.network_overrides": MIT,
        "model.init_args.patch_size_2d": "[32,64]",
        "model.init_args.patch_size_3d": "[16,32,64]",
        "model.init_args.output_dim": 32,
        "model.init_args.lr": 0.02,  # for a batch of 256
        "trainer.accumulate_grad_batches": 1,
    },
}
RATES = {"qt_ssl_in_task": 1e-2, "unimiss": 0.02 * 4 / 256}
ENCODERS = {"qt_ssl_in_task": "encoder.pth", "unimiss": "encoder_3d.pth"}
# optimiser steps within which runs are killed, and whether a state is written after every step: in the first epoch,
# whose loader Lightning builds before it reads the state, and in a later one
KILLED_AT = {"qt_ssl_in_task": ((2, False), (2, True)), "unimiss": ((STEPS + 2, True),)}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    prepare(write_dataset(folder / "raw", cases=4), folder / "prepared", patch_size=(16, 32, 64))
    return folder / "prepared"


def command(recipe: str, prepared: Path, folder: Path, *arguments: str, batch_size: int = 2) -> list[str]:
    """Return the command line that runs a recipe."""
    settings = {name: prepared if value is None else value for name, value in METHODS[recipe].items()}
    settings |= {
        "data.init_args.batch_size": batch_size,
        "data.init_args.samples_per_epoch": 2 * STEPS,
        "data.init_args.num_workers": 0,
        "model.init_args.warmup_epochs": 1,
        "trainer.max_epochs": EPOCHS,
        "trainer.accelerator": "cpu",
        "trainer.default_root_dir": folder,
        "trainer.enable_progress_bar": "false",
        "trainer.log_every_n_steps": 1,
        "trainer.logger": "CSVLogger",
        "trainer.logger.init_args.save_dir": folder,
    }
    options = [f"--{name}={value}" for name, value in settings.items()]
    return [str(COMMAND), "pretrain", "fit", "--config", recipe, *options, *arguments]


def metrics(folder: Path) -> list[dict[str, str]]:
    """Return the logged metrics of the last run in a folder, one row per optimiser step."""
    versions = sorted((folder / "lightning_logs").iterdir(), key=lambda path: int(path.name.removeprefix("version_")))
    with open(versions[-1] / "metrics.csv") as file:
        return list(csv.DictReader(file))


def main_in(environment: dict[str, str]) -> None:
    """Run the command with variables of the environment, which a process of a fork server does not inherit."""
    os.environ.update(environment)
    # for Lightning, which starts further processes: that of a script, where this has pytest's
    sys.modules["__main__"].__spec__ = None
    cli.main()


@pytest.fixture(scope="module")
def run(prepared):
    """Run a recipe in a process forked from one with all imports done; return the exit status."""
    context = get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)

    def run(recipe: str, folder: Path, *arguments: str, batch_size: int = 2, **environment: str) -> int:
        process = context.Process(target=main_in, args=(environment,))
        with pytest.MonkeyPatch.context() as monkeypatch:
            # the new process inherits the arguments of this one
            monkeypatch.setattr(sys, "argv", command(recipe, prepared, folder, *arguments, batch_size=batch_size))
            process.start()
        process.join()
        return process.exitcode

    return run


@pytest.mark.parametrize("recipe", METHODS)
class TestRuns:
    def test_killed_run_resumes(self, recipe, run, tmp_path):
        """After the last whole epoch, or with a state after every step after the last step."""
        assert run(recipe, tmp_path / "whole") == 0
        every_step = ["--trainer.callbacks+=nnunet_transformers.runs.state.StepState"]
        every_step += ["--trainer.callbacks.init_args.interval=0:0:0"]
        for step, has_state_of_step in KILLED_AT[recipe]:
            options = every_step if has_state_of_step else []
            folder = tmp_path / f"killed_at_{step}_{len(options)}"
            kill = [
                *options,
                "--trainer.callbacks+=tests.pretraining.killer.KillAt",
                f"--trainer.callbacks.init_args.step={step}",
            ]
            assert run(recipe, folder, *kill) == -signal.SIGKILL, step
            assert (folder / "last.ckpt").exists(), step
            assert run(recipe, folder, "--ckpt_path=last", *options) == 0, step
            # what was done before the state was written is not repeated
            first = step if options else STEPS * (step // STEPS)
            trained = list(range(first, EPOCHS * STEPS))
            assert [int(row["step"]) for row in metrics(folder)] == trained, step
            whole, resumed = (load_encoder(f / ENCODERS[recipe]).weights for f in (tmp_path / "whole", folder))
            for name, value in whole.items():
                assert torch.equal(value, resumed[name]), (step, name)
            assert not [*folder.glob("*.partial*"), *folder.glob("*.lease")]

    def test_two_processes_equal_one_with_twice_the_batch(self, recipe, run, tmp_path):
        """Lightning runs the command a second time for the second process; with "fork" it does not import again."""
        strategy = "ddp_fork_find_unused_parameters_true" if recipe == "unimiss" else "ddp"
        assert run(recipe, tmp_path / "two", f"--trainer.strategy={strategy}", "--trainer.devices=2") == 0
        assert run(recipe, tmp_path / "one", batch_size=4) == 0
        rows = [metrics(tmp_path / name) for name in ("one", "two")]
        assert len(rows[0]) == len(rows[1]) == EPOCHS * STEPS // 2
        losses = [name for name in rows[0][0] if "loss" in name]
        for one, two in zip(*rows, strict=True):
            for name in (name for name in losses if one[name]):
                assert float(two[name]) == pytest.approx(float(one[name]), rel=1e-2), (name, one["step"])
        # Adam's steps are about as long as its rate, so runs without shared gradients would differ by that much
        one, two = (load_encoder(tmp_path / n / ENCODERS[recipe]).weights for n in ("one", "two"))
        apart = torch.cat([(one[n] - two[n]).flatten() for n in one]).square().mean().sqrt()
        assert apart < 0.1 * RATES[recipe] * len(rows[0])


ACCUMULATE = "--trainer.accumulate_grad_batches=2"


@pytest.fixture(scope="module")
def accumulated(run, tmp_path_factory):
    """Weights of the encoder of a run that accumulates gradients."""
    folder = tmp_path_factory.mktemp("accumulated")
    assert run("qt_ssl_in_task", folder, ACCUMULATE) == 0
    return load_encoder(folder / ENCODERS["qt_ssl_in_task"]).weights


@pytest.mark.parametrize(("batch", "step"), [(0, 1), (STEPS - 2, 2)])
def test_requeue_while_gradients_accumulate(batch, step, run, accumulated, tmp_path):
    """The state is that of the step's end, in the epoch or at its end: the job ends as one that was not requeued."""
    recipe, folder = "qt_ssl_in_task", tmp_path / "requeued"
    scontrol = tmp_path / "bin/scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text("#!/bin/sh\nkill -9 $PPID\n")  # as SLURM ends the job that it requeues
    scontrol.chmod(0o755)
    job = {"NTASKS": 1, "NNODES": 1, "JOB_ID": 7, "JOB_NAME": "pretrain", "PROCID": 0, "LOCALID": 0, "NODEID": 0}
    environment = {f"SLURM_{name}": str(value) for name, value in job.items()}
    environment["PATH"] = f"{scontrol.parent}:{os.environ['PATH']}"
    requeue = [
        "--trainer.callbacks+=tests.pretraining.killer.RequeueAt",
        f"--trainer.callbacks.init_args.batch={batch}",
    ]
    for options, status in ((requeue, -signal.SIGKILL), ([], 0)):
        assert run(recipe, folder, ACCUMULATE, *options, **environment) == status
        assert read_state(folder / "hpc_ckpt_1.ckpt")["global_step"] == step
    assert int(metrics(folder)[0]["step"]) == step
    requeued = load_encoder(folder / ENCODERS[recipe]).weights
    assert all(torch.equal(value, requeued[name]) for name, value in accumulated.items())
