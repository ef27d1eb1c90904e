"""``nnunet-transformers convert``."""

from __future__ import annotations

from pathlib import Path

from ..architectures import create_network
from ..weights import from_reference, identify, load_state_dict, save_checkpoint
from .network_table import parse_patch_size


def convert_checkpoint(family: str, released: Path, output: Path, patch_size: str | None = None) -> None:
    """Translate ``released`` and write it as a checkpoint of the registered network that it fits.

    Raises:
        FileNotFoundError, ValueError: if ``released`` cannot be read or is not the family's, or ``output`` exists.
    """
    if output.exists():
        raise ValueError(f"{output} exists; remove it or choose another name")
    weights = from_reference(family, load_state_dict(released))
    found = identify(family, weights, parse_patch_size(patch_size) if patch_size else None)
    overrides = {**found.overrides, "reference_compat": True}
    description = {
        "name": found.name,
        "input_channels": found.input_channels,
        "num_classes": found.num_classes,
        "ndim": found.ndim,
        "overrides": overrides,
    }
    size = ""
    if found.patch_size is not None:
        # a round through the network lays out on their grid what the release keeps flat
        network = create_network(found.name, found.input_channels, found.num_classes, found.patch_size, **overrides)
        network.load_state_dict(weights)
        weights = network.state_dict()
        description["patch_size"] = found.patch_size
        given = "" if patch_size else " (a published size that fits; give --patch-size if it was another)"
        size = f", patch size {'x'.join(map(str, found.patch_size))}{given}"
    save_checkpoint({"network_weights": weights, "network": description}, output)
    print(
        f"{output}: {found.name} in {found.ndim}D, {found.input_channels} input channels, "
        f"{found.num_classes} classes{size}; all {len(weights)} tensors translated"
    )
