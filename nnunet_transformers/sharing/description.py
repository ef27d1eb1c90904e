"""Description of a package's models, and the check that its plans name networks and no other code."""

from __future__ import annotations

import pydoc
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from .._atomic import write_json
from .._reading import read_json

NAME = "models.json"
FORMAT = 1
# nnU-Net imports the classes that a plan names; a package's plan may name only these
NETWORK_PACKAGES = ("dynamic_network_architectures.architectures.", "nnunet_transformers.architectures.")
LAYERS = re.compile(
    r"torch\.nn\.(modules\.\w+\.)?(Conv[123]d|(Instance|Batch)Norm[123]d|(Alpha|Feature)?Dropout[123]?d?"
    r"|(Leaky|P|R)?ReLU|ReLU6|GELU|SiLU|ELU|Mish)"
)
NAMES = {
    "preprocessor_name": re.compile(r"DefaultPreprocessor"),
    **dict.fromkeys(
        ("resampling_fn_data", "resampling_fn_seg", "resampling_fn_probabilities"),
        re.compile(r"resample_\w+|no_resampling(_hack)?|fast_resample_\w+"),
    ),
}
NORMALISATION = re.compile(r"\w+Normalization")
READER = re.compile(r"\w+IO(WithReorient)?")
TRAINER = re.compile(r"nnUNet\w*Trainer\w*")


@dataclass(frozen=True)
class Model:
    """One model of a package: folds of one configuration.

    Attributes:
        folder: folder inside the package, with plans.json, dataset.json and a weights file for each fold.
        configuration: configuration of the plan.
        folds: names of the folds.
        trainer: class name of the trainer that trained the model.
        builder: class name of the trainer that builds the network: nnU-Net's, unless the model's trainer builds a
            network of its own.
        network: import path of the network class.
        mirroring_axes: axes that inference may flip, None for none.
        orientations: axis orientations of the training images, such as LPS; empty if unknown.
        previous: model of the previous stage in a cascade.
    """

    folder: str
    configuration: str
    folds: tuple[str, ...]
    trainer: str
    builder: str
    network: str
    mirroring_axes: tuple[int, ...] | None
    orientations: tuple[str, ...] = ()
    previous: Model | None = None

    def weights_file(self, fold: str) -> str:
        """Return the path of a fold's weights inside the package."""
        return f"{self.folder}/fold_{fold}.safetensors"


@dataclass(frozen=True)
class Description:
    """Models of a package, whose probabilities are averaged if there are several, and the package versions."""

    models: tuple[Model, ...]
    versions: Mapping[str, str] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write the description into a package's folder."""
        write_json({"format": FORMAT, **asdict(self)}, folder / NAME)

    @classmethod
    def load(cls, folder: Path) -> Description:
        """Read the description of a package.

        Raises:
            ValueError: if the file has another format or describes no models.
        """
        content = read_json(folder / NAME)
        if content.get("format") != FORMAT:
            raise ValueError(
                f"{NAME} in {folder} has format {content.get('format')}, this version reads format {FORMAT}; update "
                "nnunet-transformers"
            )
        try:
            return cls(tuple(map(_model, content["models"])), dict(content["versions"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{NAME} in {folder} describes no models ({error!r}); get the package again") from error


def _model(content: Mapping[str, Any]) -> Model:
    values = dict(content)
    previous, axes = values.pop("previous"), values.pop("mirroring_axes")
    values |= {name: tuple(map(str, values[name])) for name in ("folds", "orientations")}
    if not re.fullmatch(r"models/[\w.-]+", values["folder"]) or not all(
        re.fullmatch(r"\w+", f) for f in values["folds"]
    ):
        raise ValueError(f"{values['folder']!r} is not the folder of a model")
    return Model(
        **values,
        mirroring_axes=None if axes is None else tuple(map(int, axes)),
        previous=None if previous is None else _model(previous),
    )


def check_plan(plans: Mapping[str, Any], model: Model) -> None:
    """Refuse a plan that makes nnU-Net import anything but parts of a segmentation network.

    Raises:
        ValueError: if an entry names other code; the message names the entry.
    """

    def check(what: str, name: Any, is_allowed: bool) -> None:
        if not is_allowed:
            raise ValueError(f"the plan of {model.folder} names {name!r} as {what}, which is not loaded from a package")

    check("image_reader_writer", plans.get("image_reader_writer"), _matches(READER, plans.get("image_reader_writer")))
    check("trainer", model.builder, _matches(TRAINER, model.builder))
    for configuration in plans["configurations"].values():
        for entry, pattern in NAMES.items():
            if entry in configuration:
                check(entry, configuration[entry], _matches(pattern, configuration[entry]))
        for name in configuration.get("normalization_schemes", ()):
            check("normalization_schemes", name, _matches(NORMALISATION, name))
        architecture = configuration.get("architecture")
        if architecture is not None:
            name = architecture["network_class_name"]
            check("network", name, _is_network(name))
            for key in architecture["_kw_requires_import"]:
                layer = architecture["arch_kwargs"].get(key)
                check(key, layer, layer is None or _matches(LAYERS, layer))


def _is_network(name: Any) -> bool:
    """Tell whether a name is a network class defined in these packages; their imports would lead to other code."""
    if not isinstance(name, str) or not name.startswith(NETWORK_PACKAGES):
        return False
    found = pydoc.locate(name)
    return (
        isinstance(found, type) and issubclass(found, nn.Module) and f"{found.__module__}.".startswith(NETWORK_PACKAGES)
    )


def _matches(pattern: re.Pattern, name: Any) -> bool:
    return isinstance(name, str) and pattern.fullmatch(name) is not None
