"""Bright cubes and balls, or squares and discs, in noise: classes that a tiny network can tell apart."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunet_transformers.pretraining.data.prepare import prepare


def shape(kind: str, size: tuple[int, ...], rng: np.random.Generator) -> NDArray:
    """A ball, or the cube around it and brighter, at a random place."""
    radius = min(size) / 4
    centre = [rng.uniform(radius, n - radius) for n in size]
    grid = np.meshgrid(*(np.arange(n) - c for n, c in zip(size, centre, strict=True)), indexing="ij")
    distance = {"ball": np.linalg.norm, "cube": lambda g, axis: np.max(np.abs(g), axis)}[kind](np.array(grid), axis=0)
    return ((distance < radius) * (4.0 if kind == "cube" else 2.0) + rng.normal(0, 0.3, size)).astype(np.float32)


def write_shapes(
    folder: Path, images: int = 24, size: tuple[int, ...] = (16, 16, 16), splits: bool = True, **prepared: object
) -> tuple[Path, Path]:
    """Write and prepare images, half of them cubes.

    Returns:
        the prepared folder and the table, with half of the images to train on, a quarter each to validate and test.
    """
    rng = np.random.default_rng(0)
    (folder / "raw").mkdir(parents=True)
    rows = []
    for number in range(images):
        kind = ("cube", "ball")[number % 2]
        image = shape(kind, size, rng)
        sitk.WriteImage(sitk.GetImageFromArray(image), str(folder / "raw" / f"case_{number}.nii.gz"))
        split = ("train", "train", "val", "test")[number // 2 % 4]
        rows.append([f"case_{number}.nii.gz", kind, split][: 3 if splits else 2])
    table = folder / "labels.csv"
    with open(table, "w", newline="") as file:
        csv.writer(file).writerows([["image", "label", "split"][: 3 if splits else 2], *rows])
    prepare(folder / "raw", folder / "prepared", patch_size=(16, 16, 16), **prepared)
    return folder / "prepared", table
