"""``nnunet-transformers attach-imagenet``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
    path, reports = attach({"imagenet": arguments}, dataset, plans_name, output, configurations, force)
    for configuration, report in reports.items():
        print(f"{configuration}: {report}")
    print(f"written: {path}; train with -p {path.stem}")
