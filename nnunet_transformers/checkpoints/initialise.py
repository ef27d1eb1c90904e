"""Start a network from the weights that a plan names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..architectures import SegmentationNetwork
from ..architectures.unet2022 import UNet2022
from .adapt import load_encoder_weights
from .encoder import encoder_hash, load_encoder
from .imagenet import load_imagenet
from .report import LoadReport


def initialise(network: nn.Module, specification: Mapping[str, Any]) -> LoadReport:
    """Load the weights of ``specification``, an entry of a plan's configuration, into a fresh network.

    Args:
        network: as the plan has it.
        specification: ``{"imagenet": {arguments of load_imagenet}}`` or ``{"checkpoint": file, "sha256": its hash}``,
            an encoder checkpoint of ours or timm's network, see ``encoder_specification``.

    Raises:
        ValueError: if the specification is another, or its weights do not fit.
        FileNotFoundError: if there is no such file.
    """
    match dict(specification):
        case {"imagenet": arguments}:
            if not isinstance(network, UNet2022):
                raise ValueError(f"ImageNet weights are for UNet-2022, not {type(network).__name__}")
            return load_imagenet(network, **arguments)
        case {"checkpoint": path, **rest}:
            if not isinstance(network, SegmentationNetwork):
                raise ValueError(f"encoder checkpoints are for this package's networks, not {type(network).__name__}")
            checkpoint = load_encoder(path)
            if rest.get("sha256") not in (None, encoder_hash(path)):
                raise ValueError(f"{path} is another file than when the plan was written; attach it again")
            source = f"{path} ({checkpoint.method} of {checkpoint.name}, {checkpoint.num_cases} images)"
            return load_encoder_weights(network, checkpoint, source)
    raise ValueError(f"the plan's initialisation must be imagenet or checkpoint, got {', '.join(specification)}")


def encoder_specification(path: Path) -> dict[str, str]:
    """What a plan says of an encoder checkpoint: where it is, and its hash, so that another file is noticed.

    Raises:
        FileNotFoundError, ValueError: as ``load_encoder``.
    """
    load_encoder(path)
    return {"checkpoint": str(path.resolve()), "sha256": encoder_hash(path)}
