"""Checkpoint of a trained classifier, written by `classify fit` and read by `classify predict`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization

from ..pretraining.data.index import PreparedIndex
from ..pretraining.data.own_plan import longest_side
from ..weights.described import build_filled
from ..weights.sealed import SealedCheckpoint, load, package_versions
from .classifier import BackboneDescription, ImageClassifier
from .crops import ImageCrops


class StatesImages:
    """Mixin for a checkpoint, listed before its class, that states how its training images were prepared.

    Attributes:
        noun: what the checkpoint holds, in one word.
        backbone, views, spacing, normalization, channels, plans, configuration, trained_on, validated_on: as of
            ``ClassifierCheckpoint``.
    """

    noun: ClassVar[str]
    backbone: BackboneDescription
    views: ImageCrops
    spacing: tuple[float, ...]
    normalization: tuple[str, ...]
    channels: tuple[str, ...]
    plans: dict[str, Any] | None
    configuration: str | None
    trained_on: tuple[str, ...]
    validated_on: tuple[str, ...]

    def check_images(self, index: PreparedIndex, folder: Path) -> None:
        """Check that images were prepared like the training images.

        Args:
            index: index of the prepared images.
            folder: their folder, for the message.

        Raises:
            ValueError: if channels or their order, normalisation, spacing, ``--longest`` or CT intensities differ.
        """
        remedy = f"prepare them with `pretrain prepare --like {self.noun.upper()}`"
        if len(index.channels) != len(self.channels):
            raise ValueError(
                f"the images in {folder} have {len(index.channels)} channels, the {self.noun} was trained on "
                f"{len(self.channels)} ({', '.join(self.channels)})"
            )
        if index.channels != self.channels and sorted(index.channels) == sorted(self.channels):
            raise ValueError(
                f"the channels of the images in {folder} are {', '.join(index.channels)}, in another order than "
                f"{', '.join(self.channels)}, which the {self.noun} was trained on; number the files, and name them in "
                "dataset.json, in the order of the training, and prepare them again"
            )
        if index.normalization != self.normalization:
            raise ValueError(
                f"{folder} has normalization {', '.join(index.normalization)}, the {self.noun} was trained on "
                f"{', '.join(self.normalization)}; {remedy}"
            )
        axes = len(self.backbone.patch_size)
        found, wanted = index.spacing_of(axes), self.spacing[-axes:]
        differ = len(found) != len(wanted) or not np.allclose(found, wanted, rtol=0.01)
        # a canvas replaces the image's own resolution
        if self.views.canvas is None and differ:
            texts = [", ".join(f"{s:g}" for s in spacing) for spacing in (found, wanted)]
            raise ValueError(
                f"{folder} has spacing {texts[0]} mm, the {self.noun} was trained on {texts[1]} mm; {remedy}"
            )
        sides = longest_side(index.plans), longest_side(self.plans)
        # without it images are cropped; a canvas makes their sizes the same
        if self.plans is not None and sides[0] != sides[1] and (self.views.canvas is None or None in sides):
            texts = ["without --longest" if side is None else f"with --longest {side}" for side in sides]
            raise ValueError(f"{folder} was prepared {texts[0]}, the {self.noun}'s images {texts[1]}; {remedy}")
        if CTNormalization.__name__ in self.normalization and self.plans is not None:
            key = "foreground_intensity_properties_per_channel"
            if (index.plans or {}).get(key) != self.plans[key]:
                raise ValueError(
                    f"{folder} was normalised with other CT intensities than the {self.noun}'s training images; "
                    f"{remedy}"
                )


@dataclass(frozen=True)
class ClassifierCheckpoint(StatesImages, SealedCheckpoint):
    """Weights of a classifier and their description.

    Attributes:
        weights: weights by their names in ``ImageClassifier``.
        backbone: description of the backbone.
        columns: label columns of the training table.
        classes: class names, in the order of the outputs.
        multi_label: whether an image can have several labels at once.
        views: settings of the crops that the network sees.
        spacing: mm per voxel and axis of the training images.
        normalization: nnU-Net's normalisation scheme of each channel.
        channels: channel names.
        plans, configuration: plan and configuration that the training images were prepared by; None where unknown.
        scores: best validation scores.
        encoder: description of the initial weights.
        recipe: settings of the run, plain types.
        num_cases: number of training images.
        uncertain: what the label -1 of each column was taken for, see ``read_uncertain``.
        trained_on, validated_on: images that were trained on, and that the best epoch was chosen by, see ``identity``;
            empty where unknown.
        versions: package versions.
    """

    kind: ClassVar[str] = "classifier"
    noun: ClassVar[str] = "classifier"
    format: ClassVar[int] = 2
    earlier: ClassVar[tuple[int, ...]] = (1,)
    remedy: ClassVar[str] = "`nnunet-transformers classify fit` writes classifiers"
    tuples: ClassVar[tuple[str, ...]] = ("columns", "classes", "spacing", "normalization", "channels")
    backbone: BackboneDescription
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    multi_label: bool
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
    uncertain: dict[str, str] = field(default_factory=dict)
    trained_on: tuple[str, ...] = ()
    validated_on: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=package_versions)

    @classmethod
    def _restore(cls, description: dict[str, Any]) -> dict[str, Any]:
        # files written before 0.3 do not state the images
        seen = {name: tuple(description.get(name, ())) for name in ("trained_on", "validated_on")}
        return restore_settings({**description, **seen})

    def build_network(self) -> ImageClassifier:
        """Build the network and load its weights.

        Raises:
            ValueError: if there is no such network, or it has other weights.
        """
        return build_filled(
            lambda: ImageClassifier(self.backbone.build(), len(self.classes)), self.weights, "a classifier checkpoint"
        )


def identity(name: str) -> str:
    """Return what a classifier keeps of an image's name: a hash, because names often hold those of patients."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def restore_settings(description: dict[str, Any]) -> dict[str, Any]:
    """Restore backbone and views in a checkpoint's description."""
    backbone, views = (_with_tuples(description[name]) for name in ("backbone", "views"))
    return {**description, "backbone": BackboneDescription(**backbone), "views": ImageCrops(**views)}


def _with_tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Restore the tuples of a settings class, which JSON stores as lists."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}


def preparation(path: Path) -> tuple[dict[str, Any], str]:
    """Return the plan and configuration that the training images of a classifier or detector were prepared by.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such checkpoint, of a kind whose module has been imported, or does not specify them.
    """
    checkpoint = load(path)
    if not isinstance(checkpoint, StatesImages):
        raise ValueError(f"{path} is not a checkpoint of kind classifier or detector (its kind is {checkpoint.kind})")
    if checkpoint.plans is None or checkpoint.configuration is None:
        raise ValueError(
            f"{path} does not specify how its images were prepared, as an older version wrote it; train it again"
        )
    return checkpoint.plans, checkpoint.configuration
