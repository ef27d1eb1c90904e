"""Boxes of prepared images."""

from __future__ import annotations

import torch

from ..cpu import optimize
from ..pretraining.data import PreparedImages
from .checkpoint import DetectorCheckpoint
from .yolo import Boxes, decode, select


class Predictor:
    """A trained detector in evaluation mode.

    Args:
        checkpoint: its checkpoint.
        device: device to compute on.
        confidence: smallest confidence of a box.
        nms_iou: IoU from which two boxes of a class are the same.

    Examples:
        >>> predictor = Predictor(DetectorCheckpoint.load("detector.pth"))
        >>> predictor.boxes(PreparedImages(Path("prepared")), "case_0").boxes.shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        checkpoint: DetectorCheckpoint,
        device: torch.device | str = "cpu",
        confidence: float = 0.5,
        nms_iou: float = 0.5,
    ) -> None:
        self.checkpoint, self.device = checkpoint, torch.device(device)
        self.confidence, self.nms_iou = confidence, nms_iou
        self.network = checkpoint.build_network().to(self.device).eval()
        if self.device.type == "cpu":
            optimize(self.network)

    @torch.inference_mode()
    def boxes(self, images: PreparedImages, name: str) -> Boxes:
        """Find the boxes of an image."""
        (image,) = self.checkpoint.views.evaluation_crops(images, name)
        outputs = self.network(image[None].to(self.device))
        (found,) = select(*decode(outputs, self.network.anchors), self.confidence, self.nms_iou)
        return Boxes(found.boxes.cpu(), found.scores.cpu(), found.labels.cpu())
