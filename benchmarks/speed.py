"""Time and memory of the networks on CPU, side by side in one run.

    python benchmarks/speed.py [--threads 2] [--runs 5] [--output benchmarks/results/speed.json]

Each network runs in a process of its own, so that the peak memory is its own. Forward is inference without gradients;
forward + backward is a training step's network part in float32 without an optimiser. The figure is the minimum of the
runs: on a machine that does other things as well, it is the least disturbed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

CUBE, LARGE_IMAGE, THICK = (96, 96, 96), (320, 320), (48, 192, 192)


def plain_conv_unet(patch_size, channels, classes):
    """nnU-Net's own network, as its planner makes it for an isotropic patch."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    ndim = len(patch_size)
    _, strides, kernels, _, _ = get_pool_and_conv_props((1.0,) * ndim, patch_size, 4, 999)
    stages = len(strides)
    return PlainConvUNet(
        channels,
        stages,
        [min({2: 512, 3: 320}[ndim], 32 * 2**i) for i in range(stages)],
        {2: torch.nn.Conv2d, 3: torch.nn.Conv3d}[ndim],
        kernels,
        strides,
        2,
        classes,
        2,
        conv_bias=True,
        norm_op={2: torch.nn.InstanceNorm2d, 3: torch.nn.InstanceNorm3d}[ndim],
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=False,
    )


def swin_unetr(patch_size, channels, classes):
    from monai.networks.nets import SwinUNETR

    return SwinUNETR(in_channels=channels, out_channels=classes, feature_size=48)


def ours(name, **overrides):
    from nnunet_transformers.architectures import create_network

    return lambda patch_size, channels, classes: create_network(name, channels, classes, patch_size, **overrides)


@dataclass(frozen=True)
class Row:
    """A network at a patch; `reference` is the row that its time is divided by.

    `released` holds the seconds of the authors' release over PlainConvUNet's on one idle machine, forward and forward
    with backward, where they were measured.
    """

    build: Callable[..., torch.nn.Module]
    patch_size: tuple[int, ...]
    classes: int
    reference: str
    released: tuple[float, float] | None = None


CNN, CNN_2D = "PlainConvUNet", "PlainConvUNet 2D"
ROWS = {
    CNN: Row(plain_conv_unet, CUBE, 14, CNN),
    "qt_unet_tiny, published windows (7)": Row(ours("qt_unet_tiny"), CUBE, 14, CNN),
    "qt_unet_tiny, tiling windows (6)": Row(ours("qt_unet_tiny", window_sizes=6), CUBE, 14, CNN),
    "unet2022_tiny 3D": Row(ours("unet2022_tiny"), CUBE, 14, CNN),
    "mit_7": Row(ours("mit_7"), CUBE, 14, CNN),
    "SwinUNETR, feature_size 48": Row(swin_unetr, CUBE, 14, CNN),
    "mit_22, 48x192x192": Row(ours("mit_22"), THICK, 14, CNN, (1.43 / 1.61, 4.07 / 5.38)),
    CNN_2D: Row(plain_conv_unet, LARGE_IMAGE, 9, CNN_2D),
    "unet2022_tiny 2D": Row(ours("unet2022_tiny"), LARGE_IMAGE, 9, CNN_2D, (0.30 / 0.15, 1.12 / 0.44)),
}


def measure(name: str, threads: int, runs: int) -> dict:
    """Seconds and peak GiB of one network; call in a fresh process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    row = ROWS[name]
    network, image = row.build(row.patch_size, 1, row.classes), torch.randn(1, 1, *row.patch_size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def forward():
        with torch.no_grad():
            network(image)

    def step():
        network.zero_grad()
        network(image).mean().backward()

    figures = {"parameters": sum(p.numel() for p in network.parameters())}
    for key, action, mode in (("forward_s", forward, False), ("forward_backward_s", step, True)):
        network.train(mode)
        action()
        seconds = []
        for _ in range(runs):
            start = time.perf_counter()
            action()
            seconds.append(time.perf_counter() - start)
        figures[key] = round(min(seconds), 3)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        figures[key.replace("_s", "_peak_gib")] = round((peak - before) / 2**20, 2)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments.threads, arguments.runs)))
        return
    rows = {}
    for name, row in ROWS.items():
        command = [sys.executable, __file__, "--only", name, "--threads", str(arguments.threads)]
        output = subprocess.check_output([*command, "--runs", str(arguments.runs)], text=True)
        figures = json.loads(output.strip().splitlines()[-1])
        rows[name] = {"patch_size": row.patch_size, "classes": row.classes, **figures}
        for index, key in enumerate(("forward", "forward_backward")):
            ratio = figures[f"{key}_s"] / rows[row.reference][f"{key}_s"]
            rows[name][f"{key}_ratio"] = round(ratio, 3)
            if row.released:
                rows[name][f"{key}_share_of_release"] = round(ratio / row.released[index], 3)
        print(f"{name:40}", rows[name], flush=True)
    if arguments.output:
        content = {"threads": arguments.threads, "torch": torch.__version__, "networks": rows}
        arguments.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
