"""Fields that every pretrained encoder's checkpoint has, whichever library its network comes from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from .sealed import SealedCheckpoint, package_versions


@dataclass(frozen=True)
class PretrainedWeights(SealedCheckpoint):
    """Weights of an encoder and their description.

    Attributes:
        weights: by the names of the network.
        name: of the network.
        patch_size: voxels per axis of the crops that it was trained on.
        input_channels: image channels.
        spacing: mm per voxel and axis of the training images; None where they had different ones.
        normalization: nnU-Net's scheme for each channel.
        method: pretraining method.
        recipe: settings of the method, plain types.
        num_cases: images that it was trained on.
        versions: of the packages involved.
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
    method: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    num_cases: int = 0
    versions: dict[str, str] = field(default_factory=package_versions)

    @property
    def origin(self) -> str:
        """Method, network and number of images in words, for load reports."""
        return f"{self.method} of {self.name}, {self.num_cases} images"
