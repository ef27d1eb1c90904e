"""Fields common to the checkpoints of all pretrained encoders: registered networks, timm networks and Primus."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from .sealed import SealedCheckpoint, package_versions


@dataclass(frozen=True)
class PretrainedWeights(SealedCheckpoint):
    """Weights of an encoder and their description.

    Attributes:
        weights: weights by the network's parameter names.
        name: name of the network.
        patch_size: voxels per axis of the training crops.
        input_channels: image channels.
        spacing: mm per voxel and axis of the training images; None if they differ.
        normalization: nnU-Net's normalisation scheme of each channel.
        ct_ranges: lowest and highest intensity of each channel with CT normalisation; None if there is none.
        method: pretraining method.
        recipe: settings of the method, plain types.
        num_cases: number of training images.
        versions: package versions.
    """

    remedy: ClassVar[str] = (
        "`nnunet-transformers pretrain fit` writes encoder checkpoints; a paper's released weights are translated by "
        "`nnunet-transformers convert`, for create_network in Python"
    )
    tuples: ClassVar[tuple[str, ...]] = ("patch_size", "spacing", "normalization")
    name: str
    patch_size: tuple[int, ...]
    input_channels: int
    spacing: tuple[float, ...] | None = None
    normalization: tuple[str, ...] = ()
    ct_ranges: list[list[float]] | None = None
    method: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    num_cases: int = 0
    versions: dict[str, str] = field(default_factory=package_versions)

    @property
    def origin(self) -> str:
        """Method, network and number of images in words, such as "BYOL of resnet50, 160 images"."""
        return f"{self.method} of {self.name}, {self.num_cases} images"
