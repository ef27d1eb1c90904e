"""Attach every paper's release to a plan and train from it, on a drawn dataset.

    python benchmarks/attach_releases.py     # results/attach_releases.md

The files are rebuilt from names and shapes of the releases, with random values, in the layout in which their authors
saved them. For each: plan, attach, two iterations of training on CPU, validation.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


@dataclass(frozen=True)
class Release:
    """A released file and the plan that takes it.

    Attributes:
        listing: name of its listing of names in tests/data.
        family: family of the listing.
        planner, trainer, configuration: what trains it here.
        prefix, entry: prefix of its names, and the entry of the file that holds them.
        extra: what else the authors saved.
    """

    listing: str
    family: str
    planner: str
    trainer: str
    configuration: str
    prefix: str = ""
    entry: str = "state_dict"
    extra: str = ""


QT, UNET, MIT = "nnUNetTrainerQTUNet", "nnUNetTrainerUNet2022", "nnUNetTrainerMiT"
RELEASES = (
    Release("qt_unet_tiny_4ch_3cls_128", "qt_unet", "nnUNetPlannerQTUNetT", QT, "3d_fullres"),
    Release("qt_unet_tiny_4ch_3cls_128", "qt_unet", "nnUNetPlannerQTUNetT", QT, "3d_fullres", extra="encoder alone"),
    Release("qt_unet_a_tiny_4ch_3cls_128", "qt_unet", "nnUNetPlannerQTUNetT", QT, "3d_fullres"),
    Release("qt_unet_2d_tiny_3ch_20cls", "qt_unet", "nnUNetPlannerQTUNetT", QT, "2d"),
    Release("unet2022_ACDC_224", "unet2022", "nnUNetPlannerUNet2022L", UNET, "2d", extra="numpy"),
    Release("unet2022_EM_512", "unet2022", "nnUNetPlannerUNet2022T", UNET, "2d", extra="numpy"),
    Release("unet2022_ISIC_512", "unet2022", "nnUNetPlannerUNet2022T", UNET, "2d", extra="numpy"),
    Release("unet2022_Synapse_224", "unet2022", "nnUNetPlannerUNet2022B", UNET, "2d", extra="numpy"),
    Release("unet2022_Synapse_320", "unet2022", "nnUNetPlannerUNet2022T", UNET, "2d", extra="numpy"),
    Release("mit_ssl7_MM", "mit", "nnUNetPlannerMiT7", MIT, "3d_fullres", "module.backbone.", "student", "Namespace"),
    Release("mit_ssl7_MM", "mit", "nnUNetPlannerMiT7", MIT, "2d", "module.backbone.", "student", "Namespace"),
    Release("mit_ssl22_MM", "mit", "nnUNetPlannerMiT22", MIT, "3d_fullres", "module.backbone.", "student", "Namespace"),
    Release("mit_seg7_48x192x192", "mit", "nnUNetPlannerMiT7", MIT, "3d_fullres"),
    Release("mit_seg22_48x192x192", "mit", "nnUNetPlannerMiT22", MIT, "3d_fullres"),
    Release("mit_cls22", "mit", "nnUNetPlannerMiT22", MIT, "3d_fullres", entry=""),
)


def content(release: Release) -> dict[str, Any]:
    """Content of the released file, with random weights."""
    import numpy as np

    released = import_module("tests.released")
    weights = released.weights_from_names(released.released_keys(release.family)[release.listing])
    if release.extra == "encoder alone":
        weights = {name: value for name, value in weights.items() if name.startswith("encoder.")}
    named = {release.prefix + name: value for name, value in weights.items()}
    if not release.entry:
        return named
    other: dict[str, Any] = {"epoch": 100, "optimizer": {"state": {}, "param_groups": []}}
    if release.extra == "Namespace":
        other["args"] = argparse.Namespace(arch="MiT", lr=6e-4)
    if release.extra == "numpy":
        other["best_metric"] = np.float64(0.8)
    return {release.entry: named, **other}


def run(folder: Path) -> Iterator[str]:
    """Attach and train each release; yields the rows of the table."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
    from nnunetv2.run.run_training import get_trainer_from_args

    from nnunet_transformers.discovery import plans_name
    from nnunet_transformers.trainers.trainer import TransformerTrainer
    from nnunet_transformers.weights import InitialWeights
    from nnunet_transformers.weights.attach import attach

    # not imported by name, as the tests have no types
    drawn = import_module("tests.conftest")
    TransformerTrainer.default_iterations = 2
    with drawn.light_nnunet():
        drawn.write_dataset(folder / "raw", size=(32, 48, 48), cases=5)
        extract_fingerprints([900], num_processes=1)
        done = set()
        for number, release in enumerate(RELEASES):
            plans = plans_name(release.planner)
            if release.planner not in done:
                os.environ["nnUNet_n_proc_DA"] = "1"
                plan_experiments([900], release.planner, gpu_memory_target_in_gb=6)
                preprocess([900], plans, ("2d", "3d_fullres"), [1, 1])
                done.add(release.planner)
            os.environ["nnUNet_n_proc_DA"] = "0"
            path = folder / f"{number}.pth"
            torch.save(content(release), path)
            name = f"{plans}_{number}"
            try:
                attached = attach(InitialWeights.from_source(path), "900", plans, name, [release.configuration])
            except ValueError as error:
                yield f"| {release.listing} | {release.planner} {release.configuration} | | | {str(error)[:160]} |"
                continue
            report = attached[1][release.configuration]
            trainer = get_trainer_from_args(
                "900", release.configuration, 0, f"{release.trainer}_1epoch", name, device=torch.device("cpu")
            )
            trainer.num_val_iterations_per_epoch = 1
            trainer.on_train_start()
            trainer.on_epoch_start()
            trainer.on_train_epoch_start()
            losses = [float(trainer.train_step(next(trainer.dataloader_train))["loss"]) for _ in range(2)]
            share = report.coverage(dict(trainer.network.named_parameters()), "encoder.")
            note = f" ({release.extra})" if release.extra else ""
            yield (
                f"| {release.listing}{note} | {release.planner} {release.configuration} | {share:.0%} | "
                f"{len(report.loaded)}, {len(report.adapted)}, {len(report.fresh)}, {len(report.unused)} | "
                f"{losses[0]:.2f}, {losses[1]:.2f} |"
            )
            path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/attach_releases.md")
    arguments = parser.parse_args()
    lines = [
        "# Releases attached and trained from",
        "",
        "`python benchmarks/attach_releases.py`: files rebuilt from the names of the releases, two iterations on CPU.",
        "",
        "| release | plan | of the encoder | tensors loaded, adapted, fresh, unused | loss of two iterations |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("raw", "preprocessed", "results"):
            (Path(folder) / kind).mkdir()
            os.environ[f"nnUNet_{kind}"] = str(Path(folder) / kind)
        os.environ["nnUNet_def_n_proc"] = "1"
        for row in run(Path(folder)):
            print(row, flush=True)
            lines.append(row)
    arguments.output.write_text("\n".join(lines) + "\n")
    print(json.dumps({"rows": len(lines) - 6}))


if __name__ == "__main__":
    main()
