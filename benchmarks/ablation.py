"""What the planner's and the network's defaults rest on: short trainings that differ in one thing each.

    export nnUNet_raw=... nnUNet_preprocessed=... nnUNet_results=...   (hippocampus planned with nnUNetPlannerQTUNetT)
    python benchmarks/ablation.py [--iterations 120] [rows]

nnU-Net's data loading, augmentation and loss, two samples a step, the same seed; Dice over the voxels of ten batches of
validation patches. A few minutes a row on two cores, and far from converged: it ranks what trains quickly.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import time

os.environ["nnUNet_n_proc_DA"] = "0"

import numpy as np
import torch
from nnunetv2.run.run_training import get_trainer_from_args
from timm.layers import trunc_normal_
from torch import nn

THREADS = 2
# learning rate, initialisation of linear layers, arguments of the network
ROWS = {
    "pre-norm, tiling windows": (1e-3, "xavier", {}),
    "post-norm, tiling windows": (1e-3, "xavier", {"norm_placement": "post"}),
    "pre-norm, windows of 7 (padded)": (1e-3, "xavier", {"window_sizes": [7, 7, 7]}),
    "pre-norm, normal 0.02": (1e-3, "normal", {}),
    "pre-norm, normal 0.02, lr 5e-4": (5e-4, "normal", {}),
    "post-norm, normal 0.02, lr 5e-4": (5e-4, "normal", {"norm_placement": "post"}),
    "pre-norm, PyTorch's default initialisation": (1e-3, "default", {}),
    "post-norm, PyTorch's default initialisation": (1e-3, "default", {"norm_placement": "post"}),
    "pre-norm, lr 2e-3": (2e-3, "xavier", {}),
}


def release_init(module):
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)


def default_init(module):
    if isinstance(module, nn.Linear):
        module.reset_parameters()


INITIALISATIONS = {"xavier": lambda module: None, "normal": release_init, "default": default_init}


def measure(learning_rate, init, arguments, iterations):
    torch.manual_seed(0)
    np.random.seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = get_trainer_from_args(
            "4", "3d_fullres", 0, "nnUNetTrainerQTUNet", "nnUNetQTUNetTPlans", device=torch.device("cpu")
        )
        configuration = trainer.configuration_manager.configuration
        configuration["architecture"]["arch_kwargs"].update(arguments)
        configuration["batch_size"] = 2
        trainer.initial_lr, trainer.num_epochs, trainer.num_iterations_per_epoch = learning_rate, 1, iterations
        trainer.initialize()
        trainer.network.apply(INITIALISATIONS[init])
        trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    torch.set_num_threads(THREADS)
    trainer.network.train()
    losses, start = [], time.monotonic()
    for _ in range(iterations):
        losses.append(float(trainer.train_step(next(trainer.dataloader_train))["loss"]))
    seconds = (time.monotonic() - start) / iterations
    trainer.network.eval()
    torch.manual_seed(1)
    np.random.seed(1)
    with torch.no_grad():
        counts = [trainer.validation_step(next(trainer.dataloader_val)) for _ in range(10)]
    tp, fp, fn = (sum(c[key] for c in counts) for key in ("tp_hard", "fp_hard", "fn_hard"))
    dice = 2 * tp / (2 * tp + fp + fn)
    return {
        "loss_of_last_30": round(float(np.mean(losses[-30:])), 3),
        "dice": [round(float(d), 3) for d in dice],
        "seconds_per_iteration": round(seconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=list(ROWS))
    parser.add_argument("--iterations", type=int, default=120)
    options = parser.parse_args()
    for row in options.rows:
        print(json.dumps({"row": row, **measure(*ROWS[row], options.iterations)}), flush=True)


if __name__ == "__main__":
    main()
