"""``nnunet-transformers models``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from ..architectures import create_network, list_networks
from ..plans.memory import training_step_bytes


def parse_patch_size(text: str) -> tuple[int, ...]:
    """ "96,96,96" or "96x96x96" to integers.

    Raises:
        ValueError: if it is anything else.
    """
    try:
        return tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError as error:
        raise ValueError(f"--patch-size {text!r} is not a list of integers such as 96,96,96") from error


def multiply_adds(name: str, input_channels: int, num_classes: int, patch_size: Sequence[int]) -> int:
    """Multiply-adds of one forward pass, matrix products and convolutions."""
    with torch.device("meta"):
        network = create_network(name, input_channels, num_classes, patch_size).eval()
        image = torch.empty(1, input_channels, *patch_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    return counter.get_total_flops() // 2


def print_models(patch_size: str, input_channels: int, num_classes: int, contains: str) -> None:
    """Print the table of networks."""
    size = parse_patch_size(patch_size)
    matching = [name for name in list_networks() if contains in name]
    if not matching:
        raise ValueError(f"no network's name contains {contains!r}; known: {', '.join(list_networks())}")
    names = [name for name in matching if name in list_networks(len(size))]
    others = [name for name in matching if name not in names]
    if not names:
        raise ValueError(f"{', '.join(others)} have no {len(size)}D form; give --patch-size the other number of axes")
    table = Table(title=f"published networks at {'x'.join(map(str, size))}, {input_channels} in, {num_classes} classes")
    for heading in ("network", "parameters", "multiply-adds", "training memory", "and a sample"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for name in names:
        with torch.device("meta"):
            network = create_network(name, input_channels, num_classes, size)
        parameters = sum(p.numel() for p in network.parameters())
        fixed, sample = training_step_bytes(
            lambda name=name: create_network(name, input_channels, num_classes, size, deep_supervision=True),
            input_channels,
            size,
        )
        giga_macs = multiply_adds(name, input_channels, num_classes, size) / 1e9
        table.add_row(name, f"{parameters:,}", f"{giga_macs:.2f} G", f"{fixed / 1e9:.2f} GB", f"{sample / 1e9:.2f} GB")
    Console().print(table)
    if others:
        print(f"without a {len(size)}D form: {', '.join(others)}")
