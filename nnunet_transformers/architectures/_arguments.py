"""Arguments that may be given once, per stage or per axis, and the checks of sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from torch import Tensor

PerAxis = int | Sequence[int]
# networks' arguments of types PerAxis and Sequence[PerAxis]
PER_AXIS_ARGUMENTS = ("patch_embed_stride", "kernel_size")
PER_STAGE_ARGUMENTS = ("merge_strides", "window_sizes", "sr_ratios", "decoder_sr_ratios")
# arguments of segmentation heads and their supervision
HEAD_ARGUMENTS = ("deep_supervision", "auxiliary_heads", "strides")
# of all stages, far above any published network: a file may claim any number
MAX_BLOCKS = 256
AXIS_NAMES = {2: ("height", "width"), 3: ("depth", "height", "width")}


def check_dimensions(patch_size: Sequence[int]) -> int:
    """Count the spatial axes of ``patch_size``.

    Returns:
        2 or 3.

    Raises:
        ValueError: if it is neither 2D nor 3D, or an edge is not positive.
    """
    if len(patch_size) not in AXIS_NAMES:
        raise ValueError(f"patch_size must have 2 or 3 axes, got {tuple(patch_size)}")
    if min(patch_size) < 1:
        raise ValueError(f"patch_size must be positive on every axis, got {tuple(patch_size)}")
    return len(patch_size)


def per_axis(value: PerAxis, ndim: int, name: str) -> tuple[int, ...]:
    """Expand ``value`` to ``ndim`` axes: an integer is repeated, a sequence must have one entry per axis.

    Raises:
        ValueError: on a wrong number of entries or an entry below 1; ``name`` is the argument's.
    """
    values = (value,) * ndim if isinstance(value, int) else tuple(int(v) for v in value)
    if len(values) != ndim:
        raise ValueError(f"{name} must be an integer or one integer per axis ({ndim}), got {value}")
    if min(values) < 1:
        raise ValueError(f"{name} must be positive, got {value}")
    return values


def per_stage(value: int | Sequence[PerAxis], num_stages: int, ndim: int, name: str) -> tuple[tuple[int, ...], ...]:
    """Expand ``value`` to stages and axes: an integer holds for all, a sequence must have one entry per stage.

    Raises:
        ValueError: if the sequence does not have ``num_stages`` entries or an entry does not fit the axes.
    """
    values = (value,) * num_stages if isinstance(value, int) else tuple(value)
    if len(values) != num_stages:
        raise ValueError(f"{name} must be an integer or one entry per stage ({num_stages}), got {value}")
    return tuple(per_axis(v, ndim, f"{name}[{i}]") for i, v in enumerate(values))


def one_per_stage(values: Sequence[int], num_stages: int, name: str) -> tuple[int, ...]:
    """Check that ``values`` has one integer per stage.

    Raises:
        ValueError: on another number of entries.
    """
    if isinstance(values, int) or len(values) != num_stages:
        raise ValueError(f"{name} must have one entry per stage ({num_stages}), got {values}")
    return tuple(int(v) for v in values)


def check_depth(depths: Sequence[int], name: str) -> None:
    """Check that a network has no absurd number of blocks, which would take hours to build.

    Raises:
        ValueError: if a number is negative, or together they exceed ``MAX_BLOCKS``; ``name`` is the argument's.
    """
    if min(depths, default=0) < 0 or sum(depths) > MAX_BLOCKS:
        raise ValueError(f"{name} must be 0 to {MAX_BLOCKS} blocks in total, got {sum(depths)}")


def in_plane(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Derive the arguments of a 2D network from a 3D one's: those with an entry per axis lose the first."""

    def cut(value: Any) -> Any:
        return tuple(value)[1:] if isinstance(value, Sequence) else value

    cut_down = {name: cut(arguments[name]) for name in PER_AXIS_ARGUMENTS if name in arguments}
    for name in PER_STAGE_ARGUMENTS:
        if isinstance(arguments.get(name), Sequence):
            cut_down[name] = tuple(cut(entry) for entry in arguments[name])
    return {**arguments, **cut_down}


def check_strides(given: Sequence[Sequence[int]] | None, actual: Sequence[Sequence[int]]) -> None:
    """Check a plan's copy of the strides against those that follow from the other arguments.

    Raises:
        ValueError: if they differ.
    """
    if given is not None and [list(s) for s in given] != [list(s) for s in actual]:
        raise ValueError(f"strides {given} contradict patch_embed_stride and merge_strides: {actual}")


def token_grids(patch_size: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Compute the elements per axis after each of the strides.

    Args:
        patch_size: voxels per axis.
        strides: per stage and axis.

    Raises:
        ValueError: if the total stride does not divide the patch.
    """
    check_divisible(patch_size, [prod(axis) for axis in zip(*strides, strict=True)])
    grids, size = [], tuple(patch_size)
    for stride in strides:
        size = tuple(n // s for n, s in zip(size, stride, strict=True))
        grids.append(size)
    return tuple(grids)


def check_divisible(patch_size: Sequence[int], divisor: Sequence[int]) -> None:
    """Check that the total stride of a network divides the patch.

    Raises:
        ValueError: names the axis, its size and the nearest sizes that work.
    """
    names = AXIS_NAMES[len(patch_size)]
    for axis, (size, step) in enumerate(zip(patch_size, divisor, strict=True)):
        if size % step:
            below, above = size // step * step, (size // step + 1) * step
            nearest = f"{below} or {above}" if below else f"{above}"
            raise ValueError(
                f"patch_size {tuple(patch_size)}: axis {axis} ({names[axis]}) has size {size}, which the network's "
                f"total stride of {step} does not divide; nearest valid sizes: {nearest}"
            )


def check_image_size(image: Tensor, patch_size: Sequence[int]) -> None:
    """Check that an image has the size that a network was built for.

    Args:
        image: (batch, channels, *size).
        patch_size: the size that it should have.

    Raises:
        ValueError: names the first axis that differs.
    """
    size, patch_size = tuple(image.shape[2:]), tuple(patch_size)
    if size == patch_size:
        return
    if len(size) != len(patch_size):
        raise ValueError(f"expected (batch, channels, {len(patch_size)} axes), got {tuple(image.shape)}")
    names = AXIS_NAMES[len(size)]
    axis = next(a for a in range(len(size)) if size[a] != patch_size[a])
    raise ValueError(
        f"image of size {size}: axis {axis} ({names[axis]}) has {size[axis]} voxels, but the network was built for "
        f"patch_size {patch_size}; nnU-Net's sliding window cuts and pads to it"
    )
