"""How time and memory grow with the patch, the batch and the number of images, each figure from its own process."""

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

# what a child has imported before it starts: this module
_PRELOAD = [__name__]


@dataclass(frozen=True)
class PowerLaw:
    """factor * x ** exponent, with the standard error of the exponent."""

    exponent: float
    standard_error: float
    factor: float


def fit_power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """Least squares in logarithms.

    Args:
        x, y: positive, three or more of each, for an error to be known.

    Raises:
        ValueError: if there are fewer, or other than positive ones.
    """
    if len(x) != len(y) or len(x) < 3:
        raise ValueError(f"a power law and its error take three points or more, got {len(x)} and {len(y)}")
    if min(*x, *y) <= 0:
        raise ValueError(f"a power law takes positive numbers, got {list(x)} and {list(y)}")
    logarithms = (torch.tensor(values, dtype=torch.float64).log().numpy() for values in (x, y))
    line = linregress(*logarithms)
    return PowerLaw(float(line.slope), float(line.stderr), float(torch.tensor(line.intercept).exp()))


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call in a new process, whose peak memory is then that of this call.

    Args:
        function: of a module, as it is pickled.
        arguments: pickled as well; so is what the function gives.
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
    """A step of training, forward, backward and AdamW; see ``in_child``.

    Args:
        name: of ``build_on``.
        settings: patch, batch and all else.

    Returns:
        "seconds", and "bytes": the peak, the network's own included.
    """
    network = _build(name, settings)
    device = torch.device(settings.device)
    image = torch.randn(settings.batch_size, settings.input_channels, *settings.patch_size, device=device)
    memory = PeakMemory(device, bytes_of(network, image))
    return {"seconds": sum(time_training(network, image, settings)), "bytes": memory.bytes()}


def prediction(name: str, settings: Settings, images: int) -> dict[str, float]:
    """nnU-Net's sliding window over images one after the other, without mirroring; see ``in_child``.

    This is what ``nnUNetv2_predict`` does between reading and writing; the time of an epoch of nnU-Net's, which is a
    number of steps, does not depend on the number of images.

    Args:
        name: of ``build_on``.
        settings: its volume is the size of an image.
        images: how many.

    Returns:
        "seconds" for all images, after one that does not count.
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
