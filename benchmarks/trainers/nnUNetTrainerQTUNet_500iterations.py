"""QT-UNet with the benchmark's schedule; for nnUNet_extTrainer."""

from nnunet_transformers.trainers import nnUNetTrainerQTUNet


class nnUNetTrainerQTUNet_500iterations(nnUNetTrainerQTUNet):
    default_epochs = 10
    default_iterations = 50

    def __init__(self, plans, configuration, fold, dataset_json, device=None):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_val_iterations_per_epoch = 5
