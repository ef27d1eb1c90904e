"""Trainers for benchmarks/pretraining.py: ten labelled cases, 300 iterations; for nnUNet_extTrainer.

The environment variable BENCHMARK_SEED draws the cases and everything random after them, so that a pair of runs with
and without pretrained weights sees the same cases in the same order.
"""

import os

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_transformers.trainers.mit import nnUNetTrainerMiT
from nnunet_transformers.trainers.qt_unet import nnUNetTrainerQTUNet

CASES = 10


class TenCases(nnUNetTrainer):
    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 6, 50, 1
        self.seed = int(os.environ["BENCHMARK_SEED"])

    def initialize(self):
        # nnU-Net takes all cores; two trainings side by side get more done with one each
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
        torch.manual_seed(self.seed)
        super().initialize()
        # eight forward passes a tile for mirroring are most of the time that a CPU would spend on validation
        self.inference_allowed_mirroring_axes = None

    def do_split(self):
        training, validation = super().do_split()
        return sorted(np.random.default_rng(self.seed).choice(training, CASES, replace=False)), validation

    def on_train_start(self):
        super().on_train_start()
        np.random.seed(self.seed)
        torch.manual_seed(self.seed)


class nnUNetTrainerQTUNet_tencases(TenCases, nnUNetTrainerQTUNet):
    pass


class nnUNetTrainerMiT_tencases(TenCases, nnUNetTrainerMiT):
    pass
