"""Measure a device: its rate of multiply-adds and its memory bandwidth."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

MATRIX_SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
# channels and edge length of the convolution's image
CONVOLUTION = {"cpu": (128, 26), "cuda": (256, 66)}
# elements per array in the measurement of the bandwidth, far more than the caches hold
STREAM_ELEMENTS = {"cpu": 2**25, "cuda": 2**28}
RUNS, SECONDS = 20, 0.5


@dataclass(frozen=True)
class Rates:
    """Rates of a device.

    Attributes:
        multiply_adds_per_second: rate of the fastest matrix product or convolution.
        bytes_per_second: rate of reading and writing in the fastest pass through main memory.
    """

    multiply_adds_per_second: float
    bytes_per_second: float

    def floor(self, multiply_adds: int, moved: int) -> float:
        """Return the roofline model's lower bound on the seconds of an operation.

        Williams et al., https://doi.org/10.1145/1498765.1498785.

        Args:
            multiply_adds: multiply-adds of the operation.
            moved: bytes that it reads and writes.
        """
        return max(multiply_adds / self.multiply_adds_per_second, moved / self.bytes_per_second)


def measure_rates(device: torch.device | str, dtype: torch.dtype = torch.float32) -> Rates:
    """Measure the best rates of matrix products and of STREAM's copy and triad on arrays far larger than the caches.

    The products are those of square matrices and a channels-last convolution. Libraries have other kernels for the
    convolution, which are faster on some processors (oneDNN's than MKL's on AMD's), and matrix products could use them.
    STREAM counts a byte once when it is read and once when it is written
    (https://www.cs.virginia.edu/stream/ref.html). The measurement takes a few seconds; PyTorch's settings of threads
    (CPU) and TF32 (GPU) apply.

    Args:
        device: a CPU or CUDA device.
        dtype: type of the matrices and arrays.

    Raises:
        ValueError: if the device is of another kind.
    """
    device = torch.device(device)
    if device.type not in MATRIX_SIZES:
        raise ValueError(f"the rates of device {device} cannot be measured; use {' or '.join(MATRIX_SIZES)}")
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
    """Measure the seconds of the fastest of several calls, after a warm-up call.

    Args:
        action: function to call; its work on a GPU is included.
        device: device that it uses.
        runs: maximal number of calls.
        seconds: no further call starts once the calls have taken this long.
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
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def mark(device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float | torch.cuda.Event:
    """Record a point in time, by a clock or on CUDA's own timeline, as CUDA runs asynchronously."""
    if device.type != "cuda":
        return clock()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    """Return the seconds from one ``mark`` to another; waits until the device has reached the second one.

    Raises:
        TypeError: if the marks are of different kinds of device.
    """
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    if isinstance(start, float) or isinstance(end, float):
        raise TypeError("one mark is of the CPU, the other of a CUDA device")
    end.synchronize()
    return start.elapsed_time(end) / 1000
