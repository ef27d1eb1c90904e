"""Checkpoint of a trained detector, written by `detect fit` and read by `detect predict`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ..classification.checkpoint import StatesImages, restore_settings
from ..classification.classifier import BackboneDescription
from ..classification.crops import ImageCrops
from ..pretraining.data.index import PreparedIndex
from ..weights.described import build_filled
from ..weights.sealed import SealedCheckpoint, package_versions
from .detector import Detector


@dataclass(frozen=True)
class DetectorCheckpoint(StatesImages, SealedCheckpoint):
    """Weights of a detector and their description.

    Attributes:
        weights: weights by their names in ``Detector``.
        backbone: description of the backbone.
        classes: names of the classes of boxes, in the order of the outputs.
        anchors, widths: as ``Detector`` takes them.
        views: how an image becomes the network's input.
        spacing: mm per voxel and axis of the training images.
        normalization: nnU-Net's normalisation scheme of each channel.
        channels: channel names.
        plans, configuration: plan and configuration that the training images were prepared by; None where unknown.
        scores: best validation scores.
        encoder: description of the initial weights.
        recipe: settings of the run, plain types.
        num_cases: number of training images.
        trained_on, validated_on: images that were trained on, and that the best epoch was chosen by, see
            ``classification.checkpoint.identity``.
        versions: package versions.
    """

    kind: ClassVar[str] = "detector"
    noun: ClassVar[str] = "detector"
    format: ClassVar[int] = 1
    remedy: ClassVar[str] = "`nnunet-transformers detect fit` writes detectors"
    tuples: ClassVar[tuple[str, ...]] = (
        "classes",
        "widths",
        "spacing",
        "normalization",
        "channels",
        "trained_on",
        "validated_on",
    )
    backbone: BackboneDescription
    classes: tuple[str, ...]
    anchors: list[list[list[float]]]
    widths: tuple[int, ...]
    views: ImageCrops
    spacing: tuple[float, ...]
    normalization: tuple[str, ...]
    channels: tuple[str, ...]
    plans: dict[str, Any] | None = None
    configuration: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    encoder: str = "random weights"
    recipe: dict[str, Any] = field(default_factory=dict)
    num_cases: int = 0
    trained_on: tuple[str, ...] = ()
    validated_on: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=package_versions)

    @classmethod
    def _restore(cls, description: dict[str, Any]) -> dict[str, Any]:
        return restore_settings(description)

    def check_images(self, index: PreparedIndex, folder: Path) -> None:
        """Check that images were prepared like the training images.

        Args:
            index: index of the prepared images.
            folder: their folder, for the message.

        Raises:
            ValueError: as ``StatesImages``, and if an image is a volume.
        """
        super().check_images(index, folder)
        if volume := next((case for case in index.cases if case.shape[1] != 1), None):
            raise ValueError(
                f"{volume.name} in {folder} is a volume of {volume.shape[1]} slices; boxes are of 2D images"
            )

    def build_network(self) -> Detector:
        """Build the network and load its weights.

        Raises:
            ValueError: if there is no such network, or it has other weights.
        """

        def build() -> Detector:
            shape = (self.backbone.input_channels, *self.backbone.patch_size)
            return Detector(self.backbone.build(), shape, len(self.classes), self.anchors, self.widths)

        return build_filled(build, self.weights, "a detector checkpoint")
