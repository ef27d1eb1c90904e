"""nnU-Net's benchmark of a training: ``nnUNetv2_train D 3d_fullres 0 -tr nnUNetTrainerQTUNetBenchmark_5epochs``.

Five epochs without validation and checkpoints; the fastest one's seconds go to ``benchmark_result.json`` in nnU-Net's
form, beside results of its own trainers. ``..._noDataLoading`` trains on one batch of noise.
"""

from __future__ import annotations

from importlib import import_module
from unittest.mock import patch

import torch
from nnunetv2.training.nnUNetTrainer.variants.benchmarking.nnUNetTrainerBenchmark_5epochs import (
    nnUNetTrainerBenchmark_5epochs,
)
from nnunetv2.training.nnUNetTrainer.variants.benchmarking.nnUNetTrainerBenchmark_5epochs_noDataLoading import (
    nnUNetTrainerBenchmark_5epochs_noDataLoading,
)

from ..benchmarking.environment import processor_name
from ..discovery import BENCHMARKED, BENCHMARKS, TRAINERS, benchmark_name


class AnyDevice(nnUNetTrainerBenchmark_5epochs):
    """nnU-Net's benchmark without its check that there is CUDA; elsewhere ``gpu_name`` is the processor's name."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  (nnU-Net's signature)
    ) -> None:
        # past nnU-Net's class, whose constructor asserts CUDA, to the trainer that is measured
        super(nnUNetTrainerBenchmark_5epochs, self).__init__(plans, configuration, fold, dataset_json, device)
        if fold != 0:
            raise ValueError(f"fold {fold}: a benchmark's result is looked for in fold 0; train that one")
        self.disable_checkpointing = True
        self.num_epochs = 5
        self.crashed_with_runtime_error = False

    def on_train_end(self) -> None:
        if self.device.type == "cuda":
            super().on_train_end()
            return
        # nnU-Net asks PyTorch for the GPU's name where it writes its file
        with patch.object(torch.cuda, "get_device_name", processor_name):
            super().on_train_end()


class AnyDeviceNoDataLoading(nnUNetTrainerBenchmark_5epochs_noDataLoading, AnyDevice):
    """The same on one batch of noise, without the data's loading and augmentation."""


def _benchmark(name: str, kind: str) -> type[AnyDevice]:
    """nnU-Net's benchmark of a trainer of ours; its code comes first, so that it writes no checkpoint."""
    trainer = getattr(import_module(TRAINERS[name]), name)
    attributes = {"__module__": __name__, "__doc__": f"{name} as nnU-Net benchmarks its own{kind.replace('_', ', ')}."}
    return type(benchmark_name(name, kind), (KINDS[kind], trainer), attributes)


KINDS = dict(zip(BENCHMARKS, (AnyDevice, AnyDeviceNoDataLoading), strict=True))
globals().update({benchmark_name(name, kind): _benchmark(name, kind) for name in BENCHMARKED for kind in BENCHMARKS})
