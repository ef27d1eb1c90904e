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
from pathlib import Path

import torch

PATCH, CHANNELS, CLASSES = (96, 96, 96), 1, 14


def plain_conv_unet():
    """nnU-Net's own network, as its planner makes it for this patch."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    _, strides, kernels, _, _ = get_pool_and_conv_props((1.0, 1.0, 1.0), PATCH, 4, 999)
    stages = len(strides)
    return PlainConvUNet(
        CHANNELS,
        stages,
        [min(320, 32 * 2**i) for i in range(stages)],
        torch.nn.Conv3d,
        kernels,
        strides,
        2,
        CLASSES,
        2,
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=False,
    )


def swin_unetr():
    from monai.networks.nets import SwinUNETR

    return SwinUNETR(in_channels=CHANNELS, out_channels=CLASSES, feature_size=48)


def qt_unet(**overrides):
    from nnunet_transformers.architectures import create_network

    return create_network("qt_unet_tiny", CHANNELS, CLASSES, PATCH, **overrides)


NETWORKS = {
    "PlainConvUNet": plain_conv_unet,
    "qt_unet_tiny, published windows (7)": qt_unet,
    "qt_unet_tiny, tiling windows (6)": lambda: qt_unet(window_sizes=6),
    "SwinUNETR, feature_size 48": swin_unetr,
}


def measure(name: str, threads: int, runs: int) -> dict:
    """Seconds and peak GiB of one network; call in a fresh process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network, image = NETWORKS[name](), torch.randn(1, CHANNELS, *PATCH)
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
    for name in NETWORKS:
        command = [sys.executable, __file__, "--only", name, "--threads", str(arguments.threads)]
        output = subprocess.check_output([*command, "--runs", str(arguments.runs)], text=True)
        rows[name] = json.loads(output.strip().splitlines()[-1])
        for key in ("forward", "forward_backward"):
            rows[name][f"{key}_ratio"] = round(rows[name][f"{key}_s"] / rows["PlainConvUNet"][f"{key}_s"], 3)
        print(f"{name:40}", rows[name], flush=True)
    if arguments.output:
        settings = {"patch": PATCH, "channels": CHANNELS, "classes": CLASSES, "threads": arguments.threads}
        content = {"settings": settings, "torch": torch.__version__, "networks": rows}
        arguments.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
