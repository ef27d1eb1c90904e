"""Targets, loss and decoding of YOLOv3's head, against the formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_transformers.detection.detector import Detector, feature_channels
from nnunet_transformers.detection.yolo import (
    ANCHORS,
    YOLOv3Head,
    YOLOv3Loss,
    anchor_fractions,
    assign,
    decode,
    select,
)
from nnunet_transformers.weights import create_timm

GRIDS = ((2, 3), (4, 6), (8, 12))
CLASSES = 2


def boxes_of(*images):
    """(images, boxes, 5) in float64, with class -1 where an image has fewer."""
    padded = torch.full((len(images), max(map(len, images)), 5), -1.0, dtype=torch.float64)
    for row, boxes in zip(padded, images, strict=True):
        row[: len(boxes)] = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 5)
    return padded


BOXES = boxes_of(
    [[1, 0.1, 0.2, 0.4, 0.9], [0, 0.5, 0.5, 0.56, 0.6]],
    [],
    [[0, 0.9, 0.9, 1.0, 1.0]],  # the centre is in the last cell
)


def outputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 3, *grid, 5 + CLASSES, generator=generator, dtype=torch.float64) for grid in GRIDS]


def loss_by_hand(found, boxes, anchors):
    """The implementation that the supplement names, number by number, with exact overlaps and no term twice."""

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    total = 0.0
    for output, sizes in zip(found, anchors, strict=True):
        images, number, rows, columns, _ = output.shape
        predictions = images * number * rows * columns
        assigned, ignored = {}, set()
        for i in range(images):
            for label, left, top, right, bottom in boxes[i].tolist():
                if label < 0:
                    continue
                x, y, w, h = (left + right) / 2 * columns, (top + bottom) / 2 * rows, right - left, bottom - top
                cell = int(y), int(x)
                overlaps = []
                for a, (wide, high) in enumerate(sizes.tolist()):
                    shared = min(w, wide) * min(h, high)
                    overlaps.append(shared / (w * h + wide * high - shared))
                    if overlaps[-1] > 0.5:
                        ignored.add((i, a, *cell))
                best = int(np.argmax(overlaps))
                wide, high = sizes[best].tolist()
                goal = (x - cell[1], y - cell[0], math.log(w / wide), math.log(h / high), int(label))
                assigned[(i, best, *cell)] = goal
        for where in np.ndindex(*output.shape[:4]):
            tx, ty, tw, th, confidence, *classes = output[where].tolist()
            if where in assigned:
                x, y, w, h, label = assigned[where]
                for t, wanted in ((tx, x), (ty, y)):
                    p = sigmoid(t)
                    total -= 2.5 * (wanted * math.log(p) + (1 - wanted) * math.log(1 - p)) / predictions
                total += 2.5 * ((tw - w) ** 2 + (th - h) ** 2) / predictions
                total -= math.log(sigmoid(confidence)) / predictions
                for number_of_class, logit in enumerate(classes):
                    p = sigmoid(logit)
                    total -= math.log(p if number_of_class == label else 1 - p) / (predictions * CLASSES)
            elif where not in ignored:
                total -= 0.5 * math.log(1 - sigmoid(confidence)) / predictions
    return total


class TestLoss:
    def test_formula(self):
        anchors = anchor_fractions(ANCHORS).double()
        found = [output.requires_grad_() for output in outputs()]
        loss = YOLOv3Loss()
        # single precision inside, for half precision outside
        value = loss(found, BOXES, anchors)
        assert value.item() == pytest.approx(loss_by_hand(found, BOXES, anchors), rel=1e-5)
        value.backward()
        assert all(output.grad.isfinite().all() for output in found)

    def test_no_box_at_all(self):
        anchors, found = anchor_fractions(ANCHORS), [output.float() for output in outputs()]
        empty = torch.full((3, 1, 5), -1.0)
        background = sum(torch.nn.functional.softplus(output[..., 4]).mean() for output in found) / 2
        assert YOLOv3Loss()(found, empty, anchors).item() == pytest.approx(background.item(), rel=1e-6)

    def test_ignored_is_neither(self):
        """An anchor much like an object in its cell, but not the most, is not pushed to background."""
        anchors = torch.tensor([[0.2, 0.2], [0.22, 0.2], [0.01, 0.01]])
        targets = assign(boxes_of([[0, 0.4, 0.4, 0.6, 0.6]]).float(), (4, 4), anchors, 1)
        assert torch.nonzero(targets.positive).tolist() == [[0, 0, 2, 2]]
        assert torch.nonzero(~targets.negative).tolist() == [[0, 0, 2, 2], [0, 1, 2, 2]]
        assert targets.values[0, 0, 2, 2].tolist() == pytest.approx([0, 0, 0, 0, 1, 1], abs=1e-5)


class TestDecode:
    def test_decodes_what_was_encoded(self):
        anchors = anchor_fractions(ANCHORS).double()
        found = []
        for grid, sizes in zip(GRIDS, anchors, strict=True):
            targets = assign(BOXES, grid, sizes, CLASSES)
            values = targets.values.clone()
            values[..., :2] = values[..., :2].clamp(1e-9, 1 - 1e-9).logit()
            values[..., 4:] = (2 * values[..., 4:] - 1) * 20
            found.append(values)
        boxes, confidences, probabilities = decode(found, anchors)
        assert boxes.shape == (3, 3 * sum(r * c for r, c in GRIDS), 4)
        for image, (b, c, p) in enumerate(zip(boxes, confidences, probabilities, strict=True)):
            sure = c > 0.5
            wanted = BOXES[image][BOXES[image, :, 0] >= 0]
            assert sure.sum() == len(GRIDS) * len(wanted)
            for row in wanted:
                near = (b[sure] - row[1:]).abs().amax(1) < 1e-6
                assert near.sum() == len(GRIDS)
                assert (p[sure][near].argmax(1) == int(row[0])).all()
        kept = select(boxes, confidences, probabilities)
        assert [len(found.scores) for found in kept] == [2, 0, 1]
        assert sorted(kept[0].labels.tolist()) == [0, 1]

    def test_overlapping_boxes_of_another_class_stay(self):
        boxes = torch.tensor([[[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.52], [0.1, 0.1, 0.52, 0.5], [0, 0, 1, 1]]])
        confidences = torch.tensor([[0.9, 0.8, 0.95, 0.3]])
        probabilities = torch.tensor([[[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [1.0, 0.0]]])
        (kept,) = select(boxes, confidences, probabilities)
        assert kept.scores.tolist() == pytest.approx([0.95, 0.9])
        assert kept.labels.tolist() == [1, 0]


class TestDetector:
    def test_head_is_that_of_the_supplement(self):
        """On ResNet-50's maps 28x28, 14x14 and 7x7 of 224x224, one class."""
        head = YOLOv3Head([512, 1024, 2048], 1).to("meta")
        maps = [torch.empty(2, c, n, n, device="meta") for c, n in ((512, 28), (1024, 14), (2048, 7))]
        assert [tuple(o.shape) for o in head(maps)] == [(2, 3, n, n, 6) for n in (7, 14, 28)]
        convolutions = [m for m in head.modules() if isinstance(m, nn.Conv2d)]
        # five, and one before the boxes, on each grid; the boxes; two on the ways to finer grids
        assert len(convolutions) == 3 * 6 + 3 + 2
        assert [m.in_channels for m in convolutions if m.kernel_size == (1, 1)][:1] == [2048]

    def test_frozen_encoder(self):
        detector = Detector(create_timm("resnet10t", 1, (64, 64)), (1, 64, 64), 1, widths=(8, 16, 32), is_frozen=True)
        assert not detector.backbone.training and detector.head.training
        before = {name: value.clone() for name, value in detector.backbone.state_dict().items()}
        sum(o.sum() for o in detector(torch.rand(2, 1, 64, 64))).backward()
        assert all(p.grad is None for p in detector.backbone.parameters())
        assert all(p.grad is not None for p in detector.head.parameters())
        assert all(torch.equal(before[name], value) for name, value in detector.backbone.state_dict().items())

    def test_a_vit_is_refused(self):
        with pytest.raises(ValueError, match="a plain ViT has one"):
            feature_channels(create_timm("vit_tiny_patch16_224", 1, (32, 32)), (1, 32, 32))
