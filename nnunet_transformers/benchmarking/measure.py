"""Measure one network in one process: size, time, peak memory and throughput of the sliding window.

``run_benchmark`` runs ``python -m nnunet_transformers.benchmarking.measure JOB RESULT`` in a process for each network,
so that the process's peak memory is that of the network.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import ceil, prod
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from .._atomic import write_json
from .costs import CostCounter
from .environment import describe_environment
from .machine import Rates, mark, measure_rates, seconds_between, synchronise
from .networks import build_on
from .roofline import measure_roofline

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

STATUS = Path("/proc/self/status")
PRECISIONS = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}
# minimal number of runs of an action after the warm-up
MIN_RUNS = 2
# voxels of the image for the sliding window on CUDA: a large CT; on CPU 1.5 patches per axis
CT = (300, 512, 512)


@dataclass(frozen=True)
class Settings:
    """Settings that all networks of a run share.

    Attributes:
        patch_size: voxels per axis, two or three of them.
        input_channels, num_classes, batch_size: sizes of the image and the logits.
        device: cpu or cuda.
        precision: float32, or on CUDA float16 or bfloat16, by autocast.
        compile: whether to use ``torch.compile``.
        threads: PyTorch's threads on CPU; None for its default.
        seconds: time for which an action is repeated, at least twice.
        processor_time: on CPU with one thread, measure the processor's time instead of the wall clock's, which other
            load on the machine changes less.
        volume: voxels per axis, three of them, of the image for the sliding window; None for ``CT`` on CUDA and 1.5
            patches per axis on CPU (a slice of that in 2D); () to leave out the sliding window.
    """

    patch_size: tuple[int, ...]
    input_channels: int = 1
    num_classes: int = 14
    batch_size: int = 1
    device: str = "cpu"
    precision: str = "float32"
    compile: bool = False
    threads: int | None = None
    seconds: float = 1.0
    processor_time: bool = False
    volume: tuple[int, ...] | None = None

    @property
    def volume_size(self) -> tuple[int, ...]:
        """Voxels per axis of the image for the sliding window."""
        if self.volume is not None:
            return self.volume
        if self.device == "cuda":
            return CT
        return (1,) * (3 - len(self.patch_size)) + tuple(ceil(1.5 * n) for n in self.patch_size)

    def clock(self) -> float:
        """Seconds of the clock by which times are measured on CPU."""
        return time.process_time() if self.processor_time else time.perf_counter()

    def autocast(self) -> AbstractContextManager:
        """Return the context for passes in this precision."""
        dtype = PRECISIONS[self.precision]
        # a pass with gradients must not use weights that one without gradients has cast
        return nullcontext() if dtype is None else torch.autocast(self.device, dtype=dtype, cache_enabled=False)


def time_actions(
    actions: Sequence[Callable[[], Any]],
    device: torch.device,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Measure the median seconds of each of several consecutive actions, after a warm-up round.

    Args:
        actions: functions to call in turn.
        device: device that they use.
        seconds: of the wall clock, for which they are repeated, at least ``MIN_RUNS`` times.
        clock: clock of the measurement on CPU.
    """
    rounds: list[list[float]] = []
    for action in actions:
        action()
    end = time.perf_counter() + seconds
    while len(rounds) < MIN_RUNS or time.perf_counter() < end:
        marks = [mark(device, clock)]
        for action in actions:
            action()
            marks.append(mark(device, clock))
        rounds.append([seconds_between(start, end) for start, end in pairwise(marks)])
    return [median(times) for times in zip(*rounds, strict=True)]


