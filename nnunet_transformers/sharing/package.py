"""Make a package: a folder with everything that inference needs and nothing that must be unpickled."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from .._atomic import new_folder, write_json, write_text
from .._orientation import training_orientations
from .._plugins import packages_of
from .._reading import read_json
from ..formats.sockets import read_interfaces
from ..plans.builder import builds_planned_network, find_builder
from ..plans.planned import channel_names
from ..weights.nnunet_checkpoint import FINAL
from ..weights.sealed import package_versions
from .card import write_card
from .contents import (
    DOCKERFILE,
    ENTRY_POINT,
    REQUIREMENTS,
    SOCKETS,
    WHEELS,
    WHEELS_LINE,
    check_kinds,
    dockerfile,
    entry_point,
)
from .description import Description, Model
from .load import build_network, check_weights
from .manifest import Manifest, write_manifest
from .own_wheel import IMPORTED, write_own_wheel
from .requirements import pinned_requirements
from .shareable import copy_shareable
from .trained import TrainedFold, extract_models, find_folds, model_parts, read_fold
from .weights_file import save_weights

SHIPPED = ("plans.json", "dataset.json", "dataset_fingerprint.json")
# entries of dataset.json that must be equal in all models of an ensemble
COMMON = ("channel_names", "labels", "file_ending", "regions_class_order")


@dataclass(frozen=True)
class Options:
    """Settings for making a package.

    Attributes:
        folds: folds of each model; by default all finished ones.
        checkpoint: file name of the checkpoints.
        previous_stage: folder of the model of a cascade's previous stage; by default it is found beside the model.
        trust: unpickle checkpoints that cannot be read otherwise.
        licence: licence of the weights, for the card.
        sockets: JSON of the interfaces of an algorithm on grand-challenge.org, see ``read_interfaces``.
        wheels: wheels to install from, for requirements that no registry has; one of this package is made unless given.
    """

    folds: tuple[str, ...] = ()
    checkpoint: str = FINAL
    previous_stage: Path | None = None
    trust: bool = False
    licence: str = ""
    wheels: tuple[Path, ...] = ()
    sockets: Path | None = None


@dataclass(frozen=True)
class Made:
    """A finished package: its models, its manifest, and the checkpoints that had to be unpickled."""

    description: Description
    manifest: Manifest
    unpickled: list[str]


def make_package(sources: Sequence[Path], output: Path, options: Options) -> Made:
    """Make a package of one trained model, or of several as an ensemble.

    Args:
        sources: nnU-Net's folders of the models, .../TRAINER__PLANS__CONFIGURATION.
        output: folder to write, whole or not at all.
        options: settings.

    Raises:
        FileExistsError: if ``output`` exists.
        FileNotFoundError: if a model, a fold or a cascade's previous stage is missing.
        ValueError: if a checkpoint cannot be read safely or does not fit its plan, or the models do not belong
            together.
    """
    if output.exists():
        raise FileExistsError(f"{output} exists; remove it or choose another name")
    resolved = [source.resolve() for source in sources]
    for source in resolved:
        if resolved.count(source) > 1:
            raise ValueError(f"{source} is given {resolved.count(source)} times; a model is in an ensemble once")
    with new_folder(output) as partial:
        maker = _Maker(partial, options)
        models = [maker.add(source, options.previous_stage) for source in sources]
        maker.check_ensemble(models)
        description = Description(tuple(models), package_versions())
        description.save(partial)
        maker.add_files()
        maker.add_sockets(models[0])
        write_card(partial, description, maker.folds, maker.sources, options.licence, options.checkpoint)
        manifest = write_manifest(partial)
        check_kinds(manifest.entries, partial)
    return Made(description, manifest, maker.unpickled)


def package_zip(archive: Path, names: Sequence[str], output: Path, options: Options) -> Made:
    """Make a package of models in a zip of nnUNetv2_export_model_to_zip.

    Args:
        archive: the zip.
        names: names of the models, TRAINER__PLANS__CONFIGURATION; by default its only one.
        output, options: as for ``make_package``.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: as ``make_package`` and ``extract_models``.
    """
    with TemporaryDirectory() as folder:
        models = extract_models(archive, Path(folder), names, options.checkpoint)
        return make_package(models, output, options)


class _Maker:
    """Fills the folder of a package model by model."""

    def __init__(self, folder: Path, options: Options) -> None:
        self.folder, self.options = folder, options
        self.models: dict[str, Model] = {}
        self.folds: dict[str, list[TrainedFold]] = {}
        self.sources: dict[str, Path] = {}
        self.unpickled: list[str] = []
        # import paths of networks and trainers
        self.modules: set[str] = set()

    def add(self, source: Path, previous_stage: Path | None) -> Model:
        source = source.resolve()
        names = find_folds(source, self.options.folds, self.options.checkpoint)
        folder = f"models/{source.name}"
        if folder in self.models:
            if self.sources[folder] != source:
                raise ValueError(f"two models are called {source.name}; each can be in a package once")
            return self.models[folder]  # the first stage of a cascade that is in the ensemble, too
        target = self.folder / folder
        target.mkdir(parents=True)
        for name in SHIPPED:
            if not (source / name).is_file():
                raise FileNotFoundError(f"{source / name} is missing; nnUNetv2_train writes it beside the folds")
            copy_shareable(source / name, target / name)
        plans, dataset_json = read_json(source / "plans.json"), read_json(source / "dataset.json")

        folds = [read_fold(source, name, self.options.checkpoint, self.options.trust) for name in names]
        self.unpickled += [str(source / f"fold_{fold.name}") for fold in folds if fold.unpickled]
        first = folds[0]
        configuration = PlansManager(plans).get_configuration(first.configuration)
        model = Model(
            folder=folder,
            configuration=first.configuration,
            folds=tuple(names),
            trainer=first.trainer,
            builder="nnUNetTrainer" if builds_planned_network(first.trainer) else first.trainer,
            network=configuration.network_arch_class_name,
            mirroring_axes=first.mirroring_axes,
            orientations=training_orientations(source, names, dataset_json["file_ending"]),
            previous=self._add_previous(source, configuration.previous_stage_name, previous_stage),
        )
        network = build_network(plans, model, dataset_json)
        for fold in folds:
            path = self.folder / model.weights_file(fold.name)
            check_weights(network, fold.weights, str(source / f"fold_{fold.name}" / self.options.checkpoint))
            save_weights(fold.weights, path)
        self.folds[folder], self.sources[folder], self.models[folder] = folds, source, model
        self.modules |= {model.network, find_builder(model.builder).__module__}
        return model

    def _add_previous(self, source: Path, name: str | None, given: Path | None) -> Model | None:
        if name is None:
            return None
        trainer, plans, configuration = model_parts(source)
        found = given or source.with_name(f"{trainer}__{plans}__{name}")
        if not found.is_dir():
            raise FileNotFoundError(
                f"{configuration} takes the segmentations of {name}, but there is no {found}; specify its folder with "
                "--previous-stage"
            )
        return self.add(found, None)

    def check_ensemble(self, models: Sequence[Model]) -> None:
        """Raise ValueError unless all models specify the same images and labels."""
        contents = [read_json(self.folder / model.folder / "dataset.json") for model in models]
        # which may be called modality, as in nnU-Net v1
        contents = [{**content, "channel_names": channel_names(content)} for content in contents]
        for model, content in zip(models, contents, strict=True):
            for key in COMMON:
                if content.get(key) != contents[0].get(key):
                    raise ValueError(
                        f"{model.folder} and {models[0].folder} cannot be an ensemble: their dataset.json differ in "
                        f"{key}"
                    )

    def add_sockets(self, model: Model) -> None:
        """Copy the interfaces of an algorithm if there are any; raise ValueError if they are not for this model."""
        if self.options.sockets is not None:
            channels = channel_names(read_json(self.folder / model.folder / "dataset.json"))
            interfaces = read_interfaces(self.options.sockets, channels)
            write_json([asdict(one) for one in interfaces], self.folder / SOCKETS)

    def add_files(self) -> None:
        """Write requirements, entry point and Dockerfile."""
        lines = [WHEELS_LINE, *pinned_requirements(packages_of(self.modules))]
        (self.folder / WHEELS).mkdir()
        for wheel in self.options.wheels:
            shutil.copyfile(wheel, self.folder / WHEELS / wheel.name)
        if not any(wheel.name.startswith(f"{IMPORTED}-") for wheel in self.options.wheels):
            write_own_wheel(self.folder / WHEELS)
        write_text("\n".join(lines) + "\n", self.folder / REQUIREMENTS)
        write_text(entry_point(), self.folder / ENTRY_POINT)
        write_text(dockerfile(f"{sys.version_info.major}.{sys.version_info.minor}"), self.folder / DOCKERFILE)
