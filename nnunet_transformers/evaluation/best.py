"""Choose among trained models of any trainers and plans by cross-validation, with nnU-Net's own functions.

``nnUNetv2_find_best_configuration`` crosses a list of trainers with a list of plans, so that two families, each with a
trainer and plans of its own, cannot be given to it. Here models are given as they are, by the names of their folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import combinations
from math import isnan
from pathlib import Path
from shlex import quote
from typing import Any

from nnunetv2.ensembling.ensemble import ensemble_crossvalidations
from nnunetv2.evaluation.accumulate_cv_results import accumulate_cv_results
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder2
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results
from nnunetv2.postprocessing.remove_connected_components import determine_postprocessing
from nnunetv2.utilities.file_path_utilities import folds_tuple_to_string, get_ensemble_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from .._atomic import write_json, write_text
from .._reading import read_json
from .statistics import or_null

# entries of dataset.json that decide what the channels of probabilities mean
OF_LABELS = ("labels", "regions_class_order", "file_ending")


@dataclass(frozen=True)
class TrainedModel:
    """A model in ``nnUNet_results``.

    Attributes:
        folder: ``TRAINER__PLANS__CONFIGURATION``, with its folds.
    """

    folder: Path

    @property
    def name(self) -> str:
        """``TRAINER__PLANS__CONFIGURATION``."""
        return self.folder.name

    @property
    def parts(self) -> tuple[str, str, str]:
        """Trainer, plans and configuration."""
        trainer, plans, configuration = self.name.split("__")
        return trainer, plans, configuration

    @cached_property
    def labels(self) -> dict[str, Any]:
        """What its dataset.json states of labels."""
        content = read_json(self.folder / "dataset.json")
        return {key: content.get(key) for key in OF_LABELS}

    def missing(self, folds: Sequence[int]) -> list[int]:
        """Folds without a finished validation."""
        return [fold for fold in folds if not (self.folder / f"fold_{fold}/validation/summary.json").is_file()]

    def cases(self, folds: Sequence[int], ending: str | None = None) -> set[str]:
        """Names of the cases that some of the folds have validated, or of those with a file of another ending."""
        ending = ending or self.labels["file_ending"]
        files = (file for fold in folds for file in (self.folder / f"fold_{fold}/validation").glob(f"*{ending}"))
        return {file.name.removesuffix(ending) for file in files}


@dataclass(frozen=True)
class Choice:
    """The best of several models and ensembles of two.

    Attributes:
        dataset: name of the dataset.
        folds: folds that were validated.
        scores: mean foreground Dice of the cross-validation by name, best first.
        members: the best model, or the two of the best ensemble.
        source: folder of the best's predictions, with its postprocessing.
        postprocessed: its Dice with postprocessing.
        notes: models that were left out, or that no ensemble could have, and why.
    """

    dataset: str
    folds: tuple[int, ...]
    scores: dict[str, float]
    members: tuple[TrainedModel, ...]
    source: Path
    postprocessed: float
    notes: tuple[str, ...]

    def commands(self) -> list[str]:
        """nnU-Net's commands that predict with the best, ensemble and postprocess."""
        several, lines, outputs = len(self.members) > 1, [], []
        for number, model in enumerate(self.members, start=1):
            outputs.append(f"OUTPUT_FOLDER_MODEL_{number}" if several else "OUTPUT_FOLDER")
            lines += self._predict(model, outputs[-1], " --save_probabilities" if several else "")
        if several:
            lines.append(f"nnUNetv2_ensemble -i {' '.join(outputs)} -o OUTPUT_FOLDER")
        lines.append(
            f"nnUNetv2_apply_postprocessing -i OUTPUT_FOLDER -o OUTPUT_FOLDER_PP -pp_pkl_file "
            f"{quote(str(self.source / 'postprocessing.pkl'))} -plans_json {quote(str(self.source / 'plans.json'))}"
        )
        return lines

    def _predict(self, model: TrainedModel, output: str, options: str) -> list[str]:
        trainer, plans, configuration = model.parts
        folds = " ".join(map(str, self.folds))
        manager = PlansManager(str(model.folder / "plans.json")).get_configuration(configuration)
        previous, lines = manager.previous_stage_name, []
        command = f"nnUNetv2_predict -d {self.dataset} -i INPUT_FOLDER -f {folds} -tr {trainer} -p {plans}"
        if previous is not None:
            stage = f"{output}_{previous}"
            lines.append(f"{command} -c {previous} -o {stage}")
            options = f"{options} -prev_stage_predictions {stage}"
        return [*lines, f"{command} -c {configuration} -o {output}{options}"]


