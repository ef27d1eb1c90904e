"""Estimate time and memory of a prediction from the number of tiles and a timed pass of one tile."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

from ..export.resampling import is_separable
from ..inference.accumulator import FINISHED_BYTES, STAGE_BYTES
from ..inference.image_resampling import coefficient_bytes
from ..inference.preprocessing import PredictionConfiguration
from ..plans.planned import channel_names
from .load import LoadedModel

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# memory of Python, torch and nnU-Net before a model is loaded, if the system does not report it
BASE_BYTES = 0.6e9
# bytes per voxel while nnU-Net resamples a channel: in float64 the channel, a padded copy and its spline coefficients,
# and the masks of what is not zero
RESAMPLING = 3 * 8 + 3
# bytes per voxel while a channel is normalised: the masks, and copies for its mean and deviation
NORMALISING = 9
# more than any network here or of nnU-Net's takes for its passes: in all, and per voxel of a large patch
AMPLE, AMPLE_PER_VOXEL = 2**31, 2**14


@dataclass(frozen=True)
class Estimate:
    """Time and memory for the prediction of an image.

    Attributes:
        resampled: voxels per axis of the resampled image, at least those of the patch.
        tiles: number of tiles of the sliding window.
        passes: number of forward passes, of all folds, flips and stages of a cascade.
        seconds: time of the prediction.
        host_bytes: main memory.
        device_bytes: memory of the GPU; 0 on a CPU.
    """

    resampled: tuple[int, ...]
    tiles: int
    passes: int
    seconds: float
    host_bytes: int
    device_bytes: int

    def __str__(self) -> str:
        size = "x".join(map(str, self.resampled))
        device = f", {self.device_bytes / 1e9:.1f} GB on the device" if self.device_bytes else ""
        return (
            f"{size} voxels after resampling, {self.tiles} tiles, {self.passes} passes: about {self.seconds:.0f} s and "
            f"{self.host_bytes / 1e9:.1f} GB of memory{device}"
        )


def needed_bytes(
    loaded: LoadedModel,
    shape: Sequence[int],
    spacing: Sequence[float],
    with_passes: bool = True,
    with_probabilities: bool = False,
) -> int:
    """Estimate the main memory in bytes for an image beyond that of the loaded model: the peak of preprocessing,
    sliding window with its passes, and export.

    Args:
        loaded: a model of a package.
        shape: voxels per axis, three of them, in the order of the array.
        spacing: mm per voxel, in the same order.
        with_passes: count what the network needs in a pass, if it runs on the CPU.
        with_probabilities: whether they are written; where export is slab by slab, they are in a file meanwhile.
    """
    predictor = loaded.predictor
    heads = predictor.label_manager.num_segmentation_heads
    channels = len(channel_names(predictor.dataset_json))
    voxels, resampled = int(np.prod(shape)), int(np.prod(_padded(loaded, shape, spacing)))
    image = 4 * channels * voxels
    folds = len(predictor.list_of_parameters)
    if loaded.previous is None and type(predictor.configuration_manager) is PredictionConfiguration:
        # the channels as read, of up to 4 bytes, the last one twice, and in float32
        reading = 2 * image + 4 * voxels
        resampling = image + coefficient_bytes(shape) + 4 * channels * resampled
        preprocessing = max(reading, image + NORMALISING * voxels, resampling)
    else:
        # the image as read, cropped and normalised; the result of a channel in float64, and that of all
        preprocessing = 3 * image + RESAMPLING * voxels + (8 + 4 * channels) * resampled
    data = resampled * 2 * 4 * loaded.input_shape[0]
    if is_separable(predictor.configuration_manager.resampling_fn_probabilities):
        # sums of as many planes as a patch has, in float16; finished logits, with those that export keeps; the label
        # map, and its copies when it is written
        size, patch = _padded(loaded, shape, spacing), predictor.configuration_manager.patch_size
        row = 2 * heads * int(np.prod(size[1:]))
        kept = min(row * size[0], row * patch[0] if len(patch) == 3 else max(row, STAGE_BYTES // folds))
        finished = min(kept, max(row, FINISHED_BYTES))
        window, export = data + kept * folds + finished * (folds + 2) + 2 * voxels, 3 * voxels
    else:
        # the logits are float16; the sum over folds is a second array of them
        window = data + resampled * (2 * heads * (min(2, folds) + 1) + 2)
        export = (
            resampled * heads * (2 + 8) + voxels * (2 * heads + 8 + 8) if resampled != voxels else voxels * 4 * heads
        )
        if with_probabilities:  # logits before and after resampling, probabilities, their copy, and labels, as below
            export = max(export, heads * (2 * resampled + (2 + 4 + 4) * voxels) + 8 * voxels)
    if with_passes and predictor.device.type == "cpu":
        window += loaded.pass_bytes
    own = int(max(preprocessing, window, export))
    return own if loaded.previous is None else max(own, needed_bytes(loaded.previous, shape, spacing, with_passes))


def averaging_bytes(models: Sequence[LoadedModel], shape: Sequence[int]) -> int:
    """Return the main memory in bytes that averaging an ensemble's probabilities takes; 0 for a single model.

    Args:
        models: models of a package.
        shape: voxels per axis of the image.
    """
    if len(models) == 1:
        return 0
    heads, voxels = models[0].predictor.label_manager.num_segmentation_heads, int(np.prod(shape))
    # in float32 the mean, and the copy of it in which NumPy looks for the largest, and labels of 64 bits
    return voxels * (2 * 4 * heads + 8)


def exceeding_bytes(
    models: Sequence[LoadedModel],
    shape: Sequence[int],
    spacing: Sequence[float],
    free: int,
    with_probabilities: bool = False,
) -> int | None:
    """Return the main memory in bytes for an image if it is more than what is free, otherwise None.

    Args:
        models: all models of a package, which predict the image one after another.
        shape, spacing: as ``needed_bytes``.
        free: free memory in bytes.
        with_probabilities: whether those of a single model are written; those of an ensemble's models always are.
    """
    with_probabilities = with_probabilities or len(models) > 1
    needed = averaging_bytes(models, shape)
    for loaded in models:
        voxels = int(np.prod(loaded.predictor.configuration_manager.patch_size))
        arrays = needed_bytes(loaded, shape, spacing, False, with_probabilities)
        # to count the memory of a pass takes as long as several passes of a small patch
        if free - arrays <= max(AMPLE, AMPLE_PER_VOXEL * voxels):
            needed = max(needed, needed_bytes(loaded, shape, spacing, True, with_probabilities))
    return needed if needed > free else None


def estimate(loaded: Sequence[LoadedModel], shape: Sequence[int], spacing: Sequence[float] | None = None) -> Estimate:
    """Estimate time and memory for the prediction of an image with all models of a package.

    Args:
        loaded: result of ``load_package``.
        shape: voxels per axis, three of them (1 first for a 2D image), in the order of the array.
        spacing: mm per voxel; the plan's by default.

    Raises:
        ValueError: if shape or spacing are not three positive numbers.
    """
    if len(shape) != 3 or min(shape) < 1 or (spacing is not None and (len(spacing) != 3 or min(spacing) <= 0)):
        raise ValueError("--size and --spacing must be three positive numbers such as 128,256,256; 1 first for 2D")
    # an ensemble's models write probabilities, the first stages of cascades do not
    writes = len(loaded) > 1
    parts = [_one(part, shape, spacing, writes and part is model) for model in loaded for part in _stages(model)]
    needed = max(averaging_bytes(loaded, shape), *(part.host_bytes for part in parts))
    # the networks are loaded and have done a pass; another process needs the same memory for that
    host = needed + max(_peak_bytes(), int(BASE_BYTES))
    return Estimate(
        parts[-1].resampled,
        sum(part.tiles for part in parts),
        sum(part.passes for part in parts),
        sum(part.seconds for part in parts),
        host,
        max(part.device_bytes for part in parts),
    )


def _stages(loaded: LoadedModel) -> list[LoadedModel]:
    return [*([] if loaded.previous is None else _stages(loaded.previous)), loaded]


def _peak_bytes() -> int:
    """Return the peak main memory of this process in bytes; 0 if the system does not report it."""
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _padded(loaded: LoadedModel, shape: Sequence[int], spacing: Sequence[float]) -> tuple[int, ...]:
    predictor = loaded.predictor
    order = predictor.plans_manager.transpose_forward
    turned, old = [shape[i] for i in order], [float(spacing[i]) for i in order]
    target = list(predictor.configuration_manager.spacing)
    target = [old[0], *target] if len(target) == 2 else target
    new = compute_new_shape(turned, old, target)
    patch = predictor.configuration_manager.patch_size
    return tuple(int(max(n, p)) for n, p in zip(new, [1, *patch][-3:], strict=True))


def _own_spacing(loaded: LoadedModel) -> list[float]:
    spacing = list(loaded.predictor.configuration_manager.spacing)
    spacing = [1.0, *spacing] if len(spacing) == 2 else spacing
    return [spacing[i] for i in loaded.predictor.plans_manager.transpose_backward]


def _one(
    loaded: LoadedModel, shape: Sequence[int], spacing: Sequence[float] | None, with_probabilities: bool
) -> Estimate:
    predictor = loaded.predictor
    spacing = spacing or _own_spacing(loaded)
    size = _padded(loaded, shape, spacing)
    tiles = len(predictor._internal_get_sliding_window_slicers(size))
    axes = predictor.allowed_mirroring_axes if predictor.use_mirroring else None
    passes = tiles * len(predictor.list_of_parameters) * 2 ** len(axes or ())
    seconds, device_bytes = _time_pass(loaded)
    heads = predictor.label_manager.num_segmentation_heads
    if device_bytes:
        device_bytes += int(np.prod(size)) * (4 * loaded.input_shape[0] + 2 * heads + 2)
    host = needed_bytes(loaded, shape, spacing, False, with_probabilities)
    return Estimate(size, tiles, passes, passes * seconds, host, device_bytes)


@torch.inference_mode()
def _time_pass(loaded: LoadedModel) -> tuple[float, int]:
    """Measure the seconds of a forward pass, the faster of two after a warm-up, and the GPU's peak memory in bytes."""
    network, device = loaded.predictor.network, loaded.predictor.device
    network.to(device).eval()
    patch = torch.randn(1, *loaded.input_shape, device=device)
    seconds = []
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    with torch.autocast("cuda") if is_cuda else nullcontext():
        for _ in range(3):
            start = time.perf_counter()
            network(patch)
            if is_cuda:
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
    return min(seconds[1:]), torch.cuda.max_memory_allocated(device) if is_cuda else 0
