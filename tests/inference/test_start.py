"""What a prediction of one small image imports and starts, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_transformers import discovery, trainers
from nnunet_transformers.plans.builder import builds_planned_network, find_trainer
from nnunet_transformers.sharing import Options, make_package
from tests.sharing.conftest import some_images

# of training, plots, statistics and exports
NEEDLESS = (
    "nnunetv2.training.nnUNetTrainer.nnUNetTrainer",
    "nnunet_transformers.trainers",
    "batchgeneratorsv2",
    "seaborn",
    "matplotlib",
    "sklearn",
    "scipy.stats",
    "lightning",
    "onnx",
)
# runs commands and prints the processes that they start, and which modules are imported at the end
RUN = """
import json, sys
from multiprocessing.process import BaseProcess
started, start = [], BaseProcess.start
BaseProcess.start = lambda process: (started.append(process.name), start(process))
from nnunet_transformers.cli import main
for sys.argv[1:] in json.loads(sys.argv[1]):
    try:
        main()
    except SystemExit as stop:
        assert not stop.code
print(json.dumps([started, [name for name in NEEDLESS if name in sys.modules]]))
"""


def test_one_image_starts_no_process_and_imports_no_training(planned, models, tmp_path):
    images = some_images(planned, tmp_path / "images")
    make_package([models["2d"]], tmp_path / "package", Options())
    folder = ["predict", "-m", models["2d"], "-f", 0, "-i", images, "-o", tmp_path / "folder", "-device", "cpu"]
    package = ["package", "predict", tmp_path / "package", images, tmp_path / "from_package", "--device", "cpu"]
    commands = json.dumps([[str(word) for word in command] for command in (folder, package)])
    code = f"NEEDLESS = {NEEDLESS}{RUN}"
    said = subprocess.check_output([sys.executable, "-W", "ignore", "-c", code, commands], text=True)
    assert {path.parent.name for path in tmp_path.glob("*/ball_0.nii.gz")} == {"folder", "from_package"}
    assert json.loads(said.splitlines()[-1]) == [[], []]


def test_trainers_that_leave_the_network_to_the_plan():
    """They are known by their names, so that none is imported to predict; names are of classes that do so."""
    stock = nnUNetTrainer.build_network_architecture
    names = [*trainers.__all__, "nnUNetTrainer", "nnUNetTrainer_1epoch", "nnUNetTrainer_8000epochs"]
    leave = {name for name in names if find_trainer(name).build_network_architecture is stock}
    assert (
        leave
        == set(names) & set(discovery.PLANNED_NETWORKS)
        == {name for name in names if builds_planned_network(name)}
    )
    assert builds_planned_network("nnUNetTrainerNoMirroring")
    assert not builds_planned_network("nnUNetTrainerBN")
