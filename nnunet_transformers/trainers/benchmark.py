"""nnU-Net's benchmarks of our trainers: ``nnUNetv2_train D 3d_fullres 0 -tr nnUNetTrainerQTUNetBenchmark_5epochs``.

They train five epochs without validation and checkpoints and write the seconds of the fastest epoch to
``benchmark_result.json`` in nnU-Net's format. ``..._noDataLoading`` trains on one batch of noise.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from nnunetv2.training.nnUNetTrainer.variants.benchmarking.nnUNetTrainerBenchmark_5epochs import (
    nnUNetTrainerBenchmark_5epochs,
)
from nnunetv2.training.nnUNetTrainer.variants.benchmarking.nnUNetTrainerBenchmark_5epochs_noDataLoading import (
    nnUNetTrainerBenchmark_5epochs_noDataLoading,
)

from ..benchmarking.environment import processor_name
from ..discovery import BENCHMARKS, MAIN_TRAINERS, TRAINERS, benchmark_name


class AnyDevice(nnUNetTrainerBenchmark_5epochs):
    """nnU-Net's benchmark on any device; ``gpu_name`` is the processor's name where there is no CUDA.

    Raises:
        ValueError: on another fold than 0.
    """

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  (nnU-Net's signature)
    ) -> None:
        # skip the constructor of nnU-Net's class, which asserts CUDA, for that of the benchmarked trainer
        super(nnUNetTrainerBenchmark_5epochs, self).__init__(plans, configuration, fold, dataset_json, device)
        if fold != 0:
            raise ValueError(f"fold {fold}: a benchmark runs on fold 0 only; train that one")
        self.disable_checkpointing = True
        self.num_epochs = 5
        self.crashed_with_runtime_error = False

    def on_train_end(self) -> None:
        if self.device.type == "cuda":
            super().on_train_end()
            return
        # nnU-Net writes the GPU's name from PyTorch into its file
        with patch.object(torch.cuda, "get_device_name", processor_name):
            super().on_train_end()


class AnyDeviceNoDataLoading(nnUNetTrainerBenchmark_5epochs_noDataLoading, AnyDevice):
    """The same on one batch of noise, without data loading and augmentation."""


def _benchmark(name: str, kind: str) -> type[AnyDevice]:
    """Create the benchmark variant of a trainer; nnU-Net's class precedes it, so that no checkpoint is written."""
    trainer = getattr(import_module(TRAINERS[name]), name)
    attributes = {"__module__": __name__, "__doc__": f"{name} as nnU-Net benchmarks its own{kind.replace('_', ', ')}."}
    return type(benchmark_name(name, kind), (KINDS[kind], trainer), attributes)


KINDS = dict(zip(BENCHMARKS, (AnyDevice, AnyDeviceNoDataLoading), strict=True))
globals().update({benchmark_name(name, kind): _benchmark(name, kind) for name in MAIN_TRAINERS for kind in BENCHMARKS})
