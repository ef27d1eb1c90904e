"""nnU-Net's datasets of SIIM and RSNA, as MGCA segments them (supplement, B.3); docs/radiographs.md has the commands.

python docs/examples/radiograph_datasets.py siim SIIM nnUNet_raw/Dataset007_SIIM 224

Images and masks are stretched to a square, the masks of RSNA are its boxes. ``splits_final.json`` has three folds that
validate on the same images: 0 trains on all others, 1 on 10 % of them, 2 on 1 %. The test set is in ``imagesTs`` and
``labelsTs``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.model_selection import train_test_split

from nnunet_transformers.pretraining.data.radiographs import read_radiograph
from nnunet_transformers.pretraining.data.transforms import resize

SHARES = (1.0, 0.1, 0.01)
# of the masks and boxes as downloaded
SIZE = 1024
Mask = Callable[[str], NDArray]


def siim(folder: Path) -> tuple[dict[str, Path], Mask, dict[str, list[str]]]:
    """SIIM-ACR's pneumothoraces: 70, 15 and 15 % of the images; training has as many images without one as with."""
    table = pd.read_csv(folder / "train-rle.csv", dtype=str, skipinitialspace=True)
    runs = table.groupby("ImageId")["EncodedPixels"].agg(list)
    files = {path.stem: path for path in folder.rglob("*.dcm") if path.stem in runs.index}

    def mask(name: str) -> NDArray:
        flat = np.zeros(SIZE * SIZE, np.uint8)
        for text in runs[name]:
            numbers = [] if text == "-1" else list(map(int, text.split()))
            end = 0
            # starts count from the end of the run before
            for offset, length in zip(numbers[::2], numbers[1::2], strict=True):
                flat[end + offset : end + offset + length] = 1
                end += offset + length
        return flat.reshape(SIZE, SIZE).T  # by columns

    parts = split(sorted(files), 0.15)
    positive = [name for name in parts["train"] if runs[name] != ["-1"]]
    rest = [name for name in parts["train"] if runs[name] == ["-1"]]
    drawn = np.random.default_rng(0).permutation(rest)[: len(positive)].tolist()
    return files, mask, {**parts, "train": sorted(positive + drawn)}


def rsna(folder: Path) -> tuple[dict[str, Path], Mask, dict[str, list[str]]]:
    """RSNA's opacities: their boxes are the mask; 5337 images each to validate and to test on, as in the release."""
    table = pd.read_csv(folder / "stage_2_train_labels.csv", dtype={"patientId": str})
    boxes = dict(list(table.dropna(subset=["x"]).groupby("patientId")))
    files = {name: folder / "stage_2_train_images" / f"{name}.dcm" for name in sorted(set(table["patientId"]))}

    def mask(name: str) -> NDArray:
        drawn = np.zeros((SIZE, SIZE), np.uint8)
        for box in boxes[name].itertuples() if name in boxes else ():
            drawn[round(box.y) : round(box.y + box.height), round(box.x) : round(box.x + box.width)] = 1
        return drawn

    return files, mask, split(list(files), min(5337, int(0.2 * len(files))))


def split(names: list[str], held_out: float) -> dict[str, list[str]]:
    """Draw as many images to validate on as to test on; a number, or a share below 1."""
    training, rest = train_test_split(names, test_size=2 * held_out, random_state=0)
    validation, test = train_test_split(rest, test_size=0.5, random_state=0)
    return {"train": sorted(training), "val": sorted(validation), "test": sorted(test)}


def folds(parts: dict[str, list[str]]) -> list[dict[str, list[str]]]:
    """A fold for each of ``SHARES``."""
    order = np.random.default_rng(0).permutation(parts["train"]).tolist()
    numbers = [max(1, int(share * len(order))) for share in SHARES]
    return [{"train": sorted(order[:number]), "val": parts["val"]} for number in numbers]


def write(source: Path, dataset: Path, size: int, name: str, label: str) -> None:
    """Write a dataset."""
    files, mask, parts = DATASETS[name](source)
    for part, names in parts.items():
        end = "Ts" if part == "test" else "Tr"
        images, labels = (dataset / f"{kind}{end}" for kind in ("images", "labels"))
        for folder in (images, labels):
            folder.mkdir(parents=True, exist_ok=True)
        for case in names:
            pixels = resize(read_radiograph(files[case], 1, size), (size, size))[0]
            Image.fromarray((pixels * 255).round().to(torch.uint8).numpy()).save(images / f"{case}_0000.png")
            Image.fromarray(mask(case)).resize((size, size), Image.Resampling.NEAREST).save(labels / f"{case}.png")
    (dataset / "splits_final.json").write_text(json.dumps(folds(parts), indent=2))
    content = {
        "channel_names": {"0": "rescale_to_0_1"},
        "labels": {"background": 0, label: 1},
        "numTraining": len(parts["train"]) + len(parts["val"]),
        "file_ending": ".png",
    }
    (dataset / "dataset.json").write_text(json.dumps(content, indent=2))
    print(f"{dataset}: " + ", ".join(f"{len(names)} {part}" for part, names in parts.items()))


DATASETS = {"siim": siim, "rsna": rsna}
LABELS = {"siim": "pneumothorax", "rsna": "opacity"}

if __name__ == "__main__":
    given, source, output, edge = sys.argv[1:]
    write(Path(source), Path(output), int(edge), given, LABELS[given])
