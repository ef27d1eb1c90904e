"""From logits to labels, slab by slab: resample all classes of a few planes, choose the label, forget the logits.

nnU-Net resamples in float64, rounds to the type of the logits, float16, and takes the first of the largest. So does
this, class by class with a running maximum: a slab needs memory for one class in float64 and one label per voxel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from numpy.typing import NDArray
from torch import Tensor

from .resampling import SeparableResampling, separable_resampling

# voxels of a slab: what a processor's cache holds, and enough for a GPU
SLAB_VOXELS = {"cpu": 2**18}
GPU_SLAB_VOXELS = 2**22
# bits of a significand, the leading one included
SIGNIFICAND = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24}


class LabelMap:
    """Label map of an image that is filled from logits which arrive plane by plane along the first axis.

    Args:
        resampling: from the size of the logits to that of the image.
        labels: nnU-Net's labels or regions.
        box: first and last voxel, exclusive, of each axis of what was predicted in the image.
        image_shape: voxels per axis of the image.
        probabilities: array for the probabilities as well, (classes, *image_shape), float32.

    The first axis is that of the preprocessed image, before nnU-Net's axes are turned back.
    """

    def __init__(
        self,
        resampling: SeparableResampling,
        labels: LabelManager,
        box: Sequence[Sequence[int]],
        image_shape: Sequence[int],
        probabilities: NDArray[np.float32] | None = None,
    ) -> None:
        self._resampling, self._labels = resampling, labels
        inside = tuple(slice(int(first), int(last)) for first, last in box)
        of_all_classes = (slice(None), *inside)
        self._array = np.zeros(tuple(image_shape), np.uint8 if len(labels.foreground_labels) < 255 else np.uint16)
        self._inside = self._array[inside]
        self._probabilities = None if probabilities is None else probabilities[of_all_classes]
        if probabilities is not None:
            probabilities[...] = 0
            if not labels.has_regions:
                probabilities[0] = 1
        self.restart()

    def restart(self) -> None:
        """Expect the first plane again."""
        self._held: Tensor | None = None
        self._first = self._done = 0  # index of the first held plane of the logits; finished planes of the result

    def add(self, logits: Tensor) -> None:
        """Take the next planes of the logits, (classes, planes, rows, columns), and finish what results from them.

        Raises:
            ValueError: if they are more than there should be, or of another size.
        """
        resampling = self._resampling = self._resampling.to(logits.device)
        held_planes = 0 if self._held is None else self._held.shape[1]
        available = self._first + held_planes + logits.shape[1]
        if logits.shape[2:] != resampling.shape[1:] or available > resampling.shape[0]:
            size = "x".join(map(str, (available, *logits.shape[2:])))
            raise ValueError(f"logits of {size} voxels for an image of {'x'.join(map(str, resampling.shape))}")
        held = logits if self._held is None else torch.cat((self._held, logits), 1)
        ready = self._done
        while ready < resampling.new_shape[0] and resampling.needed(ready, ready + 1)[1] <= available:
            ready += 1
        parts = slabs(self._done, ready, resampling.new_shape[1:], logits.device)
        in_threads(lambda part: self._finish(held, *part), parts, logits.device)
        self._done = ready
        keep = resampling.needed(ready, ready + 1)[0] if ready < resampling.new_shape[0] else available
        keep = min(max(keep, self._first), available)
        self._held, self._first = held[:, keep - self._first :].clone(), keep

    @torch.inference_mode()  # which holds for a thread
    def _finish(self, held: Tensor, first: int, last: int) -> None:
        if self._labels.has_regions or self._probabilities is not None:
            labels = self._from_all_classes(held, first, last)
        else:
            labels = first_largest(self._resampling, held, first, last, self._first).cpu().numpy()
        self._inside[first:last] = labels

    def _from_all_classes(self, held: Tensor, first: int, last: int) -> NDArray[Any]:
        """Compute the labels of a slab by nnU-Net's own functions, and keep the probabilities if they are asked for."""
        slab = torch.stack([rounded(self._resampling, one, first, last, self._first, held.dtype) for one in held])
        slab = slab.to(held.dtype).cpu()
        if self._probabilities is None:
            return np.asarray(self._labels.convert_logits_to_segmentation(slab))
        probabilities = self._labels.apply_inference_nonlin(slab)
        self._probabilities[:, first:last] = probabilities.numpy()
        return np.asarray(self._labels.convert_probabilities_to_segmentation(probabilities))

    def array(self) -> NDArray[Any]:
        """Return the labels of the image.

        Raises:
            RuntimeError: if planes are missing.
        """
        if self._done != self._resampling.new_shape[0]:
            raise RuntimeError(f"{self._done} of {self._resampling.new_shape[0]} planes have logits")
        return self._array


