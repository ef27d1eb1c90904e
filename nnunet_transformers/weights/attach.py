"""Attach initial weights to plans: training loads the weights that its plan specifies and logs the load report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from .._atomic import write_json
from .._reading import read_json
from ..plans.plan_files import check_new_plans, dataset_folder, load_plans
from ..plans.planned import PlannedConfiguration
from .file import save_checkpoint
from .initialise import InitialWeights, load_enough
from .kinds import label_names
from .load_report import LoadReport

MARKER = "attached"
# entry of a configuration, see ``InitialWeights``
INITIALISATION = "initialisation"


def attach(
    weights: InitialWeights,
    dataset: str,
    plans_name: str,
    output: str,
    configurations: Sequence[str] = (),
    force: bool = False,
    min_coverage: float = 0.5,
    trust: bool = False,
) -> tuple[Path, dict[str, LoadReport], dict[str, str]]:
    """Write a copy of a plan that specifies initial weights.

    Each network is built and the weights are loaded into it first, so that the plan is written only if training can
    start from it.

    Args:
        weights: initial weights of the plan's networks.
        dataset: nnU-Net's number or name of a planned dataset.
        plans_name: name of the plan to copy.
        output: name of the new plan.
        configurations: configurations to attach the weights to; by default those that the weights fit.
        force: replace a plan of that name, if this function wrote it.
        min_coverage: share of the encoder's parameters that the weights must cover.
        trust: build whatever network the plan names.

    Returns:
        the plan file, the load report of each configuration, and the reasons why the others were left unchanged.

    Raises:
        ValueError: if the weights do not fit or cover too little, there is no such dataset or configuration, or the
            plan names other code than networks.
        FileNotFoundError: if the plan, or a file of weights, is missing.
        FileExistsError: if there is already a plan with the new name.
    """
    folder = dataset_folder(dataset)
    path = check_new_plans(folder, output, plans_name, MARKER, force)
    plans = load_plans(folder, plans_name)
    own = [name for name, configuration in plans["configurations"].items() if "architecture" in configuration]
    inheriting = [name for name, configuration in plans["configurations"].items() if "inherits_from" in configuration]
    unknown = [name for name in configurations if name not in (*own, *inheriting)]
    if unknown:
        raise ValueError(f"{plans_name} has no network in {', '.join(unknown)}; it has {', '.join(own)}")
    dataset_json = read_json(folder / "dataset.json")
    reports, left = {}, {}
    for name in configurations or own:
        try:
            planned = PlannedConfiguration(plans, dataset_json, name)
            network = planned.build_network(trust=trust)
            reports[name] = load_enough(weights, network, planned.patch_size, label_names(dataset_json), min_coverage)
        except ValueError as error:
            if configurations:
                raise ValueError(f"{name}: {error}") from error
            left[name] = str(error)
            continue
        reports[name].notes = weights.differences(planned)
        fresh = _fresh_in_encoder(reports[name], network)
        plans["configurations"][name][INITIALISATION] = {**weights.specification, **({"fresh": fresh} if fresh else {})}
    if not reports:
        raise ValueError("; ".join(f"{name}: {reason}" for name, reason in left.items()))
    write_json({**plans, "plans_name": output, MARKER: weights.specification}, path)
    return path, reports, left


def _fresh_in_encoder(report: LoadReport, network: nn.Module) -> list[str]:
    """Names of the parameters of stem and encoder that keep their initialisation: training does not freeze them.

    None of a network that does not say where these are, such as nnU-Net's ``ResidualUNet``.
    """
    keys, filled = ("key_to_stem", "key_to_encoder"), {*report.loaded, *report.adapted}
    parts = tuple(f"{getattr(network, key)}." for key in keys if hasattr(network, key))
    return [n for n, _ in network.named_parameters() if n.startswith(parts) and n not in filled]


def export_full(
    weights: InitialWeights,
    dataset: str,
    plans_name: str,
    configuration: str,
    output: Path,
    trainer: str = "nnUNetTrainer",
    min_coverage: float = 0.5,
    trust: bool = False,
) -> LoadReport:
    """Write weights for stock ``nnUNetv2_train -pretrained_weights``: a whole network with its encoder loaded.

    Args:
        weights: initial weights of the network.
        dataset: nnU-Net's number or name of a planned dataset.
        plans_name: plan to train with.
        configuration: configuration of the plan.
        output: file to write.
        trainer: trainer that will load them. Most trainers build the plan's network; some, such as nnU-Net's Primus
            trainers, build their own.
        min_coverage: share of the encoder's parameters that the weights must cover.
        trust: build whatever network the plan names.

    Returns:
        the load report; tensors that were not loaded keep their initialisation.

    Raises:
        ValueError, FileNotFoundError: as ``attach``.
        FileExistsError: if the file exists.
    """
    if output.exists():
        raise FileExistsError(f"{output} exists; remove it or choose another name")
    planned = PlannedConfiguration.load(dataset, plans_name, configuration)
    network = planned.build_network(trainer, trust=trust)
    report = load_enough(weights, network, planned.patch_size, label_names(planned.dataset_json), min_coverage)
    save_checkpoint({"network_weights": network.state_dict()}, output)
    return report