def find_models(dataset: str, names: Sequence[str], folds: Sequence[int]) -> tuple[list[TrainedModel], list[str]]:
    """Find the trained models of a dataset.

    Args:
        dataset: its name.
        names: names of models, or patterns such as ``*__3d_fullres``; none for all that is trained.
        folds: folds that a model must have.

    Returns:
        the models, and notes on those that a pattern matches and that lack folds, and on folders of other names.

    Raises:
        ValueError: if nnUNet_results is not set, there is no such model, or one that was named lacks folds.
    """
    if not nnUNet_results.get():
        raise ValueError("nnUNet_results is not set; export it, and see `nnunet-transformers doctor`")
    root = Path(nnUNet_results) / dataset
    folders = [file.parent for file in sorted(root.glob("*__*__*/plans.json"))]
    known = [TrainedModel(folder) for folder in folders if folder.name.count("__") == 2]
    others = [folder.name for folder in folders if folder.name.count("__") > 2]
    notes = [f"{name} is no TRAINER__PLANS__CONFIGURATION, left out" for name in others]
    found: dict[str, TrainedModel] = {}
    for name in names or ("*",):
        matching = [model for model in known if fnmatchcase(model.name, name)]
        if not matching:
            there = ", ".join(model.name for model in known) or "none"
            raise ValueError(f"no trained model {name} in {root}; there are: {there}")
        for model in matching:
            if not (missing := model.missing(folds)):
                found[model.name] = model
                continue
            lacks = f"{model.name} lacks the validation of {_folds(missing)}"
            if model.name in names:
                trainer, plans, configuration = model.parts
                raise ValueError(
                    f"{lacks}: `nnUNetv2_train {dataset} {configuration} {missing[0]} -tr {trainer} -p {plans} --npz` "
                    "makes it; or choose other --folds"
                )
            notes.append(f"{lacks}, left out")
    if not found:
        raise ValueError(f"no model in {root} has {_folds(folds)}; {'; '.join(notes)}. Choose other --folds")
    return list(found.values()), list(dict.fromkeys(notes))


def _folds(folds: Sequence[int]) -> str:
    return f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"