def in_threads(work: Callable[[tuple[int, int]], None], parts: Sequence[tuple[int, int]], device: torch.device) -> None:
    """Do work for each part, on a CPU with as many threads as PyTorch has, each of which then computes alone.

    The threads of PyTorch's own operations would wait for each other at the end of every one.
    """
    before = torch.get_num_threads()
    if device.type != "cpu" or before == 1:
        for part in parts:
            work(part)
        return
    try:
        with ThreadPoolExecutor(
            max(1, min(before, len(parts))), initializer=torch.set_num_threads, initargs=(1,)
        ) as executor:
            list(executor.map(work, parts))
    finally:
        torch.set_num_threads(before)


def slabs(first: int, last: int, plane: Sequence[int], device: torch.device) -> list[tuple[int, int]]:
    """Divide a range of planes into slabs of about as many voxels as suit a device."""
    step = max(1, SLAB_VOXELS.get(device.type, GPU_SLAB_VOXELS) // prod(plane))
    return [(start, min(start + step, last)) for start in range(first, last, step)]


def rounded(
    resampling: SeparableResampling, values: Tensor, first: int, last: int, offset: int, dtype: torch.dtype
) -> Tensor:
    """Resample planes of one class and round them to the significand of a type, in float64.

    The rounding is Veltkamp's, by a product and two differences. A conversion by PyTorch goes through float32 and so
    rounds twice; NumPy's takes five times as long. Below 2^-14, where float16 has fewer bits, it keeps 11 of them.
    """
    result = resampling.planes(values, first, last, offset)
    if dtype not in SIGNIFICAND or resampling.is_identity:
        return result
    scaled = result * float(2 ** (53 - SIGNIFICAND[dtype]) + 1)
    return result.sub_(scaled).add_(scaled)


def first_largest(resampling: SeparableResampling, held: Tensor, first: int, last: int, offset: int) -> Tensor:
    """Return the class of each voxel of a slab, the first one of the largest, as NumPy's argmax.

    Args:
        held: (classes, planes, rows, columns), logits whose first plane has the index ``offset``.
        first, last: range of planes of the result.
    """
    best = rounded(resampling, held[0], first, last, offset, held.dtype)
    labels = torch.zeros(best.shape, dtype=torch.uint8 if len(held) <= 256 else torch.int32, device=best.device)
    is_better = torch.empty(best.shape, dtype=torch.bool, device=best.device)
    for number, values in enumerate(held[1:], 1):
        one = rounded(resampling, values, first, last, offset, held.dtype)
        torch.gt(one, best, out=is_better)
        labels.masked_fill_(is_better, number)
        torch.maximum(best, one, out=best)
    return labels


def begin_label_map(
    plans: PlansManager,
    configuration: ConfigurationManager,
    labels: LabelManager,
    properties: Mapping[str, Any],
    logits_shape: Sequence[int],
    probabilities: NDArray[np.float32] | None = None,
) -> LabelMap | None:
    """Return an empty label map for a preprocessed image; None if its export is not one of these here.

    nnU-Net's own export is then needed: the plan names another resampling, a spline, or another class of labels.

    Args:
        properties: what nnU-Net's preprocessing notes of the image.
        logits_shape: voxels per axis of the logits.
        probabilities: see ``LabelMap``.
    """
    if type(labels) is not LabelManager:
        return None
    shape = properties["shape_after_cropping_and_before_resampling"]
    spacing = [properties["spacing"][i] for i in plans.transpose_forward]
    # a 2D plan leaves the first axis of volumes as it is
    current = (
        configuration.spacing if len(configuration.spacing) == len(shape) else [spacing[0], *configuration.spacing]
    )
    resampling = separable_resampling(configuration.resampling_fn_probabilities, logits_shape, shape, current, spacing)
    if resampling is None:
        return None
    box = properties["bbox_used_for_cropping"]
    return LabelMap(resampling, labels, box, properties["shape_before_cropping"], probabilities)
