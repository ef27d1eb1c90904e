"""Commands ``models`` and ``benchmark``: size and cost of the networks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .._atomic import write_json, write_text
from ._options import parse_patch_size

commands = typer.Typer()

InputChannels = Annotated[int, typer.Option(min=1, help="Channels of the image.")]
NumClasses = Annotated[int, typer.Option(min=2, help="Classes, background included.")]

TABLE_WIDTH, MODELS_WIDTH = 130, 100
# usual patch sizes by device and dimensionality
PATCH_SIZES = {
    "cpu": {"3d": (96, 96, 96), "2d": (320, 320)},
    "cuda": {"3d": (128, 128, 128), "2d": (512, 512)},
}


@commands.command()
def models(
    patch_size: Annotated[str, typer.Option(help="Voxels per axis, two or three of them.")] = "96,96,96",
    input_channels: InputChannels = 1,
    num_classes: NumClasses = 14,
    name: Annotated[str, typer.Option(help="Show networks whose name contains this.")] = "",
) -> None:
    """Print the networks with parameters, multiply-adds and training memory at a patch size.

    Networks whose total stride does not divide the patch are named below the table.
    """
    import torch
    from rich.console import Console
    from rich.table import Table

    from ..architectures import create_network, get_network, list_networks
    from ..benchmarking.measure import count_multiply_adds
    from ..plans.memory import training_step_bytes

    size = parse_patch_size(patch_size)
    matching = [network for network in list_networks() if name in network]
    if not matching:
        raise ValueError(f"no network's name contains {name!r}; known: {', '.join(list_networks())}")
    shown = [network for network in matching if network in list_networks(len(size))]
    others = [network for network in matching if network not in shown]
    missing = {network: extra for network in shown if (extra := get_network(network).missing_extra)}
    if not shown:
        dimensions = 5 - len(size)  # 2 for 3 and 3 for 2
        raise ValueError(f"{', '.join(others)} have no {len(size)}D form; give --patch-size {dimensions} numbers")
    table = Table(title=f"published networks at {'x'.join(map(str, size))}, {input_channels} in, {num_classes} classes")
    for heading in ("network", "parameters", "multiply-adds", "training memory", "and a sample"):
        is_name = heading == "network"
        table.add_column(heading, justify="left" if is_name else "right", no_wrap=is_name)
    unfit: dict[str, list[str]] = {}
    for published in shown:
        if published in missing:
            table.add_row(f"{published} (extra {missing[published]})", "", "", "", "")
            continue
        with torch.device("meta"):
            try:
                network = create_network(published, input_channels, num_classes, size).eval()
                multiply_adds = count_multiply_adds(network, torch.empty(1, input_channels, *size))
                build = partial(create_network, published, input_channels, num_classes, size, deep_supervision=True)
                fixed, sample = training_step_bytes(build, input_channels, size)
            except ValueError as error:  # as published, the network does not take this patch
                unfit.setdefault(str(error), []).append(published)
                continue
        parameters = sum(p.numel() for p in network.parameters())
        memory = (f"{fixed / 1e9:.2f} GB", f"{sample / 1e9:.2f} GB")
        table.add_row(published, f"{parameters:,}", f"{multiply_adds / 1e9:.2f} G", *memory)
    if not table.row_count:
        raise ValueError(f"{'; '.join(unfit)}. The planner adapts networks to any patch, and prints what they need")
    # a narrow terminal wraps the table instead of cutting numbers
    Console(width=max(MODELS_WIDTH, Console().width)).print(table)
    for reason, names in unfit.items():
        print(f"not at this patch: {', '.join(names)}: {reason}")
    for extra in sorted(set(missing.values())):
        print(f"to install what a network needs: pip install 'nnunet-transformers[{extra}]'")
    if others:
        print(f"without a {len(size)}D form: {', '.join(others)}")


@commands.command()
def benchmark(
    patch_size: Annotated[
        str, typer.Option(help="Voxels per axis, such as 96,96,96; or 3d or 2d for the usual size on the device.")
    ] = "3d",
    batch_size: Annotated[int, typer.Option(min=1, help="Samples in a batch.")] = 1,
    input_channels: InputChannels = 1,
    num_classes: NumClasses = 14,
    networks: Annotated[
        str, typer.Option(help="Comma-separated names, ours and peers; PlainConvUNet is always measured.")
    ] = "",
    device: Annotated[str, typer.Option(help="cpu or cuda; by default cuda if it is available.")] = "",
    precision: Annotated[
        str, typer.Option(help="float32, float16 or bfloat16; by default float32 on CPU, float16 on CUDA.")
    ] = "",
    compile_networks: Annotated[bool, typer.Option("--compile", help="Compile with torch.compile.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each network, in turn.")] = 3,
    roofline: Annotated[bool, typer.Option(help="Find what bounds each network, and its largest gaps.")] = True,
    sliding_window: Annotated[bool, typer.Option(help="Measure nnU-Net's sliding window over an image.")] = True,
    threads: Annotated[int | None, typer.Option(min=1, help="PyTorch's threads on CPU.")] = None,
    processor_time: Annotated[
        bool, typer.Option("--processor-time", help="Measure the processor's time, with --threads 1 on CPU.")
    ] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("benchmark_output"),
) -> None:
    """Compare time, memory and throughput of our networks, nnU-Net's CNNs, Primus and MONAI's.

    The exit code is 1 if a network failed; the others' figures are written all the same.
    """
    from rich.console import Console
    from rich.table import Table

    from ..benchmarking.measure import Settings
    from ..benchmarking.networks import REFERENCE, choose_networks, is_ours
    from ..benchmarking.plot import draw_pareto
    from ..benchmarking.results import describe, describe_ratios, markdown, table
    from ..benchmarking.rounds import run_benchmark

    device = _available_device(device)
    if processor_time and (device != "cpu" or threads != 1):
        raise ValueError("--processor-time needs --device cpu --threads 1: it adds up the time of all threads")
    settings = Settings(
        _usual_patch_size(patch_size, device),
        input_channels,
        num_classes,
        batch_size,
        device,
        _usable_precision(precision, device),
        compile_networks,
        threads,
        processor_time=processor_time,
        volume=None if sliding_window else (),
    )
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
    # a narrow terminal wraps the table instead of cutting it
    Console(width=max(TABLE_WIDTH, Console().width)).print(printed)
    print(describe_ratios(content))
    is_drawn = draw_pareto(content, output / "benchmark.png")
    print(f"written to {output}: benchmark.json, benchmark.md{', benchmark.png' * is_drawn}")
    if content.get("interrupted"):
        raise KeyboardInterrupt(f"the complete rounds are in {output}")
    failed = {name: figures["failed"] for name, figures in content["networks"].items() if "failed" in figures}
    reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
    if any(name in asked or is_ours(name) or name == REFERENCE for name in failed):
        raise RuntimeError(f"{len(failed)} of {len(content['networks'])} networks were not measured: {reasons}")
    if failed:  # other packages' networks, which nobody has asked for: their libraries may not be there
        print(f"not measured: {reasons}")


def _available_device(name: str) -> str:
    import torch

    name = ("cuda" if torch.cuda.is_available() else "cpu") if name in ("", "auto") else name
    if name not in PATCH_SIZES:
        raise ValueError(f"--device {name!r} is not one of {', '.join(PATCH_SIZES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda, but PyTorch finds no CUDA device; --device cpu measures on the processor")
    return name


def _usable_precision(name: str, device: str) -> str:
    from ..benchmarking.measure import PRECISIONS

    name = name or ("float16" if device == "cuda" else "float32")
    if name not in PRECISIONS:
        raise ValueError(f"--precision {name!r} is not one of {', '.join(PRECISIONS)}")
    if device == "cpu" and name != "float32":
        raise ValueError(f"--precision {name} is for CUDA; on a CPU nnU-Net trains and predicts in float32")
    return name


def _usual_patch_size(text: str, device: str) -> tuple[int, ...]:
    return PATCH_SIZES[device].get(text) or parse_patch_size(text)
