"""Find and read plans in nnU-Net's preprocessed folder, and name new ones without replacing a planner's own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results
from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id, maybe_convert_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from .._reading import read_json, reading
from ..discovery import planner_names, plans_name

MOST_LISTED = 8
# markers of the commands that copy the plans of another command
WRITTEN_LATER = {"preset": ("attached",)}


def dataset_folder(dataset: str) -> Path:
    """Preprocessed folder of a dataset, given by its number or name.

    Raises:
        ValueError: if there is no such dataset, or nnUNet_preprocessed is not set.
    """
    if not nnUNet_preprocessed.get():  # an empty one would be the working folder
        raise ValueError("nnUNet_preprocessed is not set; export it, and see `nnunet-transformers doctor`")
    return Path(nnUNet_preprocessed) / dataset_name(dataset)


def dataset_name(dataset: str) -> str:
    """Name of a dataset, given by its number or name.

    Raises:
        ValueError: if there is no such dataset, or more than one; the message lists those that there are.
    """
    try:
        name = str(maybe_convert_to_dataset_name(dataset))
        convert_dataset_name_to_id(name)
        if name not in _datasets():
            # nnU-Net takes the number from any name
            raise ValueError(f"no dataset {name}")
    except (ValueError, RuntimeError) as error:
        # nnU-Net's own message fills half a screen
        raise ValueError(
            f"no dataset {dataset!r} in nnUNet_raw or nnUNet_preprocessed, or more than one of that number; there are "
            f"{_some(_datasets()) or 'none: check both variables with `nnunet-transformers doctor`'}"
        ) from error
    return name


def _datasets() -> list[str]:
    """Names of the datasets in nnU-Net's folders."""
    variables = (nnUNet_raw, nnUNet_preprocessed, nnUNet_results)
    places = [Path(variable) for variable in variables if variable.get()]
    return sorted({folder.name for place in places for folder in place.glob("Dataset[0-9][0-9][0-9]_*")})


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return f"{', '.join(names[:MOST_LISTED])}{more}"


def load_plans(folder: Path, name: str) -> dict[str, Any]:
    """Read a plan.

    Args:
        folder: the dataset's preprocessed folder.
        name: plans name.

    Raises:
        FileNotFoundError: if it does not exist; names the command of the planner that makes it, of this package or an
            installed plugin, or the existing plans.
        ValueError: if the file is not a plan.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"the plan {path} is missing. {_advice(folder, name)}")
    try:
        with reading(path, "a plan of nnU-Net's"):
            plans = read_json(path, "a plan of nnU-Net's")
            PlansManager(plans).get_configuration(next(iter(plans["configurations"])))
    except ValueError as error:
        # planning would read the damaged plan before it replaces it
        raise ValueError(
            f"{error}. Correct or remove the file. {_advice(folder, name).removesuffix(' first')}"
        ) from error
    return plans


def dataset_number(name: str) -> int | str:
    """The number by which nnU-Net's commands take a dataset; the name itself if it has no number."""
    try:
        return int(convert_dataset_name_to_id(name))
    except (AssertionError, ValueError):
        return name


def _advice(folder: Path, name: str) -> str:
    """Explain how to make a missing plan."""
    planner = next((planner for planner in planner_names() if plans_name(planner) == name), None)
    if planner is not None:
        was_planned = (folder / "dataset_fingerprint.json").is_file()
        command = "nnUNetv2_plan_experiment" if was_planned else "nnUNetv2_plan_and_preprocess --no_pp"
        return f"Run `{command} -d {dataset_number(folder.name)} -pl {planner}` first"
    return f"Plans of {folder.name}: {', '.join(find_plans(folder)) or 'none; plan the dataset first'}"


def find_plans(folder: Path) -> list[str]:
    """Names of the plans in a dataset's preprocessed folder, sorted."""
    names = []
    for path in sorted(folder.glob("*.json")):
        with suppress(ValueError, OSError):
            if "configurations" in read_json(path):
                names.append(path.stem)
    return names


def check_new_plans(folder: Path, name: str, original: str, marker: str, force: bool) -> Path:
    """Check the name of a new plan.

    Args:
        folder: the dataset's preprocessed folder.
        name: name of the new plan.
        original: name of the plan that it is made from.
        marker: key of the plans that the calling command writes.
        force: replace a plan of that name if the command wrote it.

    Returns:
        the path of the new plan.

    Raises:
        ValueError: if it cannot be a plan's name.
        FileExistsError: if there is a plan of that name, unless the command wrote it last and ``force`` is set.
    """
    if name == original:
        raise ValueError(f"-o {name} is the plan that it starts from, which stays as it is; choose another name")
    # nnU-Net splits TRAINER__PLANS__CONFIGURATION at the first double underscores
    is_file = Path(name).name == name and name.isprintable() and not name.startswith(".")
    if not name or not is_file or name.endswith((".json", "_")) or "__" in name:
        raise ValueError(
            f"-o {name!r} cannot be a plan's name: no folder, no .json, no double underscore, no "
            "underscore at its end, no dot at its beginning"
        )
    path = folder / f"{name}.json"
    if path.exists():
        if not force:
            raise FileExistsError(f"{path} exists; replace it with --force or choose another name with -o")
        written_here = False
        with suppress(ValueError):
            written = read_json(path)
            written_here = marker in written and not any(later in written for later in WRITTEN_LATER.get(marker, ()))
        if not written_here:
            raise FileExistsError(f"{path} was not written by this command; choose another name with -o")
    return path
