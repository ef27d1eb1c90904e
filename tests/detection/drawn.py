"""Radiographs with bright nodules on dark ground, and the boxes around them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from nnunet_transformers.pretraining.data.prepare import prepare


def write_nodules(folder: Path, images: int = 24, size: tuple[int, int] = (48, 40)) -> tuple[Path, Path]:
    """Write and prepare images with one bright square each, but for every fourth, in which there is none.

    Returns:
        the prepared folder and the table, with half of the images to train on, a quarter each to validate and test.
    """
    rng = np.random.default_rng(0)
    (folder / "raw").mkdir(parents=True)
    height, width = size
    rows = []
    for number in range(images):
        split = ("train", "train", "val", "test")[number // 4 % 4]
        pixels = rng.normal(60, 10, size).clip(0, 255)
        box: list[object] = [""] * 4
        if number % 4:
            w, h = rng.integers(8, 16, 2)
            x, y = rng.integers(width - w), rng.integers(height - h)
            pixels[y : y + h, x : x + w] = 220
            box = [x, y, w, h]
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "raw" / f"case_{number}.png")
        rows.append([f"case_{number}.png", *box, width, height, split])
    table = folder / "boxes.csv"
    with open(table, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "x", "y", "width", "height", "image_width", "image_height", "split"])
        writer.writerows(rows)
    prepare(folder / "raw", folder / "prepared", longest=48, normalization="rescale_to_0_1")
    return folder / "prepared", table
