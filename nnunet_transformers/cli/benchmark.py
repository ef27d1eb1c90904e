"""``nnunet-transformers benchmark``."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from .._atomic import write_json, write_text
from ..benchmarking.measure import PRECISIONS, Settings
from ..benchmarking.networks import choose_networks
from ..benchmarking.plot import draw_pareto
from ..benchmarking.results import describe, markdown, table
from ..benchmarking.rounds import run_benchmark
from .network_table import parse_patch_size

TABLE_WIDTH = 130
# the usual patches, by device
PATCH_SIZES = {
    "cpu": {"3d": (96, 96, 96), "2d": (320, 320)},
    "cuda": {"3d": (128, 128, 128), "2d": (512, 512)},
}


def make_settings(
    patch_size: str,
    batch_size: int,
    input_channels: int,
    num_classes: int,
    device: str,
    precision: str,
    compile_networks: bool,
    threads: int | None,
) -> Settings:
    """What the options mean; an empty device or precision is the machine's usual one.

    Raises:
        ValueError: names the option that cannot be.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in PATCH_SIZES:
        raise ValueError(f"--device {device!r} is not one of {', '.join(PATCH_SIZES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda, but PyTorch finds no CUDA device; --device cpu measures on the processor")
    precision = precision or ("float16" if device == "cuda" else "float32")
    if precision not in PRECISIONS:
        raise ValueError(f"--precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    if device == "cpu" and precision != "float32":
        raise ValueError(f"--precision {precision} is for CUDA; on a CPU nnU-Net trains and predicts in float32")
    size = PATCH_SIZES[device].get(patch_size) or parse_patch_size(patch_size)
    if len(size) not in (2, 3) or min(size) < 1:
        raise ValueError(f"--patch-size {patch_size!r} is not two or three positive integers")
    return Settings(size, input_channels, num_classes, batch_size, device, precision, compile_networks, threads)


def benchmark(settings: Settings, networks: str, rounds: int, roofline: bool, output: Path) -> None:
    """Measure, write benchmark.json, benchmark.md and benchmark.png, and print the table.

    Args:
        settings: of ``make_settings``.
        networks: names between commas; nothing for a selection.
        rounds: how often each network is measured.
        roofline: find each network's floor as well.
        output: folder to write to; made if it is missing.

    Raises:
        ValueError: if a network is unknown or has no such form.
    """
    asked = [name.strip() for name in networks.split(",") if name.strip()]
    names = choose_networks(asked, len(settings.patch_size))
    output.mkdir(parents=True, exist_ok=True)
    content = run_benchmark(names, settings, rounds, roofline, lambda line: print(line, flush=True))
    write_json(content, output / "benchmark.json")
    write_text(markdown(content), output / "benchmark.md")
    headings, rows = table(content, short=True)
    printed = Table(title=describe(content))
    for heading in headings:
        is_name = heading == "network"
        printed.add_column(heading, justify="left" if is_name else "right", no_wrap=is_name)
    for row in rows:
        if "failed" not in content["networks"][row[0]]:
            printed.add_row(*row)
    # rather wrapped by a narrow terminal than cut
    Console(width=max(TABLE_WIDTH, Console().width)).print(printed)
    for name, figures in content["networks"].items():
        if "failed" in figures:
            print(f"{name}: {figures['failed']}")
    draw_pareto(content, output / "benchmark.png")
    print(f"written to {output}: benchmark.json, benchmark.md, benchmark.png")
