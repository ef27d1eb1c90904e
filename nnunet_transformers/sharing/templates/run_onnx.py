"""Segment an array with the networks beside this file; needs numpy and onnxruntime.

    python run.py IMAGE.npy LABELS.npy

The image is (channels, z, y, x) with the spacing of model.json, mm along z, y, x, since resampling is left to the
caller. An axis whose spacing is null is not resampled: the network is 2D.
"""

import json
import sys
from itertools import combinations, product
from pathlib import Path

import numpy as np
import onnxruntime

FOLDER = Path(__file__).resolve().parent


def normalise(channel, scheme, mean, std, percentile_00_5, percentile_99_5, **_):
    if scheme == "CTNormalization":
        return (np.clip(channel, percentile_00_5, percentile_99_5) - np.float32(mean)) / np.float32(max(std, 1e-8))
    if scheme == "ZScoreNormalization":
        return (channel - channel.mean()) / max(channel.std(), 1e-8)
    if scheme == "RescaleTo01Normalization":
        return (channel - channel.min()) / max((channel - channel.min()).max(), 1e-8)
    return channel


def of_all(box):
    """Return a part of an image for all channels or classes."""
    return (slice(None), *box)


def starts(size, patch, step):
    count = int(np.ceil((size - patch) / (patch * step))) + 1
    return [int(np.round((size - patch) / max(count - 1, 1) * i)) for i in range(count)]


def segment(image, model, networks, window):
    """Return the labels, (z, y, x), of an image, (channels, z, y, x)."""
    turn = model["transpose_forward"]
    image = image.astype(np.float32).transpose(0, *(axis + 1 for axis in turn))
    whole = np.zeros(image.shape[1:], np.uint16)
    found = np.nonzero((image != 0).any(0))
    box = tuple(slice(i.min(), i.max() + 1) for i in found) if len(found[0]) else (slice(None),) * 3
    image = image[of_all(box)]
    image = np.stack([normalise(c, **how) for c, how in zip(image, model["normalisation"], strict=True)]).astype(
        np.float32
    )
    patch = [1] * (3 - len(model["patch_size"])) + model["patch_size"]
    lacking = [max(0, p - n) for p, n in zip(patch, image.shape[1:], strict=True)]
    inside = tuple(slice(lack // 2, lack // 2 + n) for lack, n in zip(lacking, image.shape[1:], strict=True))
    image = np.pad(image, [(0, 0), *((lack // 2, lack - lack // 2) for lack in lacking)])
    mirrored = [axis + 4 - len(model["patch_size"]) for axis in model["mirroring_axes"]]
    flips = [axes for n in range(len(mirrored) + 1) for axes in combinations(mirrored, n)]
    mean = 0
    for network in networks:
        sums, weights = None, np.zeros(image.shape[1:], np.float16)
        corners = [
            starts(n, p, model["step_size"] if p > 1 else 1) for n, p in zip(image.shape[1:], patch, strict=True)
        ]
        for corner in product(*corners):
            tile = tuple(slice(i, i + p) for i, p in zip(corner, patch, strict=True))
            logits = 0
            for axes in flips:
                flipped = np.flip(image[of_all(tile)], axes).reshape(1, len(image), *model["patch_size"])
                (result,) = network.run(None, {network.get_inputs()[0].name: np.ascontiguousarray(flipped)})
                logits = logits + np.flip(result[0].reshape(-1, *patch), axes)
            if sums is None:
                sums = np.zeros((len(logits), *image.shape[1:]), np.float16)
            sums[of_all(tile)] += logits / len(flips) * window.reshape(patch)
            weights[tile] += window.reshape(patch)
        mean = mean + sums / weights
    logits = (mean / len(networks))[of_all(inside)]
    if model["regions_class_order"]:
        labels = np.zeros(logits.shape[1:], np.uint16)
        for region, label in zip(logits, model["regions_class_order"], strict=True):
            labels[region > 0] = label
    else:
        labels = logits.argmax(0)
    whole[box] = labels
    return whole.transpose(np.argsort(turn))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    model = json.loads((FOLDER / "model.json").read_text())
    image, channels = np.load(sys.argv[1]), model["channels"]
    if image.ndim != 4 or len(image) != len(channels):
        sys.exit(
            f"{sys.argv[1]} has shape {image.shape}, the model takes (channels, z, y, x) with {len(channels)} "
            f"channels: {', '.join(channels)}. A single image needs a first axis of length 1: image[None]"
        )
    networks = [onnxruntime.InferenceSession(str(FOLDER / name)) for name in model["networks"]]
    labels = segment(image, model, networks, np.load(FOLDER / model["window"]))
    np.save(sys.argv[2], labels)
