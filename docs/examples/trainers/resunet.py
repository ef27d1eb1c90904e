"""For nnUNet_extTrainer, as the file of the other example."""

from resunet import nnUNetTrainerResUnet  # noqa: F401
