"""``nnunet-transformers attach`` and ``attach-imagenet``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..checkpoints import LoadReport
from ..checkpoints.imagenet import HUB
from ..plans.attach import attach


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
    """Write the plan and print for each configuration what is loaded and what is not."""

    def source(value: str | None) -> str | None:
        return value if value in (None, HUB) else str(Path(value).resolve())

    arguments = {"convnext": source(convnext), "swin": source(swin), "spread": spread}
    _print(*attach({"imagenet": arguments}, dataset, plans_name, output, configurations, force, min_coverage=0.0))


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
    specification = {"checkpoint": str(checkpoint.resolve())}
    _print(*attach(specification, dataset, plans_name, output, configurations, force, min_coverage))


def _print(path: Path, reports: Mapping[str, LoadReport]) -> None:
    for configuration, report in reports.items():
        print(f"{configuration}: {report}")
    print(f"written: {path}; train with -p {path.stem}")
