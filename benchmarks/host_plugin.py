"""A package of `new network` in a fresh environment: install, plan, train, predict, uninstall, as a user does.

    python benchmarks/host_plugin.py                        # results/host_plugin.json

Makes a virtual environment that sees the packages of this one but for ours, installs this package's wheel into it, and
then, each in a process of its own: writes the package of a network, installs it with pip, runs its tests in 2D, the
doctor, nnU-Net's commands on a dataset of five small volumes (two iterations and one epoch), `pretrain fit`, `attach`,
`predict`, `find-best` and `models`; uninstalls it with pip, and compares the environment's files with those of before.
Takes a few minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from nnunet_transformers._atomic import write_json  # noqa: E402
from tests.conftest import write_dataset  # noqa: E402

RESULT = ROOT / "benchmarks/results/host_plugin.json"
# runs a command of an installed package
COMMAND = (
    "import sys; from importlib.metadata import entry_points; sys.argv = sys.argv[1:]; "
    "next(iter(entry_points(group='console_scripts', name=sys.argv[0]))).load()()"
)
PLANS, TRAINER = "nnUNetMyNetPlans", "nnUNetTrainerMyNet"
DATASET = "Dataset900_Balls"


class Environment:
    """A fresh virtual environment, nnU-Net's folders, and the record of what was run.

    Args:
        folder: folder to work in.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.steps = folder, list[dict[str, Any]]()
        venv.create(folder / "environment", symlinks=True)
        self.python = folder / "environment/bin/python"
        self.site = next((folder / "environment/lib").glob("python*/site-packages"))
        others = folder / "others"
        others.mkdir()
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            if "nnunet_transformers" not in entry.name:
                (others / entry.name).symlink_to(entry)
        (self.site / "others.pth").write_text(f"{others}\n")
        self.variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self.variables |= {"PYTHONWARNINGS": "ignore", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"}
        for name in ("raw", "preprocessed", "results"):
            (folder / name).mkdir()
            self.variables[f"nnUNet_{name}"] = str(folder / name)

    def run(self, step: str, *command: str, fails: bool = False, augmentation: str = "1") -> str:
        """Run a step in a process of its own; its output is returned."""
        start = time.monotonic()
        variables = {**self.variables, "nnUNet_n_proc_DA": augmentation}
        result = subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True, check=False)
        output = result.stdout + result.stderr
        if (result.returncode != 0) is not fails:
            raise RuntimeError(f"{step}: {' '.join(command)} ended with {result.returncode}:\n{output[-3000:]}")
        self.steps.append({"step": step, "seconds": round(time.monotonic() - start, 1)})
        print(self.steps[-1], flush=True)
        return output

    def command(self, step: str, line: str, **options: Any) -> str:
        """Run a command of an installed package, as its console script does."""
        return self.run(step, str(self.python), "-c", COMMAND, *line.split(), **options)

    def pip(self, step: str, *arguments: str) -> None:
        self.run(step, sys.executable, "-m", "pip", "--quiet", "--python", str(self.python), *arguments)

    def files(self) -> set[str]:
        """The files of the environment, but for what Python compiles."""
        paths = (self.folder / "environment").rglob("*")
        return {str(path.relative_to(self.folder)) for path in paths if "__pycache__" not in path.parts}


def host(folder: Path) -> dict[str, Any]:
    """Run all steps; returns the record."""
    environment = Environment(folder)
    command = environment.command
    environment.run(
        "build our wheel", sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(folder), str(ROOT)
    )
    wheel = next(folder.glob("*.whl"))
    environment.pip("install our wheel", "install", "--no-deps", str(wheel))
    write_dataset(folder / "raw", DATASET, cases=5)
    before = environment.files()
    command("new network", "nnunet-transformers new network my_net")
    environment.pip("pip install", "install", "--no-deps", "--no-build-isolation", str(folder / "my_net"))
    environment.run("its tests", str(environment.python), "-m", "pytest", "-q", "my_net/tests", "-k", "2 or found")
    doctor = command("doctor", "nnunet-transformers doctor")
    assert "plugins: my-net 0.1.0 (my_net, nnUNetPlannerMyNet, nnUNetTrainerMyNet)" in doctor, doctor
    models = command("models", "nnunet-transformers models --name my_net --patch-size 32,32,32")
    assert "my_net" in models
    command(
        "nnUNetv2_plan_and_preprocess -pl",
        "nnUNetv2_plan_and_preprocess -d 900 -pl nnUNetPlannerMyNet -c 3d_fullres -np 1 -npfp 1 -gpu_memory_target 2",
    )
    path = folder / "preprocessed" / DATASET / f"{PLANS}.json"
    plans = json.loads(path.read_text())
    planned = plans["configurations"]["3d_fullres"]
    planned["training"] = {"epochs": 1, "iterations_per_epoch": 2}
    path.write_text(json.dumps(plans))
    model = f"-tr {TRAINER} -p {PLANS}"
    command("nnUNetv2_train -tr", f"nnUNetv2_train 900 3d_fullres 0 {model} -device cpu --npz", augmentation="0")
    command(
        "nnUNetv2_predict",
        f"nnUNetv2_predict -d 900 -c 3d_fullres -f 0 {model} -i {folder}/raw/{DATASET}/imagesTr -o {folder}/predicted "
        "-device cpu -npp 1 -nps 1 --disable_tta",
    )
    predicted = len(list((folder / "predicted").glob("*.nii.gz")))
    command("pretrain prepare", f"nnunet-transformers pretrain prepare raw/{DATASET} PREPARED -d 900 -p {PLANS} -np 1")
    command(
        "pretrain fit",
        f"nnunet-transformers pretrain fit --config mae_cnn -d 900 -p {PLANS} --data.init_args.folder PREPARED "
        "--trainer.max_epochs 1 --trainer.accelerator cpu --data.init_args.batch_size 2 --data.init_args.num_workers 0 "
        "--data.init_args.samples_per_epoch 2 --trainer.accumulate_grad_batches 1 --trainer.default_root_dir MAE",
    )
    command("attach", f"nnunet-transformers attach MAE/encoder.pth -d 900 -p {PLANS} -o {PLANS}_mae -c 3d_fullres")
    command(
        "predict",
        f"nnunet-transformers predict -d 900 -c 3d_fullres -f 0 {model} -i {folder}/raw/{DATASET}/imagesTr "
        f"-o {folder}/ours -device cpu -npp 0 -nps 0 --disable_tta",
    )
    command("find-best", "nnunet-transformers find-best -d 900 --folds 0 -np 1")
    environment.pip("pip uninstall", "uninstall", "--yes", "my-net")
    left = sorted(environment.files() ^ before)
    missing = command(
        "nnUNetv2_train afterwards",
        f"nnUNetv2_train 900 3d_fullres 1 {model} -device cpu",
        fails=True,
        augmentation="0",
    )
    assert f"Could not find requested nnunet trainer {TRAINER}" in missing, missing[-2000:]
    doctor = command("doctor afterwards", "nnunet-transformers doctor")
    assert "my-net" not in doctor
    return {
        "patch_size": planned["patch_size"],
        "batch_size": planned["batch_size"],
        "predicted_cases": predicted,
        "predicted_by_ours": len(list((folder / "ours").glob("*.nii.gz"))),
        "encoder_written": (folder / "MAE/encoder.pth").is_file(),
        "files_left_after_uninstalling": left,
        "steps": environment.steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=RESULT, help="JSON file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = host(Path(folder))
    write_json(record, options.output)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
