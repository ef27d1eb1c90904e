"""Description of a package's models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .._atomic import write_json
from .._paths import inside
from .._reading import read_json

NAME = "models.json"
FORMAT = 1


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
            models = tuple(map(_model, content["models"]))
            if not models:
                raise ValueError("there is none")
            return cls(models, dict(content["versions"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{NAME} in {folder} describes no models ({error!r}); get the package again") from error


def _model(content: Mapping[str, Any]) -> Model:
    values = dict(content)
    previous, axes = values.pop("previous"), values.pop("mirroring_axes")
    values |= {name: tuple(map(str, values[name])) for name in ("folds", "orientations")}
    inside(Path(), values["folder"])
    if not re.fullmatch(r"models/[\w.-]+", values["folder"]) or not all(
        re.fullmatch(r"\w+", f) for f in values["folds"]
    ):
        raise ValueError(f"{values['folder']!r} is not the folder of a model")
    if not values["folds"]:
        raise ValueError(f"{values['folder']} has no fold")
    return Model(
        **values,
        mirroring_axes=None if axes is None else tuple(map(int, axes)),
        previous=None if previous is None else _model(previous),
    )