class PeakMemory:
    """Peak memory since the creation of this object: of CUDA, or the growth of this process plus ``own``.

    Args:
        device: device whose memory is measured.
        own: bytes allocated before the creation that count as well.
    """

    def __init__(self, device: torch.device, own: int) -> None:
        self.device, self.own = device, own
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self.before = self._resident()

    @staticmethod
    def _resident() -> int:
        # preferred to ru_maxrss, which a new process inherits from its parent
        if STATUS.is_file():
            lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
            return 1024 * int(lines["VmHWM"].split()[0])
        if resource is None:
            return 0  # not reported by the system; only ``own`` remains
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def bytes(self) -> int:
        """Return the peak memory so far."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return self.own + self._resident() - self.before


def bytes_of(network: nn.Module, image: Tensor) -> int:
    """Return the bytes of parameters, buffers, other tensors that the modules hold, and the image."""
    held = [value for module in network.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return sum(t.nbytes for t in (*network.parameters(), *network.buffers(), *held, image))


def count_multiply_adds(network: nn.Module, image: Tensor) -> int:
    """Count the multiply-adds of one forward pass in convolutions, matrix products and attention."""
    with CostCounter() as counter, torch.no_grad():
        network(image)
    return counter.cost.multiply_adds


def time_forward(network: nn.Module, image: Tensor, settings: Settings) -> float:
    """Measure the median seconds of a forward pass in inference mode."""

    def forward() -> None:
        with torch.inference_mode(), settings.autocast():
            network(image)

    network.eval()
    (seconds,) = time_actions([forward], image.device, settings.seconds, settings.clock)
    return seconds


def time_training(network: nn.Module, image: Tensor, settings: Settings) -> tuple[float, float]:
    """Measure the median seconds of a training step: of forward and backward, and of AdamW's step.

    The gradient of the logits is random and drawn once, so the time includes no loss and no gradient underflows in half
    precision.
    """
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    gradient: Tensor | None = None

    def forward_backward() -> None:
        nonlocal gradient
        optimiser.zero_grad()
        with settings.autocast():
            logits = network(image)
        gradient = 1e-3 * torch.randn_like(logits) if gradient is None else gradient
        logits.backward(gradient)

    actions = [forward_backward, optimiser.step]
    forward_backward_s, step_s = time_actions(actions, image.device, settings.seconds, settings.clock)
    return forward_backward_s, step_s


def make_predictor(network: nn.Module, settings: Settings) -> nnUNetPredictor:
    """Create nnU-Net's sliding-window predictor with its defaults, without mirroring and without a plan on disk.

    nnU-Net predicts on CUDA with autocast; its type is set to that of the settings.
    """
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    if settings.device == "cuda":
        torch.set_autocast_dtype("cuda", PRECISIONS[settings.precision] or torch.float32)
    device = torch.device(settings.device)
    predictor = nnUNetPredictor(use_mirroring=False, device=device, allow_tqdm=False)
    predictor.network = network
    predictor.configuration_manager = SimpleNamespace(patch_size=settings.patch_size)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=settings.num_classes)
    return predictor


def sliding_window_throughput(network: nn.Module, settings: Settings) -> float:
    """Measure the voxels per second of nnU-Net's sliding window over the settings' volume."""
    predictor = make_predictor(network, settings)
    tile = (1,) * (3 - len(settings.patch_size)) + tuple(settings.patch_size)
    predictor.predict_sliding_window_return_logits(torch.randn(settings.input_channels, *tile))
    volume = torch.randn(settings.input_channels, *settings.volume_size)
    start = settings.clock()
    predictor.predict_sliding_window_return_logits(volume)
    synchronise(predictor.device)
    return prod(settings.volume_size) / (settings.clock() - start)


def measure(name: str, settings: Settings, rates: Rates | None = None) -> dict[str, Any]:
    """Measure all figures of a network; to be called in a fresh process, whose peak memory is measured.

    Args:
        name: name of a network, see ``build_on``.
        settings: settings that all networks share.
        rates: rates of the device, to measure the roofline as well.

    Returns:
        ``parameters``; ``multiply_adds`` of a sample; ``forward_s``, ``forward_backward_s``, ``optimiser_step_s`` and
        their sum ``training_step_s``, seconds; ``forward_bytes`` and ``training_bytes``, peak memory with the
        network's own; ``voxels_per_s`` of the sliding window; ``roofline``, of ``roofline.measure_roofline``, without
        ``torch.compile``.
    """
    device = torch.device(settings.device)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # as nnU-Net trains
    network = build_on(device, name, settings.patch_size, settings.input_channels, settings.num_classes)
    image = torch.randn(settings.batch_size, settings.input_channels, *settings.patch_size, device=device)
    figures: dict[str, Any] = {"parameters": sum(p.numel() for p in network.parameters())}
    memory = PeakMemory(device, bytes_of(network, image))
    with settings.autocast():
        figures["multiply_adds"] = count_multiply_adds(network.eval(), image) // settings.batch_size
    plain = network
    if settings.compile:
        network = cast(nn.Module, torch.compile(network))
    figures["forward_s"] = time_forward(network, image, settings)
    figures["forward_bytes"] = memory.bytes()
    figures["forward_backward_s"], figures["optimiser_step_s"] = time_training(network, image, settings)
    figures["training_step_s"] = figures["forward_backward_s"] + figures["optimiser_step_s"]
    figures["training_bytes"] = memory.bytes()
    network.zero_grad()
    if settings.volume_size:
        figures["voxels_per_s"] = sliding_window_throughput(network, settings)
    if rates is not None:
        with settings.autocast():
            figures["roofline"] = measure_roofline(plain, image, rates)
    return figures


def main() -> None:
    """Run the job given as JSON in the first argument, and write its result to the file in the second.

    A job without a network measures the device: its description by ``describe_environment`` and, on request, its rates.
    """
    job = json.loads(sys.argv[1])
    settings = Settings(**job["settings"])
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if job["network"] is None:
        device = torch.device(settings.device)
        content = {"environment": describe_environment(device), "rates": None}
        if job["roofline"]:
            content["rates"] = asdict(measure_rates(device, PRECISIONS[settings.precision] or torch.float32))
    else:
        content = measure(job["network"], settings, Rates(**job["rates"]) if job["roofline"] else None)
    write_json(content, Path(sys.argv[2]))


if __name__ == "__main__":
    main()
