"""Ordinary mistakes, the folder in which they are made, and what the commands say."""

from __future__ import annotations

import io
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
import yaml

from nnunet_transformers import _one_line, cli
from nnunet_transformers.architectures import create_network
from nnunet_transformers.pretraining.data.prepare import prepare_folder
from nnunet_transformers.weights import EncoderCheckpoint, encoder_weights
from tests.conftest import set_nnunet_folders, write_dataset
from tests.sharing.conftest import MODEL, initialise
from tests.trainers.conftest import PLANNER

TABLE = Path(__file__).parent / "mistakes.yaml"
# what stands for the folder in messages, and for the model's folder in commands
HOME = "/home/me"
MODEL_FOLDER = f"results/Dataset900_Balls/{MODEL}"
OVERRIDES = {"patch_embed_stride": 2, "num_stages": 3, "window_sizes": 4, "norm_placement": "pre"}


@dataclass(frozen=True, eq=False)
class Mistake:
    """A row of mistakes.yaml; ``command`` is its ``run`` with the model's folder put in."""

    group: str
    mistake: str
    command: str
    says: str
    unset: tuple[str, ...] = ()
    set: dict[str, str] = field(default_factory=dict)
    write: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Said:
    """What a command has said: its exit code, the line of its message, all of stderr, and files that it has left."""

    code: int
    line: str
    errors: str
    left: frozenset[Path]


def read() -> list[Mistake]:
    """Read the mistakes."""
    return [
        Mistake(
            group["group"],
            row["mistake"],
            row["run"].replace("MODEL", MODEL_FOLDER),
            row["says"],
            tuple(row.get("unset", ())),
            row.get("set", {}),
            row.get("write", {}),
        )
        for group in yaml.safe_load(TABLE.read_text(encoding="utf-8"))
        for row in group["mistakes"]
    ]


def build(folder: Path) -> None:
    """Make nnU-Net's folders with a planned dataset, its prepared images, an encoder, and a model of one fold."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments

    with pytest.MonkeyPatch.context() as monkeypatch:
        set_nnunet_folders(folder, monkeypatch)
        monkeypatch.setenv("nnUNet_n_proc_DA", "1")
        dataset = write_dataset(folder / "raw", cases=5)
        extract_fingerprints([900], num_processes=1)
        plan_experiments([900], PLANNER, gpu_memory_target_in_gb=2)
        initialise(folder)
        prepare_folder(dataset, folder / "prepared", patch_size=(16, 16, 16), processes=1)
    network = create_network("qt_unet_tiny", 1, 2, (16, 16, 16), **OVERRIDES)
    encoder = EncoderCheckpoint(
        encoder_weights(network), "qt_unet_tiny", (16, 16, 16), 1, overrides=OVERRIDES, method="QTSSL"
    )
    encoder.save(folder / "encoder.pth")
    for path in (folder / "preprocessed").rglob("*.b2nd"):
        path.unlink()  # by which an untrained model was made


@contextmanager
def entered(folder: Path, mistake: Mistake) -> Iterator[None]:
    """Work in the folder, with the files and variables of a mistake."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_nnunet_folders(folder, monkeypatch)
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
        monkeypatch.setattr(_one_line, "_suggested", set())
        monkeypatch.setattr(torch, "set_num_interop_threads", lambda number: None)  # once in a process
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "cache"))
        monkeypatch.setattr(
            "huggingface_hub.constants.ENDPOINT", mistake.set.get("HF_ENDPOINT", "https://huggingface.co")
        )
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", "HF_HUB_OFFLINE" in mistake.set)
        for name in mistake.unset:
            monkeypatch.delenv(name)
        for name, text in mistake.write.items():
            (folder / name).write_text(text)
        try:
            yield
        finally:
            for name in mistake.write:
                (folder / name).unlink()


def run(folder: Path, mistake: Mistake) -> Said:
    """Make a mistake in this process, as a user would type it, and remove what it leaves."""
    before = set(folder.rglob("*"))
    program, *arguments = shlex.split(mistake.command)
    errors, code = io.StringIO(), 0
    with entered(folder, mistake), pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        main = cli.main
        if program != cli.PROGRAM:
            (entry,) = entry_points(group="console_scripts", name=program)
            main = entry.load()
        with redirect_stdout(io.StringIO()), redirect_stderr(errors):
            try:
                main()
            except SystemExit as end:
                code = int(end.code or 0)
            except Exception as error:
                sys.excepthook(type(error), error, error.__traceback__)
                code = 1
    # of which systems have other numbers
    text = re.sub(r"\[Errno -?\d+\] ", "", errors.getvalue().replace(str(folder), HOME))
    lines = [line for line in text.splitlines() if line.strip()]
    left = set(folder.rglob("*")) - before
    for path in sorted(left, reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    return Said(code, lines[-1] if lines else "", text, frozenset(left))
