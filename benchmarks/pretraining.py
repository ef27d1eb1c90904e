"""Does pretraining help? Hippocampus, labels unused, then training from ten labelled cases, three seeds.

    export nnUNet_raw=... nnUNet_preprocessed=... nnUNet_results=...
    python benchmarks/pretraining.py qt_ssl unimiss alice_hybrid alice_identity

Each method plans, prepares the images that fold 0 does not validate on, pretrains with `nnunet-transformers pretrain
fit`, attaches the encoder, and trains with and without it, through nnU-Net's own commands: 300 iterations, batch 2, the
same ten cases and seeds on either side. Prints one JSON line: the mean foreground Dice of the 40 validation cases for
each run, and what pretraining took. An encoder and trainings that are there are not made again; remove
$nnUNet_results/pretraining to begin anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

DATASET, CONFIGURATION, FOLD, BATCH_SIZE = "Dataset004_Hippocampus", "3d_fullres", 0, 2
SEEDS, STARTS = (0, 1, 2), ("scratch", "pretrained")
COMMAND = Path(sys.executable).with_name("nnunet-transformers")


@dataclass(frozen=True)
class Method:
    """A pretraining method with the network that it is tried with.

    Attributes:
        recipe: of the package.
        settings: what a CPU and 160 small images need instead of the recipe's values.
        folder_argument: of the recipe's data.
        encoder: file that the method writes.
        planner, trainer: of the network.
        patch_size: to train with in place of the planned one, for time's sake.
        matcher: settings of the anatomical embedding that is trained first, where the method needs one.
    """

    recipe: str
    settings: dict[str, object]
    folder_argument: str
    encoder: str
    planner: str
    trainer: str
    patch_size: tuple[int, ...] | None = None
    matcher: dict[str, object] | None = None

    @property
    def plans(self) -> str:
        return self.planner.replace("Planner", "") + "Plans"


# smaller than the images, which are hardly larger than the planned patch, so that there is something to match
ALICE_PATCH = "[24,32,24]"


def alice(matcher: str, settings: dict[str, object] | None) -> Method:
    """Alice with one of its matchers, all else the same."""
    return Method(
        recipe="alice",
        settings={
            "model.init_args.patch_size": ALICE_PATCH,
            "model.init_args.similarity": "info_nce",  # the cosine loss collapses at this scale
            "model.init_args.lr": 2e-4,
            "model.init_args.warmup_epochs": 2,
            "data.init_args.matcher": matcher,
            "data.init_args.partners": 3,
            "data.init_args.batch_size": 8,
            "data.init_args.val_images": 0,
            "trainer.accumulate_grad_batches": 1,
            "trainer.max_steps": -1,
            "trainer.max_epochs": 20,
        },
        folder_argument="folder",
        encoder="encoder.pth",
        planner="nnUNetPlannerQTUNetT",
        trainer="nnUNetTrainerQTUNet_tencases",
        matcher=settings,
    )


METHODS = {
    "qt_ssl": Method(
        recipe="qt_ssl_in_task",
        settings={
            "model.init_args.lr": 1e-3,
            "model.init_args.warmup_epochs": 2,
            "data.init_args.batch_size": 8,
            "trainer.accumulate_grad_batches": 1,
            "trainer.max_epochs": 14,
        },
        folder_argument="folder",
        encoder="encoder.pth",
        planner="nnUNetPlannerQTUNetT",
        trainer="nnUNetTrainerQTUNet_tencases",
    ),
    "unimiss": Method(
        recipe="unimiss_small",  # 64 samples a step, the release's views, batch norm in the head
        settings={
            # the planned patch is larger than the images, and slices are most of a step's work
            "model.init_args.patch_size_2d": "[32,32]",
            "model.init_args.patch_size_3d": "[16,32,32]",
            "model.init_args.lr": 3.2e-3,  # for a batch of 256; 8e-4 for 64
            "model.init_args.warmup_epochs": 2,
            "model.init_args.output_dim": 1024,
            "data.init_args.samples_per_epoch": 640,
            "data.init_args.period": 1,
            "trainer.max_epochs": 16,
        },
        folder_argument="folder_3d",
        encoder="encoder_3d.pth",
        planner="nnUNetPlannerMiT7",
        trainer="nnUNetTrainerMiT_tencases",
        patch_size=(32, 48, 32),
    ),
    "alice_hybrid": alice("hybrid", {"data.init_args.patch_size": ALICE_PATCH, "trainer.max_steps": 400}),
    "alice_identity": alice("identity", None),
}


def run(command: str, **environment: str) -> None:
    print(f"$ {command}", flush=True)
    subprocess.run(shlex.split(command), env={**os.environ, **environment}, check=True)


def plan(method: Method) -> str:
    """Plan the network for this benchmark's batch; returns the plan's name."""
    folder = Path(os.environ["nnUNet_preprocessed"]) / DATASET
    name = method.plans.replace("Plans", "FewPlans")
    if (folder / f"{name}.json").is_file():  # planned before, maybe for a training that reads these data now
        return name
    number = int(DATASET[7:10])
    arguments = f"-d {number} -c {CONFIGURATION} -pl {method.planner} -np 2 -npfp 2"
    run(f"nnUNetv2_plan_and_preprocess {arguments}", nnUNet_n_proc_DA="1")
    planned = json.loads((folder / f"{method.plans}.json").read_text())
    planned["plans_name"] = name
    configuration = planned["configurations"][CONFIGURATION]
    configuration["batch_size"] = BATCH_SIZE
    if method.patch_size:
        configuration["patch_size"] = configuration["architecture"]["arch_kwargs"]["patch_size"] = method.patch_size
    (folder / f"{name}.json").write_text(json.dumps(planned, indent=4))
    return name


def fit_arguments(
    settings: dict[str, object], folder_argument: str, prepared: Path, folder: Path, **changes: object
) -> list[str]:
    """What `pretrain fit` is told besides the recipe and the plan."""
    settings = {
        **settings,
        f"data.init_args.{folder_argument}": prepared,
        "data.init_args.num_workers": 0,
        "trainer.accelerator": "cpu",
        "trainer.default_root_dir": folder,
        "trainer.enable_progress_bar": "false",
        "trainer.logger": "CSVLogger",
        "trainer.logger.init_args.save_dir": folder,
        "trainer.log_every_n_steps": 5,
        **changes,
    }
    return [f"--{name}={value}" for name, value in settings.items()]


def fit(recipe: str, settings: dict[str, object], arguments: list[str], folder: Path) -> None:
    """Run a recipe, unless it was run with these settings; `pretraining.json` says how long it took."""
    summary = folder / "pretraining.json"
    if summary.is_file():
        if json.loads(summary.read_text())["settings"] != settings:
            raise SystemExit(f"{folder} was made with other settings; remove it and the trainings beside it")
        return
    start = time.perf_counter()
    run(f"{COMMAND} pretrain fit --config {recipe} {shlex.join(arguments)}")
    minutes = round((time.perf_counter() - start) / 60, 1)
    summary.write_text(json.dumps({"minutes": minutes, "settings": settings}))


def pretrain(name: str, method: Method, plans: str, work: Path) -> Path:
    """Make the encoder; returns its folder."""
    prepared, folder = work / "prepared", work / name
    if not (prepared / "index.json").is_file():
        source = Path(os.environ["nnUNet_raw"]) / DATASET
        run(f"{COMMAND} pretrain prepare {source} {prepared} --fold {FOLD} --patch-size 40,56,40")
    settings = method.settings
    if method.matcher is not None:
        matcher = work / "matcher"
        fit("matcher", method.matcher, fit_arguments(method.matcher, "folder", prepared, matcher), matcher)
        weights = json.dumps({"weights": str(matcher / "matcher.pth")})
        settings = {**settings, "data.init_args.matcher_arguments": weights}
    arguments = ["-d", DATASET, "-p", plans, "-c", CONFIGURATION]
    arguments += fit_arguments(settings, method.folder_argument, prepared, folder)
    fit(method.recipe, method.settings, arguments, folder)
    return folder


def train(method: Method, plans: str, seed: int, results: Path) -> float:
    """Train from ten cases, unless it is done; returns the mean foreground Dice."""
    root = results / f"seed_{seed}"
    folder = root / DATASET / f"{method.trainer}__{plans}__{CONFIGURATION}" / f"fold_{FOLD}"
    if not (folder / "validation" / "summary.json").is_file():
        environment = {
            "nnUNet_results": str(root),
            "nnUNet_n_proc_DA": "0",
            "nnUNet_extTrainer": str(Path(__file__).parent / "trainers"),
            "BENCHMARK_SEED": str(seed),
        }
        command = f"nnUNetv2_train {DATASET} {CONFIGURATION} {FOLD} -tr {method.trainer} -p {plans} -device cpu"
        run(command, **environment)
    return json.loads((folder / "validation" / "summary.json").read_text())["foreground_mean"]["Dice"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS, help="trained in this order")
    parser.add_argument("--starts", nargs="*", default=STARTS, choices=STARTS, help="what trainings start from")
    arguments = parser.parse_args()
    work = Path(os.environ["nnUNet_results"]) / "pretraining"
    for name in arguments.methods:
        method = METHODS[name]
        plans = plan(method)
        folder = pretrain(name, method, plans, work)
        attached = plans.replace("Plans", f"_{name}Plans")
        options = f"-d {DATASET} -p {plans} -o {attached} -c {CONFIGURATION} --force"
        run(f"{COMMAND} attach {folder / method.encoder} {options}")
        dice: dict[str, list[float]] = {start: [] for start in arguments.starts}
        for seed in arguments.seeds:
            for start in arguments.starts:
                from_plans = plans if start == "scratch" else attached
                dice[start].append(round(train(method, from_plans, seed, work), 4))
                print(json.dumps({"method": name, "start": start, "seed": seed, "dice": dice[start][-1]}), flush=True)
        summary = {
            start: [round(f(values), 4) for f in (statistics.mean, statistics.stdev)] for start, values in dice.items()
        }
        took = json.loads((folder / "pretraining.json").read_text())
        print(json.dumps({"method": name, "dice": dice, "mean_and_deviation": summary, **took}), flush=True)


if __name__ == "__main__":
    main()
