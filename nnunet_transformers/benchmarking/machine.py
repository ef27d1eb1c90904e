"""What a device can do: its rate of multiply-adds and its memory bandwidth, measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

MATRIX_SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
# channels and edge length of a convolution
CONVOLUTION = {"cpu": (128, 26), "cuda": (256, 66)}
# elements of each array of the bandwidth's measurement, far more than caches hold
STREAM_ELEMENTS = {"cpu": 2**25, "cuda": 2**28}
RUNS, SECONDS = 20, 0.5


@dataclass(frozen=True)
class Rates:
    """The rates of a device.

    Attributes:
        multiply_adds_per_second: of the best matrix product or convolution.
        bytes_per_second: read and written, of the best pass through main memory.
    """

    multiply_adds_per_second: float
    bytes_per_second: float

    def floor(self, multiply_adds: int, moved: int) -> float:
        """Seconds below which no operation with these multiply-adds and these bytes can be (the roofline model,
        Williams et al., https://doi.org/10.1145/1498765.1498785)."""
        return max(multiply_adds / self.multiply_adds_per_second, moved / self.bytes_per_second)


def measure_rates(device: torch.device | str, dtype: torch.dtype = torch.float32) -> Rates:
    """The best of matrix products, and of STREAM's copy and triad on arrays far larger than the caches.

    The products are square matrices and a convolution, channels last: libraries have other kernels for it, which on
    some processors are the faster ones (oneDNN's against MKL's on AMD's), and matrix products could run on them. STREAM
    counts a byte once where it is read and once where it is written (https://www.cs.virginia.edu/stream/ref.html). A
    few seconds; on CPU with as many threads as PyTorch is set to, on a GPU with TF32 where PyTorch is set to it.

    Args:
        device: "cpu" or "cuda", or such a device.
        dtype: of the matrices and arrays.

    Raises:
        ValueError: on another kind of device.
    """
    device = torch.device(device)
    if device.type not in MATRIX_SIZES:
        raise ValueError(f"no rates for device {device}; measured are {', '.join(MATRIX_SIZES)}")
    products = []
    for size in MATRIX_SIZES[device.type]:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        products.append(size**3 / fastest(partial(torch.mm, a, b, out=out), device))
    channels, edge = CONVOLUTION[device.type]
    sizes = ((1, channels, edge, edge, edge), (channels, channels, 3, 3, 3))
    image, weight = (torch.randn(size, device=device).to(dtype, memory_format=torch.channels_last_3d) for size in sizes)
    multiply_adds = weight.numel() * (edge - 2) ** 3
    products.append(multiply_adds / fastest(lambda: F.conv3d(image, weight), device))
    elements = STREAM_ELEMENTS[device.type]
    a, b, c = (torch.ones(elements, device=device, dtype=dtype) for _ in range(3))
    copy = 2 * a.nbytes / fastest(lambda: a.copy_(b), device)
    triad = 3 * a.nbytes / fastest(lambda: torch.add(b, c, alpha=2, out=a), device)
    return Rates(max(products), max(copy, triad))


def fastest(action: Callable[[], object], device: torch.device, runs: int = RUNS, seconds: float = SECONDS) -> float:
    """Seconds of the fastest of several calls, after one that does not count.

    Args:
        action: what is called; its work on a GPU is waited for.
        device: where it works.
        runs: calls at most.
        seconds: no further call starts after so long.
    """
    action()
    synchronise(device)
    times: list[float] = []
    while len(times) < runs and sum(times) < seconds:
        start = time.perf_counter()
        action()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return min(times)


def synchronise(device: torch.device) -> None:
    """Wait for what a GPU still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def mark(device: torch.device) -> float | torch.cuda.Event:
    """A moment on the device's own time line: CUDA runs behind the program."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    """From one ``mark`` to another; waits until the device is there.

    Raises:
        TypeError: if the marks are of two kinds of device.
    """
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    if isinstance(start, float) or isinstance(end, float):
        raise TypeError("one mark is of the CPU, the other of a CUDA device")
    end.synchronize()
    return start.elapsed_time(end) / 1000
