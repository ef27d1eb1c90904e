"""``nnunet-transformers convert``."""

from __future__ import annotations

from pathlib import Path

from ..checkpoints import from_reference, identify, load_state_dict, save_checkpoint


def convert_checkpoint(family: str, released: Path, output: Path) -> None:
    """Translate ``released`` and write it as a checkpoint of the registered network that it fits."""
    if output.exists():
        raise ValueError(f"{output} exists; remove it or choose another name")
    weights = from_reference(family, load_state_dict(released))
    network = identify(family, weights)
    description = {
        "name": network.name,
        "input_channels": network.input_channels,
        "num_classes": network.num_classes,
        "ndim": network.ndim,
        "overrides": {**network.overrides, "reference_compat": True},
    }
    save_checkpoint({"network_weights": weights, "network": description}, output)
    print(
        f"{output}: {network.name} in {network.ndim}D, {network.input_channels} input channels, "
        f"{network.num_classes} classes; all {len(weights)} tensors translated"
    )
