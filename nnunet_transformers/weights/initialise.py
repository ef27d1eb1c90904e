"""Load the initial weights that a plan specifies into a fresh network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..architectures.unet2022 import UNet2022
from ..plans.planned import PlannedConfiguration
from ..plans.preparation import differences
from .imagenet import ImageNetWeights
from .load_report import LoadReport
from .pretrained import PretrainedWeights
from .source import find_weights


class InitialWeights:
    """Initial weights that a plan specifies, read once for any number of networks.

    Args:
        specification: entry ``initialisation`` of a plan's configuration, either ``{"imagenet": {arguments of
            load_imagenet}}`` or ``{"checkpoint": source, "sha256": its hash}``, see ``find_weights`` for the sources.
            ``fresh`` names what the weights leave out of stem and encoder, for the trainer.

    Attributes:
        specification: the specification, with the complete source and the hash.
        citations: references that go with the weights.

    Raises:
        ValueError: if the specification is neither of these, or the source holds no weights, damaged ones, or others
            than the hash says.
        FileNotFoundError: if there is no such file.
    """

    def __init__(self, specification: Mapping[str, Any]) -> None:
        self._weights: Any
        self.specification: dict[str, Any]
        match dict(specification):
            case {"imagenet": arguments, **_more}:
                self._weights = ImageNetWeights(**arguments)
                self.specification = {"imagenet": dict(arguments)}
            case {"checkpoint": source, **more}:
                found = find_weights(source)
                if more.get("sha256") not in (None, found.sha256):
                    raise ValueError(f"{source} is another file than when the plan was written; attach it again")
                self.specification = {"checkpoint": found.source, "sha256": found.sha256}
                self._weights = found.weights
            case _:
                raise ValueError(
                    f"the plan's initialisation must be imagenet or checkpoint, got {', '.join(specification)}"
                )
        self.citations: Sequence[str] = getattr(self._weights, "citations", ())

    @classmethod
    def from_source(cls, source: str | os.PathLike[str]) -> InitialWeights:
        """Read weights that no plan specifies yet; errors as for the class."""
        return cls({"checkpoint": str(source)})

    def load_into(
        self, network: nn.Module, patch_size: Sequence[int] | None = None, labels: Sequence[str] | None = None
    ) -> LoadReport:
        """Load the weights into a fresh network, in place; arguments as for ``initialise``.

        Raises:
            ValueError: if the weights do not fit the network.
        """
        weights = self._weights
        if isinstance(weights, ImageNetWeights):
            if not isinstance(network, UNet2022):
                raise ValueError(f"ImageNet weights are for UNet-2022, not {type(network).__name__}")
            return weights.load_into(network)
        report: LoadReport = weights.load_into(network, patch_size=patch_size, labels=labels)
        if isinstance(weights, PretrainedWeights):
            report.source = f"{self.specification['checkpoint']} ({weights.origin})"
        return report

    def differences(self, planned: PlannedConfiguration) -> list[str]:
        """Return where the weights' images were prepared differently from a plan's, as far as the weights state it."""
        found = self._weights
        if not isinstance(found, PretrainedWeights):
            return []
        return differences(planned, found.spacing, found.normalization, found.ct_ranges)


def initialise(
    network: nn.Module,
    specification: Mapping[str, Any],
    patch_size: Sequence[int] | None = None,
    labels: Sequence[str] | None = None,
) -> LoadReport:
    """Load the weights that a plan specifies into a fresh network, in place.

    Args:
        network: network that the plan describes.
        specification: as ``InitialWeights`` takes it.
        patch_size: voxels per axis that the network was built for; required for Primus, which does not store it.
        labels: names of its labels in the order of the heads; heads of other labels are not loaded.

    Returns:
        the load report.

    Raises:
        ValueError, FileNotFoundError: as ``InitialWeights``; ValueError also if the weights do not fit.
    """
    return InitialWeights(specification).load_into(network, patch_size, labels)


def load_enough(
    weights: InitialWeights | str | os.PathLike[str],
    network: nn.Module,
    patch_size: Sequence[int] | None = None,
    labels: Sequence[str] | None = None,
    min_coverage: float = 0.5,
) -> LoadReport:
    """Load weights into a fresh network, in place, and check that they are more than a few tensors.

    Args:
        weights: the weights, or their source.
        network, patch_size, labels: as for ``initialise``.
        min_coverage: share of the encoder's parameters that the weights must cover.

    Raises:
        ValueError: if they cover less or nothing, or as ``InitialWeights``.
        FileNotFoundError: as ``InitialWeights``.
    """
    weights = weights if isinstance(weights, InitialWeights) else InitialWeights.from_source(weights)
    report = weights.load_into(network, patch_size, labels)
    if not (report.loaded or report.adapted):
        raise ValueError(
            f"none of the weights fits the network: {len(report.fresh)} of its tensors are missing in the file or of "
            "another shape there"
        )
    # networks of other trainers may not say where their encoder is: the whole network has to be covered then
    encoder = f"{network.key_to_encoder}." if hasattr(network, "key_to_encoder") else ""
    coverage = report.coverage(dict(network.named_parameters()), encoder)
    if coverage < min_coverage:
        raise ValueError(
            f"the weights cover {coverage:.0%} of the encoder, less than the {min_coverage:.0%} asked for "
            f"(--min-coverage): {len(report.loaded)} tensors loaded unchanged, {len(report.adapted)} adapted, "
            f"{len(report.fresh)} missing or of another shape"
        )
    return report


def encoder_specification(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the plan entry for an encoder checkpoint: its path and its hash, by which a replaced file is detected.

    Raises:
        FileNotFoundError, ValueError: as ``InitialWeights``.
    """
    return InitialWeights.from_source(path).specification
