"""``nnunet-transformers attach``, ``attach-imagenet`` and ``export-full``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..weights import InitialWeights, LoadReport
from ..weights.attach import attach, export_full
from ..weights.imagenet import HUB


def attach_imagenet(
    dataset: str,
    plans_name: str,
    output: str,
    configurations: Sequence[str],
    convnext: str,
    swin: str | None,
    spread: bool,
    force: bool,
) -> None:
    """Write the plan and print the load report of each configuration."""

    def source(value: str | None) -> str | None:
        return value if value in (None, HUB) else str(Path(value).resolve())

    arguments = {"convnext": source(convnext), "swin": source(swin), "spread": spread}
    weights = InitialWeights({"imagenet": arguments})
    _print(*attach(weights, dataset, plans_name, output, configurations, force, min_coverage=0.0))


def attach_encoder(
    checkpoint: Path,
    dataset: str,
    plans_name: str,
    output: str,
    configurations: Sequence[str],
    min_coverage: float,
    force: bool,
) -> None:
    """The same for an encoder checkpoint."""
    weights = InitialWeights.from_file(checkpoint)
    _print(*attach(weights, dataset, plans_name, output, configurations, force, min_coverage))


def export_encoder(
    checkpoint: Path, dataset: str, plans_name: str, configuration: str, output: Path, trainer: str
) -> None:
    """Write a whole network's weights with the encoder's in them and print the load report."""
    weights = InitialWeights.from_file(checkpoint)
    print(export_full(weights, dataset, plans_name, configuration, output, trainer))
    print(f"written: {output}; nnUNetv2_train ... -tr {trainer} -p {plans_name} -pretrained_weights {output}")


def _print(path: Path, reports: Mapping[str, LoadReport], left: Mapping[str, str]) -> None:
    for configuration, report in reports.items():
        print(f"{configuration}: {report}")
    for configuration, reason in left.items():
        print(f"{configuration} is left as it is: {reason}")
    print(f"written: {path}; train with -p {path.stem}")
