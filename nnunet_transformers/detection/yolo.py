"""YOLOv3's head: three grids of boxes from three feature maps, their targets, loss and decoding.

Redmon and Farhadi, "YOLOv3: An Incremental Improvement", arXiv:1804.02767, sections 2.1 to 2.3, as MGCA detects with it
(supplement, B.2). A box of a cell and an anchor is predicted by offsets t: its centre is (column + sigmoid(t_x), row +
sigmoid(t_y)) cells, its size anchor * exp(t_w, t_h); then follow the logits of confidence and classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_convert

# width and height in pixels of an image of 416x416 (section 2.3), by grid, the coarsest first
ANCHORS = (
    ((116, 90), (156, 198), (373, 326)),
    ((30, 61), (62, 45), (59, 119)),
    ((10, 13), (16, 30), (33, 23)),
)
ANCHOR_IMAGE = 416
# narrow convolutions on each map, the finest first
WIDTHS = (128, 256, 512)
# offsets of a box and its confidence, before its classes
BOX_OUTPUTS = 5


def anchor_fractions(anchors: Sequence[Sequence[Sequence[float]]]) -> Tensor:
    """Width and height of anchors as fractions of the image, (grids, anchors, 2); they are scaled with the image."""
    return torch.tensor(anchors, dtype=torch.float32) / ANCHOR_IMAGE


class YOLOv3Head(nn.Module):
    """Convolutions on three feature maps, each of which also sees the up-sampled one below.

    Args:
        channels: channels of the feature maps, the finest first.
        num_classes: classes of boxes.
        num_anchors: boxes per cell.
        widths: channels of the narrow convolutions on each map, the finest first; the wide ones have twice as many.
    """

    def __init__(
        self, channels: Sequence[int], num_classes: int, num_anchors: int = 3, widths: Sequence[int] = WIDTHS
    ) -> None:
        super().__init__()
        self.outputs = num_anchors, BOX_OUTPUTS + num_classes
        self.necks, self.heads, self.routes = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        below = 0
        for dim, width in zip(reversed(channels), reversed(widths), strict=True):
            convs = [(dim + below, width, 1), *[(width, 2 * width, 3), (2 * width, width, 1)] * 2]
            self.necks.append(nn.Sequential(*(_convolution(*sizes) for sizes in convs)))
            predict = nn.Conv2d(2 * width, num_anchors * (BOX_OUTPUTS + num_classes), 1)
            self.heads.append(nn.Sequential(_convolution(width, 2 * width, 3), predict))
            below = width // 2
            self.routes.append(_convolution(width, below, 1))
        del self.routes[-1]  # nothing is finer

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map feature maps, the finest first, to (batch, anchors, rows, columns, 5 + classes), the coarsest first."""
        outputs: list[Tensor] = []
        below: Tensor | None = None
        for level, features in enumerate(reversed(maps)):
            if below is not None:
                enlarged = F.interpolate(self.routes[level - 1](below), features.shape[2:], mode="nearest")
                features = torch.cat([enlarged, features], 1)
            below = self.necks[level](features)
            outputs.append(self.heads[level](below).unflatten(1, self.outputs).permute(0, 1, 3, 4, 2))
        return outputs


def _convolution(before: int, after: int, kernel: int) -> nn.Module:
    return ConvNormAct(before, after, kernel, act_layer=partial(nn.LeakyReLU, 0.1))


@dataclass(frozen=True)
class YOLOv3Loss:
    """Weights of the loss, by default those of the implementation that MGCA's supplement names.

    Attributes:
        place: of the binary cross-entropy of t_x and t_y.
        size: of the squared error of t_w and t_h.
        background: of the confidence of boxes without an object, beside 1 for those with one and for their classes.
        ignore_iou: an anchor in the cell of an object whose IoU with it, both centred, is larger is no background.
    """

    place: float = 2.5
    size: float = 2.5
    background: float = 0.5
    ignore_iou: float = 0.5

    def __call__(self, outputs: Sequence[Tensor], boxes: Tensor, anchors: Tensor) -> Tensor:
        """Compute the loss, the sum over the grids; in each every term is a mean over all of its predictions.

        Args:
            outputs: as of ``YOLOv3Head``.
            boxes: (batch, boxes, 5): class, or -1 for no box, then left, top, right and bottom as fractions.
            anchors: (grids, anchors, 2), fractions.
        """
        return torch.stack([self._of_grid(o.float(), boxes, a) for o, a in zip(outputs, anchors, strict=True)]).sum()

    def _of_grid(self, output: Tensor, boxes: Tensor, anchors: Tensor) -> Tensor:
        targets = assign(boxes, output.shape[2:4], anchors, output.shape[4] - BOX_OUTPUTS, self.ignore_iou)
        number, bce = targets.positive.numel(), partial(F.binary_cross_entropy_with_logits, reduction="sum")
        found, background = output[targets.positive], output[targets.negative][:, 4]
        wanted = targets.values[targets.positive]
        place = bce(found[:, :2], wanted[:, :2]) / number
        size = F.mse_loss(found[:, 2:4], wanted[:, 2:4], reduction="sum") / number
        confidence = bce(found[:, 4], wanted[:, 4]) + self.background * bce(background, torch.zeros_like(background))
        classes = bce(found[:, BOX_OUTPUTS:], wanted[:, BOX_OUTPUTS:]) / (number * wanted[:, BOX_OUTPUTS:].shape[1])
        return self.place * place + self.size * size + confidence / number + classes


