"""Fallback discovery: point nnU-Net's ``nnUNet_extTrainer`` at this folder (``nnunet-transformers trainers-path``).

nnU-Net forgets every module that it imports from such a folder, so the classes must live elsewhere: here they are
only named.
"""

from nnunet_transformers.trainers import *  # noqa: F403
