"""Model cards of repositories on the hub: of an encoder checkpoint, and of a package, whose own card they repeat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCard

from .._reading import reading
from .._text import markdown
from ..hub import Address
from ..weights import PretrainedWeights
from .card import NAME, stated_licence
from .front_matter import card_data, dice_result

ENCODER = """# {title}

{licence}

A pretrained encoder for [nnU-Net](https://github.com/MIC-DKFZ/nnUNet), in the format of
[nnunet-transformers](https://github.com/nnunet-transformers/nnunet-transformers).

## Use

    pip install nnunet-transformers
    nnunet-transformers attach {source} -d DATASET -p PLANS -o NEW_PLANS

writes a plan whose training starts from these weights, and reports every tensor that was loaded and every one that was
not. `nnunet-transformers pull {source} -o FOLDER` copies the file; with `--sha256` it compares the hash below.

## Origin

| | |
|---|---|
{rows}

## Versions

{versions}
"""
PACKAGE = """## From the hub

    pip install nnunet-transformers
    nnunet-transformers pull {source} -o model
    nnunet-transformers package predict model INPUT OUTPUT

The files that this card names are in `{folder}`. `pull` verifies each against `manifest.json`, whose SHA-256 is
`{sha256}`.
"""


def encoder_card(checkpoint: PretrainedWeights, address: Address, licence: str, datasets: Sequence[str]) -> str:
    """Write the card of an encoder checkpoint.

    Args:
        checkpoint: the checkpoint.
        address: its file on the hub.
        licence: licence of the weights, empty if it is not stated.
        datasets: names of the training images' datasets, on the hub or elsewhere.
    """
    spacing = "not the same in all images" if checkpoint.spacing is None else _size(checkpoint.spacing) + " mm"
    settings = ", ".join(f"{name} {value}" for name, value in getattr(checkpoint, "overrides", {}).items())
    rows = {
        "network": checkpoint.name,
        "its arguments": settings or "as registered",
        "pretraining": checkpoint.method or "not stated",
        "training images": checkpoint.num_cases or "number not stated",
        "data": ", ".join(datasets) or "not stated",
        "patch": _size(checkpoint.patch_size),
        "spacing": spacing,
        "channels": checkpoint.input_channels,
        "normalisation": ", ".join(checkpoint.normalization) or "not stated",
        "tensors": len(checkpoint.weights),
    }
    table = [f"| {name} | {markdown(value)} |" for name, value in rows.items()]
    versions = [f"- {markdown(name)} {markdown(version)}" for name, version in checkpoint.versions.items()]
    body = ENCODER.format(
        title=markdown(f"{checkpoint.name}, pretrained by {checkpoint.method or 'a method not stated'}"),
        licence=f"Licence of the weights: {markdown(licence) or 'not stated; ask the source before you use them'}",
        source=address,
        rows="\n".join([*table, f"| SHA-256 of the content | `{checkpoint.sha256}` |"]),
        versions="\n".join(versions),
    )
    data = card_data(licence, [checkpoint.name, checkpoint.method], datasets)
    return f"---\n{data.to_yaml()}\n---\n\n{body}"


def package_card(folder: Path, sha256: str, address: Address, licence: str, datasets: Sequence[str]) -> str:
    """Write the card of a package: its own, with what the arguments add.

    Args:
        folder: the package, verified.
        sha256: hash of its manifest.
        address: its folder on the hub.
        licence: licence of the weights; by default the one that its card states.
        datasets: names of its training data on the hub; by default the one that its card states.
    """
    path = folder / NAME
    with reading(path, "a model card"):
        text = path.read_text(encoding="utf-8")
        # packages of earlier versions have no front matter
        card = ModelCard(text if text.startswith("---") else f"---\n{{}}\n---\n{text}", ignore_metadata_errors=True)
        results = [
            dice_result(r.dataset_name, r.dataset_config, r.metric_name, float(r.metric_value))
            for r in card.data.get("eval_results") or ()
        ]
        data = card_data(
            licence or stated_licence(card.text),
            card.data.get("tags") or (),
            datasets or card.data.get("datasets") or (),
            card.data.get("model_name") or "",
            results,
        )
    more = PACKAGE.format(source=address, sha256=sha256, folder=address.path)
    return f"---\n{data.to_yaml()}\n---\n\n{card.text.strip()}\n\n{more}"


def _size(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)
