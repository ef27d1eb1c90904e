"""HD95 and NSD of the final validation, where a plan asks for them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_transformers.evaluation import Evaluation
from nnunet_transformers.trainers import surface_metrics
from nnunet_transformers.trainers.trainer import TransformerTrainer

from .conftest import CPU, PLANS, TRAINER


@pytest.mark.parametrize("wanted", [False, True])
def test_final_validation(prepared, monkeypatch, tmp_path, wanted):
    labels = prepared / "preprocessed" / "Dataset900_Balls" / "gt_segmentations"

    def validate(self, save_probabilities=False):
        """Predict the labels of two cases."""
        folder = Path(self.output_folder, "validation")
        folder.mkdir(parents=True)
        for case in ("ball_0", "ball_1"):
            shutil.copy(labels / f"{case}.nii.gz", folder)

    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", validate)
    monkeypatch.setattr(surface_metrics, "default_num_processes", 1)  # in this process
    monkeypatch.setattr(TransformerTrainer, "surface_metrics", wanted)
    trainer = get_trainer_from_args("900", "3d_fullres", 0, TRAINER, PLANS, device=CPU)
    trainer.output_folder = str(tmp_path / "fold_0")
    said = []
    trainer.print_to_log_file = lambda *parts, **_: said.append(" ".join(map(str, parts)))
    trainer.perform_actual_validation()
    path = tmp_path / "fold_0/validation/evaluation.json"
    assert path.is_file() == wanted
    if wanted:
        evaluation = Evaluation.load(path)
        assert evaluation.cases == ["ball_0", "ball_1"] and (evaluation.of("HD95") == 0).all()
        assert said[-1] == "validation, mean: HD95 0.000, NSD 2 mm 1.000"
    else:
        assert not said
