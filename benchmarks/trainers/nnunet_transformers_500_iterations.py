"""Trainers with the benchmark's schedule, 10 epochs of 50 iterations; for nnUNet_extTrainer."""

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_transformers.trainers.mit import nnUNetTrainerMiT
from nnunet_transformers.trainers.qt_unet import nnUNetTrainerQTUNet
from nnunet_transformers.trainers.unet2022 import nnUNetTrainerUNet2022


class FiveHundredIterations(nnUNetTrainer):
    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 10, 50, 5


class nnUNetTrainer_500iterations(FiveHundredIterations):
    pass


class nnUNetTrainerQTUNet_500iterations(FiveHundredIterations, nnUNetTrainerQTUNet):
    pass


class nnUNetTrainerUNet2022_500iterations(FiveHundredIterations, nnUNetTrainerUNet2022):
    pass


class nnUNetTrainerMiT_500iterations(FiveHundredIterations, nnUNetTrainerMiT):
    pass
