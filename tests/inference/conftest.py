"""A planned dataset with freshly initialised models: 3D with two folds, 2D, both stages of a cascade."""

from __future__ import annotations

import pytest
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments

from tests.conftest import light_nnunet, write_dataset
from tests.sharing.conftest import add_cascade, environment, initialise
from tests.trainers.conftest import PLANNER


@pytest.fixture(scope="session")
def planned(tmp_path_factory):
    """Create nnU-Net's folders, with a plan for a dataset whose images are larger than the patch."""
    folders = tmp_path_factory.mktemp("planned")
    with light_nnunet(), pytest.MonkeyPatch.context() as monkeypatch:
        environment(folders, monkeypatch)
        write_dataset(folders / "raw", size=(20, 24, 20), cases=2)
        extract_fingerprints([900], num_processes=1)
        plan_experiments([900], PLANNER, gpu_memory_target_in_gb=2)
        add_cascade(folders)
    return folders


@pytest.fixture(scope="session")
def models(planned):
    """Create the models and return their folders by configuration; 3d_fullres has two folds."""
    with light_nnunet(), pytest.MonkeyPatch.context() as monkeypatch:
        environment(planned, monkeypatch)
        initialise(planned, 1)
        return {name: initialise(planned, 0, name) for name in ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")}
