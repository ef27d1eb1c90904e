"""The networks against their papers' releases, by the ratio of each to nnU-Net's PlainConvUNet.

    python benchmarks/releases.py benchmarks/results/cpu_*/benchmark.json -o benchmarks/results/releases.md

The releases' seconds and PlainConvUNet's were measured in one run on an idle machine of two cores; ours are those of
`nnunet-transformers benchmark` on two threads.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from nnunet_transformers._atomic import write_text
from nnunet_transformers.benchmarking.networks import REFERENCE

CUBE, LARGE_IMAGE, THICK = (96, 96, 96), (320, 320), (48, 192, 192)
# network, its patch, PlainConvUNet's patch; seconds forward, and forward and backward, of the release and PlainConvUNet
RELEASED = (
    ("qt_unet_tiny", CUBE, CUBE, ((0.85, 1.61), (2.07, 5.38))),
    ("qt_unet_tiny/tiling", CUBE, CUBE, ((0.85, 1.61), (2.07, 5.38))),
    ("unet2022_tiny", LARGE_IMAGE, LARGE_IMAGE, ((0.30, 0.15), (1.12, 0.44))),
    ("mit_22", THICK, CUBE, ((1.43, 1.61), (4.07, 5.38))),
)
KEYS = ("forward_s", "forward_backward_s")


def compare(runs: list[dict]) -> str:
    """The table, of what the runs hold."""
    seconds = {
        (name, tuple(run["settings"]["patch_size"])): [figures[key]["median"] for key in KEYS]
        for run in runs
        for name, figures in run["networks"].items()
        if "failed" not in figures
    }
    lines = [
        "| | release / PlainConvUNet, forward | forward + backward | ours over the release's ratio, forward "
        "| forward + backward |",
        "|---|---|---|---|---|",
    ]
    for name, patch_size, reference_size, released in RELEASED:
        own, reference = seconds.get((name, patch_size)), seconds.get((REFERENCE, reference_size))
        if own is None or reference is None:
            continue
        theirs = [f"{release:.2f} / {cnn:.2f} s" for release, cnn in released]
        shares = [
            f"{o / r / (release / cnn):.2f}" for o, r, (release, cnn) in zip(own, reference, released, strict=True)
        ]
        lines.append(f"| {name}, {'x'.join(map(str, patch_size))} | {' | '.join([*theirs, *shares])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="benchmark.json of each run")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    text = compare([json.loads(path.read_text()) for path in arguments.runs])
    write_text(f"# Against the papers' releases\n\n{text}", arguments.output)
    print(text, end="")


if __name__ == "__main__":
    main()
