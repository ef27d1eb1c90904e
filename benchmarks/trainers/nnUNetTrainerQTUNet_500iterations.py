"""QT-UNet with the benchmark's schedule; for nnUNet_extTrainer."""

import torch

from nnunet_transformers.trainers import nnUNetTrainerQTUNet


class nnUNetTrainerQTUNet_500iterations(nnUNetTrainerQTUNet):
    default_epochs = 10
    default_iterations = 50

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_val_iterations_per_epoch = 5
