"""Shared fixtures: nnU-Net's three folders and a small labelled dataset in its raw layout.

Functions import what takes long to import, so that pytest-xdist's own process, which runs no test, starts its workers
at once.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from multiprocessing.context import BaseContext, SpawnContext
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

# folders and modules of tests that run nnU-Net's pools, or ours
LIGHT = {
    "classification",
    "detection",
    "evaluation",
    "inference",
    "plans",
    "mistakes",
    "pretraining",
    "sharing",
    "trainers",
    "weights",
}
LIGHT |= {"test_cli.py", "test_docs.py", "test_security.py"}
# the module of the fixture ``hostile``
HOSTILE = "stranger"
EXAMPLES = Path(__file__).parents[1] / "docs/examples"
# scripts there import each other; at the end, as some have names of other modules
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

os.environ.setdefault("nnUNet_def_n_proc", "1")
os.environ.setdefault("nnUNet_n_proc_DA", "1")


def pytest_collection() -> None:
    """Before the first module of tests is imported, in a process that runs them: pytest-xdist's own collects none."""
    from hypothesis import settings

    # the same examples in every run of CI; elsewhere new ones each time
    settings.register_profile("ci", derandomize=True)
    if os.environ.get("CI"):
        settings.load_profile("ci")
    _state_at_start.update(_global_state())


def pytest_collection_finish() -> None:
    """Modules that are imported stay: passing over them, which takes half a second, is left out of all collections."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _seed():
    import torch

    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope="module", autouse=True)
def _freed_memory(_nothing_left: None) -> Iterator[None]:
    """Goes back to the system: a process that trains keeps it, which for all modules in turn is several gigabytes."""
    yield
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _global_state() -> dict[str, object]:
    """What tests change in this process for a time, as nnU-Net's commands do."""
    import torch

    from nnunet_transformers.trainers.trainer import TransformerTrainer

    return {
        "nnU-Net's environment": {name: value for name, value in os.environ.items() if name.startswith("nnUNet_")},
        "multiprocessing.get_context": multiprocessing.get_context,
        "TransformerTrainer.default_iterations": TransformerTrainer.default_iterations,
        "torch.get_num_threads()": torch.get_num_threads(),
    }


_state_at_start: dict[str, object] = {}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """PyTorch's, which nnU-Net's commands set to the number of cores."""
    import torch

    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


@pytest.fixture(scope="module", autouse=True)
def _nothing_left() -> Iterator[None]:
    """A module leaves the process as it found it, or tests of others fail by their order."""
    yield
    left = {name: value for name, value in _global_state().items() if value != _state_at_start[name]}
    assert not left, f"the tests or fixtures of this module, or of its package, leave these changed: {left}"


class _Threads(SpawnContext):
    """Starts pools of threads; single processes are still processes."""

    def Pool(self, processes: int | None = None, *arguments: object, **_: object) -> ThreadPool:
        return ThreadPool(processes, *arguments[:2])


_get_context = multiprocessing.get_context


def _context_of_threads(method: str | None = None) -> BaseContext:
    return _Threads() if method == "spawn" else _get_context(method)


_of_processes: dict[str, type[Executor]] = {}


def _executor_of_threads(processes: int, initializer: object = None) -> Executor:
    return ThreadPoolExecutor(processes)


@contextmanager
def light_nnunet() -> Iterator[None]:
    """nnU-Net, and our preparing of images, without what takes most of the time on a tiny dataset.

    Pools are of threads, where a process would import everything again, 4 s of CPU, or be a fork of a large one.
    nnU-Net's fingerprint draws 10^5 voxels rather than 10^8; its trainer draws no curves, 2 s an epoch, and validates
    without mirroring.
    """
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.logging.nnunet_logger import LocalLogger
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities import utils

    from nnunet_transformers import _workers

    initialise = DatasetFingerprintExtractor.__init__

    def with_few_voxels(self: DatasetFingerprintExtractor, *args: object, **kwargs: object) -> None:
        initialise(self, *args, **kwargs)
        self.num_foreground_voxels_for_intensitystats = 1e5

    class OnePass(nnUNetPredictor):
        """Predict without mirroring, by which validation takes four or eight passes."""

        def manual_initialization(self, *arguments: Any) -> None:
            super().manual_initialization(*arguments)
            self.use_mirroring = False

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(multiprocessing, "get_context", _context_of_threads)
        monkeypatch.setattr(utils, "Pool", ThreadPool)
        _of_processes.setdefault("SpawnedPool", _workers.SpawnedPool)
        monkeypatch.setattr(_workers, "SpawnedPool", _executor_of_threads)
        monkeypatch.setattr(DatasetFingerprintExtractor, "__init__", with_few_voxels)
        # nnU-Net shares the picture with a model, so that there is one
        monkeypatch.setattr(LocalLogger, "plot_progress_png", lambda self, folder: Path(folder, "progress.png").touch())
        monkeypatch.setattr(nnUNetTrainer, "nnUNetPredictor", OnePass)
        yield


