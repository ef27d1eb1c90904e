"""Start a network from the weights that a plan names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dynamic_network_architectures.architectures.primus import Primus
from torch import nn

from ..architectures import SegmentationNetwork
from ..architectures.unet2022 import UNet2022
from .encoder import EncoderCheckpoint, load_encoder
from .imagenet import load_imagenet
from .load_report import LoadReport
from .primus import PrimusCheckpoint, load_primus_weights
from .sealed import WrongKindError, sealed_hash
from .transfer import load_encoder_weights


def initialise(
    network: nn.Module, specification: Mapping[str, Any], patch_size: Sequence[int] | None = None
) -> LoadReport:
    """Load the weights of ``specification``, an entry of a plan's configuration, into a fresh network.

    Args:
        network: as the plan has it.
        specification: ``{"imagenet": {arguments of load_imagenet}}`` or ``{"checkpoint": file, "sha256": its hash}``,
            an encoder checkpoint of ours, timm's or Primus, see ``encoder_specification``.
        patch_size: that the network was built for, where it does not know it itself (Primus).

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
            checkpoint = _load(path)
            if rest.get("sha256") not in (None, sealed_hash(path)):
                raise ValueError(f"{path} is another file than when the plan was written; attach it again")
            source = f"{path} ({checkpoint.method} of {checkpoint.name}, {checkpoint.num_cases} images)"
            match network, checkpoint:
                case SegmentationNetwork(), EncoderCheckpoint():
                    return load_encoder_weights(network, checkpoint, source)
                case Primus(), PrimusCheckpoint():
                    return load_primus_weights(network, patch_size, checkpoint, source)
            raise ValueError(f"the weights are of {checkpoint.name}, the network is {type(network).__name__}")
    raise ValueError(f"the plan's initialisation must be imagenet or checkpoint, got {', '.join(specification)}")


def encoder_specification(path: Path) -> dict[str, str]:
    """What a plan says of an encoder checkpoint: where it is, and its hash, so that another file is noticed.

    Raises:
        FileNotFoundError, ValueError: as ``load_encoder``.
    """
    _load(path)
    return {"checkpoint": str(path.resolve()), "sha256": sealed_hash(path)}


def _load(path: str | Path) -> EncoderCheckpoint | PrimusCheckpoint:
    with suppress(WrongKindError):
        return PrimusCheckpoint.load(path)
    return load_encoder(path)
