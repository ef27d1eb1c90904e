"""Time of the networks over nnU-Net's PlainConvUNet at small patches, in seconds: printed, not judged.

    python benchmarks/ratios.py

`make test` ends with it, so that a network that has become slow is seen. Everything is in one process, which a figure
of peak memory could not be; `nnunet-transformers benchmark` has that, larger patches and other people's networks.
"""

from __future__ import annotations

import torch

from nnunet_transformers.benchmarking.measure import Settings, time_forward, time_training
from nnunet_transformers.benchmarking.networks import REFERENCE, build_on

NETWORKS = ("qt_unet_tiny", "qt_unet_tiny/tiling", "unet2022_tiny", "mit_7")
PATCH_SIZES = ((64, 64, 64), (160, 160))
SECONDS = 0.3


def measure(name: str, settings: Settings) -> tuple[float, float]:
    """Seconds forward, and forward and backward."""
    torch.manual_seed(0)
    network = build_on(torch.device("cpu"), name, settings.patch_size, settings.input_channels, settings.num_classes)
    image = torch.randn(1, settings.input_channels, *settings.patch_size)
    return time_forward(network, image, settings), time_training(network, image, settings)[0]


def main() -> None:
    torch.set_num_threads(2)
    for patch_size in PATCH_SIZES:
        settings = Settings(patch_size, seconds=SECONDS)
        reference = measure(REFERENCE, settings)
        size = "x".join(map(str, patch_size))
        print(
            f"{size}: forward, forward + backward; {REFERENCE} {reference[0]:.3f} s, {reference[1]:.3f} s", flush=True
        )
        for name in NETWORKS:
            forward, both = (own / other for own, other in zip(measure(name, settings), reference, strict=True))
            print(f"  {name:20} {forward:5.2f} {both:5.2f}", flush=True)


if __name__ == "__main__":
    main()