@pytest.fixture(scope="module", autouse=True)
def _light_nnunet(request: pytest.FixtureRequest, _nothing_left: None) -> Iterator[None]:
    """The modules that prepare tiny datasets have it light; session fixtures, which come before, ask themselves."""
    with light_nnunet() if LIGHT & set(request.path.parts) else nullcontext():
        yield


@contextmanager
def worker_processes() -> Iterator[None]:
    """Pools are of processes, as they are for users."""
    from nnunetv2.utilities import utils

    from nnunet_transformers import _workers

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(multiprocessing, "get_context", _get_context)
        monkeypatch.setattr(utils, "Pool", multiprocessing.Pool)
        monkeypatch.setattr(_workers, "SpawnedPool", _of_processes.get("SpawnedPool", _workers.SpawnedPool))
        yield


def set_nnunet_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set nnUNet_raw, nnUNet_preprocessed and nnUNet_results to folders in this one, made where missing."""
    for name in ("raw", "preprocessed", "results"):
        (folder / name).mkdir(exist_ok=True)
        monkeypatch.setenv(f"nnUNet_{name}", str(folder / name))
    return folder


@pytest.fixture
def nnunet_folders(tmp_path, monkeypatch):
    """nnUNet_raw, nnUNet_preprocessed and nnUNet_results in a temporary folder."""
    return set_nnunet_folders(tmp_path, monkeypatch)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hugging Face hub on this machine, without repositories, for huggingface_hub's own client."""
    from tests.hub_server import connect, running_hub

    with running_hub() as hub:
        connect(hub, monkeypatch, tmp_path / "cache")
        yield hub


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A module that can be imported and that nothing from a file may import; yields the file that it then writes."""
    executed = tmp_path / "executed"
    folder = tmp_path / "hostile"
    folder.mkdir()
    (folder / f"{HOSTILE}.py").write_text(f"open({str(executed)!r}, 'w')\n")
    monkeypatch.syspath_prepend(folder)
    yield executed
    sys.modules.pop(HOSTILE, None)
    assert not executed.exists(), "code from a file was executed"


@pytest.fixture
def examples(monkeypatch):
    """The documentation's examples can be imported; afterwards they, and the network they register, are forgotten."""
    from nnunet_transformers.architectures import _registry

    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(_registry, "_networks", dict(_registry._networks))
    yield
    for file in EXAMPLES.glob("*.py"):
        sys.modules.pop(file.stem, None)


@pytest.fixture
def file_reads(monkeypatch):
    """Numbers of calls of torch.load and of the hash over a checkpoint's content, counted as they happen."""
    import torch

    from nnunet_transformers.weights import sealed

    counted = {"load": 0, "hash": 0}

    def counting(name, function):
        def count(*arguments, **keywords):
            counted[name] += 1
            return function(*arguments, **keywords)

        return count

    monkeypatch.setattr(torch, "load", counting("load", torch.load))
    monkeypatch.setattr(sealed, "content_hash", counting("hash", sealed.content_hash))
    return counted


def write_dataset(
    raw: Path,
    name: str = "Dataset900_Balls",
    size: tuple[int, ...] = (20, 24, 20),
    cases: int = 6,
    channels: int = 1,
    labels: dict | None = None,
    **extra: object,
) -> Path:
    """Bright balls of two sizes in noise; label 1 is the large ball, 2 the small one, 3 (if any) is ignored."""
    labels = labels or {"background": 0, "large": 1, "small": 2}
    folder = raw / name
    rng = np.random.default_rng(0)
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    for case in range(cases):
        position = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"))
        centre = [n * rng.uniform(0.4, 0.6) for n in size]
        distance = np.sqrt(sum((p - c) ** 2 for p, c in zip(position, centre, strict=True)))
        label = np.where(distance < 3, 2, np.where(distance < 7, 1, 0)).astype(np.uint8)
        if "ignore" in labels:
            label[0] = labels["ignore"]
        for channel in range(channels):
            image = (label == 1) * 2.0 + (label == 2) * 4.0 + rng.normal(0, 0.3, size) + channel
            sitk.WriteImage(
                sitk.GetImageFromArray(image.astype(np.float32)),
                str(folder / "imagesTr" / f"ball_{case}_{channel:04d}.nii.gz"),
            )
        sitk.WriteImage(sitk.GetImageFromArray(label), str(folder / "labelsTr" / f"ball_{case}.nii.gz"))
    description = {
        "channel_names": {str(c): "MRI" for c in range(channels)},
        "labels": labels,
        "numTraining": cases,
        "file_ending": ".nii.gz",
        **extra,
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder
