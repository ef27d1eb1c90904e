"""Measure the growth of time and memory with patch, batch and number of images, each figure in its own process."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any

import torch
from scipy.stats import linregress
from torch import nn

from .machine import synchronise
from .measure import PeakMemory, Settings, bytes_of, make_predictor, time_training
from .networks import build_on

# modules that a child process has imported before it starts
_PRELOAD = [__name__]


@dataclass(frozen=True)
class PowerLaw:
    """Power law ``factor * x ** exponent``, with the standard error of the exponent."""

    exponent: float
    standard_error: float
    factor: float


def fit_power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """Fit a power law by least squares in the logarithms.

    Args:
        x, y: positive numbers, at least three of each, as the standard error requires.

    Raises:
        ValueError: if there are fewer, or a number is not positive.
    """
    if len(x) != len(y) or len(x) < 3:
        raise ValueError(f"a power law and its error need at least three points, got {len(x)} and {len(y)}")
    if min(*x, *y) <= 0:
        raise ValueError(f"a power law needs positive numbers, got {list(x)} and {list(y)}")
    logarithms = (torch.tensor(values, dtype=torch.float64).log().numpy() for values in (x, y))
    line = linregress(*logarithms)
    return PowerLaw(float(line.slope), float(line.stderr), float(torch.tensor(line.intercept).exp()))


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process, whose peak memory is then that of the call.

    Args:
        function: function at the top level of a module, as it is pickled.
        arguments: arguments, which are pickled like the result.

    Returns:
        the result of the function.
    """
    context: BaseContext
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOAD)
    else:  # Windows
        context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(function, arguments)


def training_step(name: str, settings: Settings) -> dict[str, float]:
    """Measure a training step (forward, backward, AdamW); call through ``in_child``.

    Args:
        name: name of a network, see ``build_on``.
        settings: settings of the measurement.

    Returns:
        "seconds", and "bytes": peak memory, including the network's own.
    """
    network = _build(name, settings)
    device = torch.device(settings.device)
    image = torch.randn(settings.batch_size, settings.input_channels, *settings.patch_size, device=device)
    memory = PeakMemory(device, bytes_of(network, image))
    return {"seconds": sum(time_training(network, image, settings)), "bytes": memory.bytes()}


def prediction(name: str, settings: Settings, images: int) -> dict[str, float]:
    """Measure nnU-Net's sliding window over images one after the other, without mirroring; call through ``in_child``.

    This is the part of ``nnUNetv2_predict`` between reading and writing. The time of an nnU-Net epoch, a fixed number
    of steps, does not depend on the number of images.

    Args:
        name: name of a network, see ``build_on``.
        settings: settings of the measurement; the volume is the size of an image.
        images: number of images.

    Returns:
        "seconds" for all images, after a warm-up image.
    """
    predictor = make_predictor(_build(name, settings), settings)

    def predict() -> None:
        predictor.predict_sliding_window_return_logits(torch.randn(settings.input_channels, *settings.volume_size))

    predict()
    synchronise(predictor.device)
    start = time.perf_counter()
    for _ in range(images):
        predict()
    synchronise(predictor.device)
    return {"seconds": time.perf_counter() - start}


def _build(name: str, settings: Settings) -> nn.Module:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = torch.device(settings.device)
    return build_on(device, name, settings.patch_size, settings.input_channels, settings.num_classes)