@dataclass(frozen=True)
class GridTargets:
    """Targets of one grid.

    Attributes:
        positive: (batch, anchors, rows, columns), predictions that stand for an object.
        negative: those that must be without confidence.
        values: (batch, anchors, rows, columns, 5 + classes), of ``positive``: sigmoid(t_x), sigmoid(t_y), t_w, t_h, 1,
            and 1 for the class.
    """

    positive: Tensor
    negative: Tensor
    values: Tensor


def assign(
    boxes: Tensor, grid: Sequence[int], anchors: Tensor, num_classes: int, ignore_iou: float = 0.5
) -> GridTargets:
    """Assign each box to the cell of its centre, and there to the anchor that is most like it.

    Args:
        boxes: as ``YOLOv3Loss`` takes them.
        grid: rows and columns.
        anchors: (anchors, 2), fractions.
        num_classes: classes of boxes.
        ignore_iou: as of ``YOLOv3Loss``.
    """
    shape, (rows, columns) = (len(boxes), len(anchors), *grid), grid
    image, number = torch.nonzero(boxes[..., 0] >= 0, as_tuple=True)
    classes = boxes[image, number, 0].long()
    centre, size = box_convert(boxes[image, number, 1:], "xyxy", "cxcywh").to(anchors).split(2, 1)
    cells = centre.new_tensor([columns, rows])
    corner = (centre * cells).floor().minimum(cells - 1)  # a centre may lie on the image's edge
    column, row = corner.long().T
    shared = torch.minimum(size[:, None], anchors).prod(2)
    iou = shared / (size.prod(1)[:, None] + anchors.prod(1) - shared)
    best = iou.argmax(1)
    positive = torch.zeros(shape, dtype=torch.bool, device=boxes.device)
    positive[image, best, row, column] = True
    negative = ~positive
    which, anchor = torch.nonzero(iou > ignore_iou, as_tuple=True)
    negative[image[which], anchor, row[which], column[which]] = False
    offsets = torch.cat([centre * cells - corner, (size / anchors[best]).log(), torch.ones_like(size[:, :1])], 1)
    values = anchors.new_zeros(*shape, BOX_OUTPUTS + num_classes)
    values[image, best, row, column] = torch.cat([offsets, F.one_hot(classes, num_classes).to(offsets)], 1)
    return GridTargets(positive, negative, values)


def decode(outputs: Sequence[Tensor], anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Decode the boxes of all grids.

    Args:
        outputs: as of ``YOLOv3Head``.
        anchors: (grids, anchors, 2), fractions.

    Returns:
        boxes, (batch, boxes, 4), left, top, right, bottom as fractions; confidences, (batch, boxes); probabilities of
        the classes of what is there, (batch, boxes, classes).
    """
    boxes = []
    for output, sizes in zip(outputs, anchors, strict=True):
        rows, columns = output.shape[2:4]
        row, column = (torch.arange(n, device=output.device) for n in (rows, columns))
        corner = torch.stack(torch.meshgrid(column, row, indexing="xy"), -1)
        centre = (output[..., :2].sigmoid() + corner) / corner.new_tensor([columns, rows])
        size = output[..., 2:4].exp() * sizes[:, None, None]
        boxes.append(box_convert(torch.cat([centre, size], -1).flatten(1, 3), "cxcywh", "xyxy"))
    rest = torch.cat([output[..., 4:].sigmoid().flatten(1, 3) for output in outputs], 1)
    return torch.cat(boxes, 1), rest[..., 0], rest[..., 1:]


@dataclass(frozen=True)
class Boxes:
    """Boxes found in an image, the surest first.

    Attributes:
        boxes: (boxes, 4), left, top, right, bottom as fractions of the image.
        scores: (boxes,), confidence.
        labels: (boxes,), number of the most probable class.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def select(
    boxes: Tensor, confidences: Tensor, probabilities: Tensor, confidence: float = 0.5, nms_iou: float = 0.5
) -> list[Boxes]:
    """Keep what is sure enough, and of boxes of a class that overlap the surest.

    Args:
        boxes, confidences, probabilities: results of ``decode``.
        confidence: smallest confidence.
        nms_iou: IoU from which two boxes of a class are the same.
    """
    found = []
    for b, c, p in zip(boxes.clamp(0, 1), confidences, probabilities, strict=True):
        sure = torch.nonzero((c >= confidence) & (b[:, 2:] > b[:, :2]).all(1))[:, 0]
        labels = p[sure].argmax(1)
        kept = batched_nms(b[sure], c[sure], labels, nms_iou)
        found.append(Boxes(b[sure][kept], c[sure][kept], labels[kept]))
    return found
