"""Trained classifiers: what `classify fit` writes and `classify predict` reads, without unpickling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization

from ..weights.sealed import SealedCheckpoint, package_versions
from .classifier import BackboneDescription, ImageClassifier
from .image_views import ImageViews


@dataclass(frozen=True)
class ClassifierCheckpoint(SealedCheckpoint):
    """Weights of a classifier and all that is known of them.

    Attributes:
        weights: by the names of ``ImageClassifier``.
        backbone: what it is built from.
        columns: of labels in the table that it was trained by.
        classes: names, in the order of the outputs.
        multi_label: whether an image can have several at once.
        views: how it sees an image.
        spacing: mm per voxel and axis of the training images.
        normalization: nnU-Net's scheme for each channel.
        channels: their names.
        plans, configuration: how the training images were prepared; None where that is not known.
        scores: of validation, where it was best.
        encoder: what it started from.
        recipe: settings of the run, plain types.
        num_cases: images that it was trained on.
        versions: of the packages involved.
    """

    kind: ClassVar[str] = "classifier"
    format: ClassVar[int] = 1
    remedy: ClassVar[str] = "`nnunet-transformers classify fit` writes classifiers"
    tuples: ClassVar[tuple[str, ...]] = ("columns", "classes", "spacing", "normalization", "channels")
    backbone: BackboneDescription
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    multi_label: bool
    views: ImageViews
    spacing: tuple[float, ...]
    normalization: tuple[str, ...]
    channels: tuple[str, ...]
    plans: dict[str, Any] | None = None
    configuration: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    encoder: str = "random weights"
    recipe: dict[str, Any] = field(default_factory=dict)
    num_cases: int = 0
    versions: dict[str, str] = field(default_factory=package_versions)

    @classmethod
    def _restore(cls, description: dict[str, Any]) -> dict[str, Any]:
        backbone, views = (
            # all that is listed in them is a tuple
            {key: tuple(value) if isinstance(value, list) else value for key, value in description[name].items()}
            for name in ("backbone", "views")
        )
        return {**description, "backbone": BackboneDescription(**backbone), "views": ImageViews(**views)}

    def build_network(self) -> ImageClassifier:
        """The network with its weights."""
        network = ImageClassifier(self.backbone.build(), len(self.classes))
        network.load_state_dict(self.weights)
        return network

    def check_images(self, index: Mapping[str, Any], folder: Path) -> None:
        """Check that images were prepared as those of the training were.

        Args:
            index: of the prepared folder.
            folder: for the message.

        Raises:
            ValueError: names the first difference.
        """
        remedy = "prepare them with `pretrain prepare --like CLASSIFIER`"
        if len(index["channels"]) != len(self.channels):
            raise ValueError(
                f"the images in {folder} have {len(index['channels'])} channels, the classifier was trained on "
                f"{len(self.channels)} ({', '.join(self.channels)})"
            )
        if list(index["normalization"]) != list(self.normalization):
            raise ValueError(
                f"{folder} has normalization {', '.join(index['normalization'])}, the classifier was trained on "
                f"{', '.join(self.normalization)}; {remedy}"
            )
        # on a canvas the image's own resolution is gone
        axes = len(self.backbone.patch_size)
        spacings = [np.array(s[-axes:]) for s in (index["spacing"], self.spacing)]
        differ = len(spacings[0]) != len(spacings[1]) or not np.allclose(*spacings, rtol=0.01)
        if self.views.canvas is None and differ:
            found, wanted = (", ".join(f"{s:g}" for s in spacing) for spacing in spacings)
            raise ValueError(f"{folder} has spacing {found} mm, the classifier was trained on {wanted} mm; {remedy}")
        if CTNormalization.__name__ in self.normalization and self.plans is not None:
            key = "foreground_intensity_properties_per_channel"
            if index.get("plans", {}).get(key) != self.plans[key]:
                raise ValueError(
                    f"{folder} was normalised by other CT intensities than the classifier's training images; {remedy}"
                )


def preparation(path: Path) -> tuple[dict[str, Any], str]:
    """The plan by which a classifier's training images were prepared, and its configuration.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no classifier, or does not say.
    """
    checkpoint = ClassifierCheckpoint.load(path)
    if checkpoint.plans is None or checkpoint.configuration is None:
        raise ValueError(f"{path} does not say how its images were prepared; they were before this was written down")
    return checkpoint.plans, checkpoint.configuration