def find_best(
    dataset: str,
    names: Sequence[str] = (),
    folds: Sequence[int] = (0, 1, 2, 3, 4),
    ensembles: bool = True,
    processes: int = 1,
    overwrite: bool = True,
) -> Choice:
    """Compare trained models, and ensembles of two, by the mean foreground Dice of their cross-validation.

    What nnU-Net's command writes is written here too: merged predictions in the models' folders, ensembles in
    ``ensembles``, the postprocessing of the best beside its predictions, ``inference_instructions.txt`` and
    ``inference_information.json``.

    Args:
        dataset: name of the dataset.
        names: see ``find_models``.
        folds: folds to compare.
        ensembles: ensemble each two models that have probabilities.
        processes: cases at a time.
        overwrite: merge and ensemble again what an earlier call has written.

    Raises:
        ValueError: as ``find_models``; if models have other labels or were validated on other cases than the first.
    """
    models, notes = find_models(dataset, names, folds)
    _check_comparable(models, folds)
    folds = tuple(folds)
    truth = str(Path(nnUNet_preprocessed) / dataset / "gt_segmentations")
    candidates: dict[str, tuple[Path, tuple[TrainedModel, ...]]] = {}
    for model in models:
        merged = model.folder / f"crossval_results_folds_{folds_tuple_to_string(folds)}"
        accumulate_cv_results(str(model.folder), str(merged), folds, processes, overwrite)
        candidates[model.name] = merged, (model,)
    for pair in combinations(_with_probabilities(models, folds, notes) if ensembles else (), 2):
        folders = [str(model.folder) for model in pair]
        name = get_ensemble_name(*folders, folds)
        merged = Path(nnUNet_results) / dataset / "ensembles" / name
        ensemble_crossvalidations(folders, str(merged), folds, processes, overwrite)
        dataset_json, plans_json = str(merged / "dataset.json"), str(merged / "plans.json")
        compute_metrics_on_folder2(truth, str(merged), dataset_json, plans_json, num_processes=processes, chill=True)
        candidates[name] = merged, pair
    scores = {name: _dice(merged) for name, (merged, _) in candidates.items()}
    # of equals the first, which is no ensemble if a model is among them
    ranked = sorted(scores, key=lambda name: -1.0 if isnan(scores[name]) else scores[name], reverse=True)
    source, members = candidates[ranked[0]]
    determine_postprocessing(str(source), truth, str(source / "plans.json"), str(source / "dataset.json"), processes)
    choice = Choice(
        dataset,
        folds,
        {name: scores[name] for name in ranked},
        members,
        source,
        _dice(source / "postprocessed"),
        tuple(notes),
    )
    _write(choice, models, ensembles)
    return choice


def _dice(folder: Path) -> float:
    return float(read_json(folder / "summary.json")["foreground_mean"]["Dice"])


def _check_comparable(models: Sequence[TrainedModel], folds: Sequence[int]) -> None:
    first, cases = models[0], models[0].cases(folds)
    for model in models[1:]:
        differ = [key for key in OF_LABELS if model.labels[key] != first.labels[key]]
        if differ:
            raise ValueError(f"{model.name} and {first.name} differ in {', '.join(differ)} of dataset.json")
        if others := sorted(model.cases(folds) ^ cases):
            raise ValueError(
                f"{model.name} and {first.name} were validated on different cases ({others[0]} and {len(others) - 1} "
                "more are of one only): train both with one splits_final.json, or name the models by -m"
            )


def _with_probabilities(models: Sequence[TrainedModel], folds: Sequence[int], notes: list[str]) -> list[TrainedModel]:
    """Those with probabilities of every case; the others are noted."""
    found = []
    for model in models:
        if model.cases(folds) <= model.cases(folds, ".npz"):
            found.append(model)
        else:
            trainer, plans, configuration = model.parts
            again = f"nnUNetv2_train ... {configuration} FOLD -tr {trainer} -p {plans} --val --npz"
            notes.append(f"{model.name} has no probabilities (.npz) and is in no ensemble; `{again}` makes them")
    return found


def _write(choice: Choice, models: Sequence[TrainedModel], ensembles: bool) -> None:
    """Write nnU-Net's two files on how to predict."""
    folder = Path(nnUNet_results) / choice.dataset
    write_text("\n".join([*choice.commands(), ""]), folder / "inference_instructions.txt")

    def described(model: TrainedModel, plans_key: str) -> dict[str, str]:
        return dict(zip(("trainer", plans_key, "configuration"), model.parts, strict=True))

    content = {
        "folds": choice.folds,
        "dataset_name_or_id": choice.dataset,
        "considered_models": [described(model, "plans") for model in models],
        "ensembling_allowed": ensembles,
        "all_results": {name: or_null(score) for name, score in choice.scores.items()},
        "best_model_or_ensemble": {
            "result_on_crossval_pre_pp": or_null(next(iter(choice.scores.values()))),
            "result_on_crossval_post_pp": or_null(choice.postprocessed),
            "postprocessing_file": str(choice.source / "postprocessing.pkl"),
            "some_plans_file": str(choice.source / "plans.json"),
            "selected_model_or_models": [described(model, "plans_identifier") for model in choice.members],
        },
    }
    write_json(content, folder / "inference_information.json")
