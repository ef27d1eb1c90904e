"""Lightning module that trains a detector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..classification.checkpoint import identity
from ..classification.training import EncoderTraining
from ..pretraining.data.index import PreparedIndex
from .checkpoint import DetectorCheckpoint
from .data import DetectionData
from .detector import Detector
from .yolo import ANCHORS, WIDTHS, YOLOv3Loss


class Detection(EncoderTraining):
    """Train YOLOv3's head on an encoder, and keep the weights with the lowest validation loss.

    Args:
        encoder: checkpoint to start from; random weights by default.
        network: registered 2D network or timm network with random weights; ignored with ``encoder``.
        patch_size: height and width that an image is stretched to; with ``encoder`` the checkpoint's by default.
        input_channels: input channels of a network with random weights.
        network_overrides: arguments of a registered network with random weights.
        frozen: freeze the encoder and train the head alone.
        anchors: width and height in pixels of an image of 416x416, three for each of three grids, the coarsest first;
            YOLOv3's by default.
        widths: channels of the head, see ``YOLOv3Head``.
        place_weight, size_weight, background_weight, ignore_iou: see ``YOLOv3Loss``.
        lr: AdamW's learning rate.
        weight_decay: AdamW's weight decay.
        warmup_steps: steps of linear warm-up.
        final_lr_share: share of the learning rate that remains at the end of the cosine decay; 1 disables the decay.

    Raises:
        ValueError: if neither ``encoder`` nor ``patch_size`` is given, the network cannot be built or has no three
            feature maps.
        FileNotFoundError: if there is no such checkpoint.
    """

    best: Tensor

    def __init__(
        self,
        encoder: str | None = None,
        network: str = "resnet50",
        patch_size: Sequence[int] | None = None,
        input_channels: int = 3,
        network_overrides: dict[str, Any] | None = None,
        frozen: bool = True,
        anchors: list[list[list[float]]] | None = None,
        widths: tuple[int, int, int] = WIDTHS,
        place_weight: float = 2.5,
        size_weight: float = 2.5,
        background_weight: float = 0.5,
        ignore_iou: float = 0.5,
        lr: float = 5e-4,
        weight_decay: float = 1e-6,
        warmup_steps: int = 0,
        final_lr_share: float = 1.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        backbone = self.build_backbone(encoder, network, patch_size, input_channels, network_overrides)
        shape = (self.description.input_channels, *self.description.patch_size)
        if len(shape) != 3:
            raise ValueError(f"boxes are of 2D images, and the encoder's patches are {self.description.patch_size}")
        self.anchors: Any = anchors or [[list(anchor) for anchor in grid] for grid in ANCHORS]
        self.network = Detector(backbone, shape, 1, self.anchors, widths, frozen)
        self.loss = YOLOv3Loss(place_weight, size_weight, background_weight, ignore_iou)
        self.register_buffer("best", torch.tensor(math.inf))

    @property
    def data(self) -> DetectionData:
        """The data of the run."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def configure_model(self) -> None:
        """Create the head for the classes of the data."""
        with torch.random.fork_rng(devices=[]):
            # the same initial head, however many random numbers the processes have drawn before
            torch.manual_seed(self.data.seed)
            self.network.reset_head(len(self.data.classes))

    def training_step(self, batch: Sequence[Tensor], batch_index: int) -> Tensor:
        """Compute the loss of a batch of images and boxes."""
        image, boxes = batch
        loss = self.loss(self.network(image), boxes, self.network.anchors)
        self.check_finite(loss)
        self.log("loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=len(image))
        return loss

    def on_validation_epoch_start(self) -> None:
        # sum of the losses, and number of images
        self.collected = torch.zeros(2, device=self.device)

    def validation_step(self, batch: Sequence[Tensor], batch_index: int) -> None:
        """Add the loss of a batch."""
        image, boxes = batch
        loss = self.loss(self.network(image), boxes, self.network.anchors)
        self.collected += torch.stack([loss, torch.ones_like(loss)]) * len(image)

    def on_validation_epoch_end(self) -> None:
        total, number = self.trainer.strategy.reduce(self.collected, reduce_op="sum").tolist()
        if self.trainer.sanity_checking:
            return
        self.scores = {"val_loss": total / number}
        self.log_dict(self.scores, prog_bar=True)
        loss = torch.tensor(self.scores["val_loss"])  # rounded as `best` is, which an equal loss would else be below
        self.is_best = bool(loss < self.best)
        if self.is_best:
            self.best.copy_(loss)

    def checkpoints(self, index: PreparedIndex, recipe: dict[str, Any]) -> dict[str, DetectorCheckpoint]:
        """Return the detector by file name, if its validation loss is the lowest so far."""
        if not self.is_best:
            return {}
        data = self.data
        trained_on, validated_on = (
            tuple(identity(name) for name in data.names[numbers]) for numbers in (data.train_numbers, data.val_numbers)
        )
        checkpoint = DetectorCheckpoint(
            weights={name: v.detach().cpu().contiguous() for name, v in self.network.state_dict().items()},
            backbone=self.description,
            classes=tuple(data.classes),
            anchors=self.anchors,
            widths=self.network.widths,
            views=data.views,
            spacing=index.spacing_of(3),
            normalization=index.normalization,
            channels=index.channels,
            plans=index.plans,
            configuration=index.configuration,
            scores=self.scores,
            encoder=self.source,
            recipe=recipe,
            num_cases=len(data.train_numbers),
            trained_on=trained_on,
            validated_on=validated_on,
        )
        return {"detector.pth": checkpoint}
