"""`nnUNetv2_predict` beside `nnunet-transformers predict`: the same models, images and arguments, one after the other.

    export nnUNet_raw=...
    python benchmarks/inference.py FOLDER [--images 3] [--runs 2] [--device cpu] [--output benchmarks/results/inference]

Plans a dataset, gives the plans' networks random weights, and predicts with both. Times are the least of the runs,
which take turns: of the whole command with `--save_probabilities`, and of the sliding window on preprocessed images.
Random weights leave classes close to each other, so labels agree less than those of a trained model.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

# nnU-Net reads its folders from the environment when it is imported, so what needs it imports it later
SCRIPTS = Path(sys.executable).parent
COMMANDS = {"nnUNetv2_predict": ("nnUNetv2_predict",), "predict": ("nnunet-transformers", "predict")}


@dataclass(frozen=True)
class Model:
    """A network to plan, and how nnU-Net calls it."""

    planner: str
    plans: str
    trainer: str
    configuration: str


MODELS = {
    "PlainConvUNet 3D": Model("ExperimentPlanner", "nnUNetPlans", "nnUNetTrainer", "3d_fullres"),
    "QT-UNet T 3D": Model("nnUNetPlannerQTUNetT", "nnUNetQTUNetTPlans", "nnUNetTrainerQTUNet", "3d_fullres"),
    "PlainConvUNet 2D": Model("ExperimentPlanner", "nnUNetPlans", "nnUNetTrainer", "2d"),
    "MiT-7 2D": Model("nnUNetPlannerMiT7", "nnUNetMiT7Plans", "nnUNetTrainerMiT", "2d"),
}


def run(program: str, *arguments: object) -> float:
    """Run a command; returns its seconds."""
    start = time.perf_counter()
    words = [str(SCRIPTS / program), *map(str, arguments)]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(result.stdout + result.stderr)
    return time.perf_counter() - start


def plan(dataset: str, models: list[Model]) -> None:
    """Fingerprint and plans, as far as they are not there; images need no preprocessing to be predicted."""
    number = dataset[len("Dataset") :].split("_")[0]
    folder = Path(os.environ["nnUNet_preprocessed"]) / dataset
    if not (folder / "dataset_fingerprint.json").is_file():
        run("nnUNetv2_extract_fingerprint", "-d", number, "-np", os.cpu_count() or 1)
    for planner, plans in sorted({(model.planner, model.plans) for model in models}):
        if not (folder / f"{plans}.json").is_file():
            run("nnUNetv2_plan_experiment", "-d", number, "-pl", planner)


def initialise(model: Model, dataset: str) -> Path:
    """A model folder as nnU-Net's trainers leave it, with random weights; all flips allowed."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    planned = Path(os.environ["nnUNet_preprocessed"]) / dataset
    name = f"{model.trainer}__{model.plans}__{model.configuration}"
    folder = Path(os.environ["nnUNet_results"]) / dataset / name
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(planned / f"{model.plans}.json", folder / "plans.json")
    shutil.copyfile(planned / "dataset.json", folder / "dataset.json")
    description = json.loads((folder / "dataset.json").read_text())
    manager = PlansManager(str(folder / "plans.json"))
    configuration = manager.get_configuration(model.configuration)
    torch.manual_seed(0)
    network = recursive_find_trainer_class_by_name(model.trainer).build_network_architecture(
        manager,
        configuration,
        determine_num_input_channels(manager, configuration, description),
        manager.get_label_manager(description).num_segmentation_heads,
        enable_deep_supervision=False,
    )
    checkpoint = {
        "network_weights": network.state_dict(),
        "trainer_name": model.trainer,
        "init_args": {"configuration": model.configuration},
        "inference_allowed_mirroring_axes": tuple(range(len(configuration.patch_size))),
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder


def time_commands(model: Model, dataset: str, images: Path, work: Path, runs: int, device: str) -> dict[str, float]:
    """Seconds of each command; what they predict is left in ``work``."""
    seconds = dict.fromkeys(COMMANDS, inf)
    named = ["-d", dataset, "-tr", model.trainer, "-p", model.plans, "-c", model.configuration, "-f", 0]
    options = ["-device", device, "-npp", 1, "-nps", 1, "--save_probabilities", "--disable_progress_bar"]
    for _ in range(runs):
        for name, command in COMMANDS.items():
            took = run(*command, "-i", images, "-o", work / name, *named, *options)
            seconds[name] = min(seconds[name], took)
    return seconds


def time_windows(folder: Path, images: Path, runs: int, device: torch.device) -> tuple[dict[str, float], int]:
    """Seconds of each predictor's sliding window over all images, and the patches in a pass of ours."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from nnunet_transformers.inference import BatchedPredictor

    predictors = {"nnUNetv2_predict": nnUNetPredictor, "predict": BatchedPredictor}
    for name, kind in predictors.items():
        predictors[name] = kind(device=device, allow_tqdm=False)
        predictors[name].initialize_from_trained_model_folder(str(folder), (0,), "checkpoint_final.pth")
    one = predictors["predict"]
    preprocessor = one.configuration_manager.preprocessor_class(verbose=False)
    cases = [
        torch.from_numpy(
            preprocessor.run_case([str(path)], None, one.plans_manager, one.configuration_manager, one.dataset_json)[0]
        )
        for path in sorted(images.iterdir())
    ]
    seconds = dict.fromkeys(predictors, inf)
    for _ in range(runs):
        for name, predictor in predictors.items():
            start = time.perf_counter()
            for case in cases:
                predictor.predict_logits_from_preprocessed_data(case)
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    patch = cases[0].new_zeros(1, cases[0].shape[0], *one.configuration_manager.patch_size)
    return seconds, one.choose_batch_size(patch)


def agreement(work: Path, ending: str) -> dict[str, float]:
    """How far the two commands' predictions are the same."""
    dice, equal, difference = [], [], 0.0
    for path in sorted((work / "predict").glob(f"*{ending}")):
        ours, theirs = (sitk.GetArrayFromImage(sitk.ReadImage(str(work / name / path.name))) for name in COMMANDS)
        equal.append((ours == theirs).mean())
        for label in set(np.unique(theirs)) - {0}:
            one, other = ours == label, theirs == label
            dice.append(2 * (one & other).sum() / (one.sum() + other.sum()))
        file = path.name.replace(ending, ".npz")
        ours, theirs = (np.load(work / name / file)["probabilities"].astype(np.float32) for name in COMMANDS)
        difference = max(difference, float(np.abs(ours - theirs).max()))
    return {
        "dice": float(np.mean(dice)) if dice else 1.0,
        "equal_voxels": float(np.mean(equal)),
        "largest_difference_of_probabilities": difference,
    }


def table(content: dict) -> str:
    """The results as Markdown."""
    lines = [
        "# Prediction compared with nnU-Net's",
        "",
        f"`python benchmarks/inference.py FOLDER --images {content['images']} --runs {content['runs']} "
        f"--device {content['device']}`: {content['dataset']}, all flips, random weights, "
        f"{content['hardware']}, torch {content['torch']}. Seconds of the fastest run; "
        "in brackets the ratio of ours to nnU-Net's.",
        "",
        "| | patch | patches in a pass | command | ours | sliding window | ours | Dice of the two | equal voxels | "
        "largest difference of probabilities |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in content["models"].items():
        parts = [name, "x".join(map(str, row["patch_size"])), str(row["batch_size"])]
        for key in ("command_s", "window_s"):
            theirs, ours = row[key].values()
            parts += [f"{theirs:.1f}", f"{ours:.1f} ({ours / theirs:.2f})"]
        parts += [f"{row['dice']:.5f}", f"{100 * row['equal_voxels']:.3f} %"]
        lines.append(f"| {' | '.join(parts)} | {row['largest_difference_of_probabilities']:.1e} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="to work in; its plans are used again")
    parser.add_argument("--dataset", default="Dataset004_Hippocampus", help="in nnUNet_raw, of one channel")
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--output", type=Path, help="without ending; .json and .md are written")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    for name in ("preprocessed", "results", "images"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        if name != "images":
            os.environ[f"nnUNet_{name}"] = str(folder / name)
    raw = Path(os.environ["nnUNet_raw"]) / arguments.dataset
    ending = json.loads((raw / "dataset.json").read_text())["file_ending"]
    for path in sorted((raw / "imagesTr").glob(f"*_0000{ending}"))[: arguments.images]:
        shutil.copy(path, folder / "images")
    plan(arguments.dataset, [MODELS[name] for name in arguments.models])
    device = torch.device(arguments.device)
    torch.set_num_threads(1 if device.type == "cuda" else os.cpu_count() or 1)
    rows = {}
    for name in arguments.models:
        model = MODELS[name]
        trained = initialise(model, arguments.dataset)
        work = folder / name.replace(" ", "_")
        commands = time_commands(model, arguments.dataset, folder / "images", work, arguments.runs, device.type)
        windows, batch_size = time_windows(trained, folder / "images", arguments.runs, device)
        patch_size = json.loads((trained / "plans.json").read_text())["configurations"][model.configuration][
            "patch_size"
        ]
        rows[name] = {
            **asdict(model),
            "patch_size": patch_size,
            "batch_size": batch_size,
            "command_s": commands,
            "window_s": windows,
            **agreement(work, ending),
        }
        print(name, rows[name], flush=True)
    content = {
        "dataset": arguments.dataset,
        "images": arguments.images,
        "runs": arguments.runs,
        "device": device.type,
        "hardware": torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} CPU threads",
        "torch": torch.__version__,
        "models": rows,
    }
    print(table(content))
    if arguments.output:
        arguments.output.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n")
        arguments.output.with_suffix(".md").write_text(table(content))


if __name__ == "__main__":
    main()
