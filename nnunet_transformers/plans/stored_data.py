"""Whether preprocessed data are those of a plan: plans share folders by name, and nnU-Net trusts the name.

Preprocessing any plan that names a ``data_identifier`` replaces that folder, so a training may find the data of another
plan or of an earlier state of the dataset. Plans are compared by every entry that decides what preprocessing writes,
stored cases by what they show: their names, shapes and, under CT normalisation, intensities.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.paths import nnUNet_raw
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import get_identifiers_from_splitted_dataset_folder

from .._reading import read_json
from ..discovery import plans_name
from .plan_files import dataset_number, find_plans
from .planned import PlannedConfiguration, channel_names

OF_PLAN = ("image_reader_writer", "transpose_forward")
OF_CONFIGURATION = (
    "preprocessor_name",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
)
INTENSITIES = "foreground_intensity_properties_per_channel"
# nnU-Net's schemes that depend on nothing but the image
OF_IMAGE_ALONE = ("ZScoreNormalization", "RescaleTo01Normalization", "RGBTo01Normalization", "NoNormalization")
# shares of a channel's standard deviation within which two plans' intensities are the same, and by which interpolation
# may leave the range that intensities are clipped to
SAME, OVERSHOOT = 0.01, 0.1
CHECKED_CASES = 3
# keys of plans that a command of this package made from another plan
DERIVED = {"attached": "attach", "preset": "preset"}


def data_differences(plans: Mapping[str, Any], other: Mapping[str, Any], data_identifier: str) -> list[str]:
    """Name the entries by which two plans of a dataset make different data under the same identifier.

    Args:
        plans, other: contents of plan files.
        data_identifier: a preprocessed folder; all configurations that use it are compared.
    """
    pairs = [(own, theirs) for own in _using(plans, data_identifier) for theirs in _using(other, data_identifier)]
    names = [name for name in OF_PLAN if plans.get(name) != other.get(name)] if pairs else []
    for own, theirs in pairs:
        names += [name for name in OF_CONFIGURATION if not _equal(own.get(name), theirs.get(name))]
        if not _same_intensities(own["normalization_schemes"], plans, other):
            names.append(INTENSITIES)
    return list(dict.fromkeys(names))


def _using(plans: Mapping[str, Any], data_identifier: str) -> Iterator[dict[str, Any]]:
    """The configurations of a plan that use a preprocessed folder, with what they inherit."""
    manager = PlansManager(dict(plans))
    for name in plans["configurations"]:
        with suppress(
            KeyError, TypeError, ValueError, RuntimeError
        ):  # no plan, or of a version of nnU-Net's that this cannot read
            configuration = manager.get_configuration(name).configuration
            if configuration.get("data_identifier") == data_identifier:
                yield configuration


def _equal(value: Any, other: Any) -> bool:
    """Compare entries of plans: numbers nearly, tuples as lists."""
    try:
        return np.shape(value) == np.shape(other) and bool(np.allclose(value, other))
    except (TypeError, ValueError):
        return json.dumps(value, sort_keys=True) == json.dumps(other, sort_keys=True)


def _same_intensities(schemes: list[str], plans: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    for channel, scheme in enumerate(schemes):
        if scheme in OF_IMAGE_ALONE:
            continue
        own, theirs = (plan.get(INTENSITIES, {}).get(str(channel), {}) for plan in (plans, other))
        tolerance = SAME * own.get("std", 0.0)
        if own.keys() != theirs.keys() or any(abs(own[key] - theirs[key]) > tolerance for key in own):
            return False
    return True


def find_conflict(plans: Mapping[str, Any], folder: Path, data_identifier: str) -> tuple[str, list[str]] | None:
    """Find a plan that makes other data under an identifier.

    A plan owns the folders that begin with its name: the plans that share them have to agree with it.

    Args:
        plans: content of a plan.
        folder: the dataset's preprocessed folder, with the other plans.
        data_identifier: identifier that a configuration of ``plans`` uses.

    Returns:
        name of the other plan and the entries that differ; None if there is no such plan.
    """
    if data_identifier.startswith(f"{plans['plans_name']}_"):
        return None
    for name in find_plans(folder):
        if name != plans["plans_name"]:
            other = json.loads((folder / f"{name}.json").read_text())
            if entries := data_differences(plans, other, data_identifier):
                return name, entries
    return None


def is_of_other_images(plans: Mapping[str, Any], folder: Path) -> bool:
    """Whether a plan was made for other images than those of the dataset's fingerprint.

    ``nnUNetv2_move_plans_between_datasets`` writes such plans. Without ``-tp`` they name the folders of other plans of
    the dataset, and preprocessing them replaces the data there.

    Args:
        plans: content of a plan.
        folder: the dataset's preprocessed folder.
    """
    path = folder / "dataset_fingerprint.json"
    if not path.is_file():
        return False
    fingerprint, axes = read_json(path), plans["transpose_forward"]
    for entry, values in (("spacing", "spacings"), ("shape", "shapes_after_crop")):
        planned = plans.get(f"original_median_{entry}_after_transp")
        median = np.median(fingerprint[values], axis=0)[axes]
        # nnU-Net rounds the shape
        if planned is not None and not np.allclose(planned, median, rtol=1e-3, atol=0.5 if entry == "shape" else 0.0):
            return True
    return False


@dataclass(frozen=True)
class StoredData:
    """The preprocessed cases that a configuration trains on.

    Attributes:
        planned: the configuration.
        folder: the dataset's preprocessed folder.
    """

    planned: PlannedConfiguration
    folder: Path

    @property
    def path(self) -> Path:
        """Folder of the cases."""
        return self.folder / str(self.planned.configuration.data_identifier)

    @cached_property
    def cases(self) -> list[str]:
        """Sorted names of the cases that are complete."""
        names = infer_dataset_class(str(self.path)).get_identifiers(str(self.path))
        return sorted(name for name in names if (self.path / f"{name}.pkl").is_file())

    def check_presence(self) -> None:
        """Check that the data were preprocessed.

        Raises:
            FileNotFoundError: if the folder is missing or empty.
        """
        if not self.path.is_dir() or not any(self.path.iterdir()):
            raise FileNotFoundError(f"{self.path} holds no preprocessed data. Run {self._preprocess}")

    def check_plans(self) -> None:
        """Check that no other plan makes other data in the same folder.

        Raises:
            ValueError: names the other plan, and the entries that differ.
        """
        conflict = find_conflict(self.planned.plans, self.folder, self.path.name)
        if conflict is not None:
            other, entries = conflict
            shared = (
                f"{self.planned.plans['plans_name']} shares the data in {self.path} with {other}, which was planned "
                f"with other {', '.join(entries)}; they may be those of either"
            )
            if is_of_other_images(self.planned.plans, self.folder):
                raise ValueError(
                    f"{shared}. It was planned for other images: if it was moved here, {self._move}, for a folder of "
                    f"its own, and preprocess {other} again; else plan again: {self._plan}, then {self._preprocess}"
                )
            raise ValueError(
                f"{shared}. Plan again, for a folder of its own: {self._plan}, then {self._preprocess}, with the "
                f"options of the first time. If you have edited the plan, give {self.planned.name} a data_identifier "
                "of its own there instead, and preprocess it"
            )

    def check_cases(self) -> None:
        """Check that the stored cases are those of the dataset: of nnUNet_raw, without it as many as at planning.

        Raises:
            ValueError: names cases that are missing or not of the dataset.
        """
        expected = self._dataset_cases()
        if expected is None:
            fingerprint = json.loads((self.folder / "dataset_fingerprint.json").read_text())
            count, names = len(fingerprint["spacings"]), ""
            differ = len(self.cases) != count
        else:
            stored = set(self.cases)
            lists = (("missing", sorted(expected - stored)), ("not of the dataset", sorted(stored - expected)))
            count, names = len(expected), "".join(f"; {kind}: {_some(cases)}" for kind, cases in lists if cases)
            differ = bool(names)
        if differ:
            raise ValueError(
                f"{self.path} holds {len(self.cases)} cases and the dataset has {count}{names}. Run {self._preprocess}"
            )

    def check_split(self, fold: int | str) -> str | None:
        """Check the cases of a fold against the stored ones.

        Args:
            fold: number of the fold, or "all".

        Returns:
            a note if the fold leaves out stored cases.

        Raises:
            ValueError: names cases of the fold that are not stored.
        """
        path = self.folder / "splits_final.json"
        splits = json.loads(path.read_text()) if path.is_file() else []
        if fold == "all" or int(fold) >= len(splits):
            return None  # nnU-Net makes the split from the stored cases
        used = {*splits[int(fold)]["train"], *splits[int(fold)]["val"]}
        absent, left = sorted(used.difference(self.cases)), sorted(set(self.cases) - used)
        if absent:
            raise ValueError(
                f"{path} has cases in fold {fold} that {self.path} lacks: {_some(absent)}. Correct the file, or remove "
                "it for a new split"
            )
        if left:
            return (
                f"note: {len(left)} of {len(self.cases)} cases are not in fold {fold} of {path}, neither for training "
                f"nor for validation: {_some(left)}. Remove the file for a new split if they were added after it"
            )
        return None

    def check_content(self) -> None:
        """Check shapes and intensities of a few cases against what the plan makes of them.

        Raises:
            ValueError: if a case has another shape, or intensities outside the range that the plan clips them to.
        """
        if self.planned.configuration.preprocessor_name != "DefaultPreprocessor":
            return
        dataset = infer_dataset_class(str(self.path))(str(self.path), self.cases)
        for case in self.cases[:: -(-len(self.cases) // CHECKED_CASES)]:
            data, _, _, properties = dataset.load_case(case)
            reason = self._wrong_shape(data.shape, properties) or self._wrong_range(data)
            if reason:
                raise ValueError(
                    f"{self.path} is not of this plan: case {case} has {reason}. The folder was preprocessed with "
                    f"another plan, or the images have changed. Run {self._preprocess}"
                )

    def _wrong_shape(self, shape: tuple[int, ...], properties: Mapping[str, Any]) -> str | None:
        configuration = self.planned.configuration
        spacing = [properties["spacing"][axis] for axis in self.planned.manager.transpose_forward]
        target = [*spacing[: len(spacing) - len(configuration.spacing)], *configuration.spacing]
        size = properties["shape_after_cropping_and_before_resampling"]
        if configuration.configuration["resampling_fn_data"] != "no_resampling_hack":
            size = compute_new_shape(size, spacing, target)
        expected = (len(channel_names(self.planned.dataset_json)), *(int(n) for n in size))
        if tuple(shape) == expected:
            return None
        return f"channels and voxels {tuple(shape)} where the plan makes {expected}"

    def _wrong_range(self, data: Any) -> str | None:
        configuration = self.planned.configuration
        for channel, scheme in enumerate(configuration.normalization_schemes):
            if scheme != "CTNormalization":
                continue
            properties = self.planned.plans[INTENSITIES][str(channel)]
            limits = (properties["percentile_00_5"], properties["percentile_99_5"])
            low, high = ((limit - properties["mean"]) / max(properties["std"], 1e-8) for limit in limits)
            middle = np.asarray(data[channel, data.shape[1] // 2])
            if middle.min() < low - OVERSHOOT or middle.max() > high + OVERSHOOT:
                return (
                    f"intensities from {middle.min():.2f} to {middle.max():.2f} in channel {channel} where the plan's "
                    f"normalisation gives {low:.2f} to {high:.2f}"
                )
        return None

    def _dataset_cases(self) -> set[str] | None:
        """Names of the dataset's cases, None where nnUNet_raw does not have them."""
        folder = Path(nnUNet_raw) / self.folder.name if nnUNet_raw.get() else None
        if folder is None or not (folder / "dataset.json").is_file():
            return None
        dataset_json = json.loads((folder / "dataset.json").read_text())
        if "dataset" in dataset_json:
            return set(dataset_json["dataset"])
        if not (folder / "imagesTr").is_dir():
            return None
        names = get_identifiers_from_splitted_dataset_folder(str(folder / "imagesTr"), dataset_json["file_ending"])
        return {str(name) for name in names} or None

    @property
    def _preprocess(self) -> str:
        plans = self.planned.plans
        number = dataset_number(plans["dataset_name"])
        return f"`nnUNetv2_preprocess -d {number} -plans_name {plans['plans_name']} -c {self.planned.name}`"

    @property
    def _move(self) -> str:
        plans = self.planned.plans
        number, name = dataset_number(plans["dataset_name"]), plans["plans_name"]
        return f"`nnUNetv2_move_plans_between_datasets -s SOURCE -t {number} -sp {name} -tp {name}_moved`"

    @property
    def _plan(self) -> str:
        plans, planner = self.planned.plans, self.planned.planner or ""
        command = f"nnUNetv2_plan_experiment -d {dataset_number(plans['dataset_name'])} -pl {planner}"
        derived = [f", `nnunet-transformers {made_by}` again" for key, made_by in DERIVED.items() if key in plans]
        if not derived and plans_name(planner) != plans["plans_name"]:
            command += f" -overwrite_plans_name {plans['plans_name']}"
        return "".join([f"`{command}`", *derived])


def _some(cases: list[str]) -> str:
    """The first names of a list."""
    return ", ".join(cases[:5]) + ", ..." * (len(cases) > 5)
