"""The final validation exports slab by slab, and nnU-Net is as before afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as module

from nnunet_transformers.export import export_prediction_from_logits
from nnunet_transformers.trainers.trainer import TransformerTrainer

from .conftest import CPU, PLANS, TRAINER


def test_final_validation(monkeypatch):
    theirs = module.export_prediction_from_logits
    trainer = object.__new__(TransformerTrainer)
    trainer.autocast_dtype, trainer.ema_decay = torch.float32, None
    checks = {"check_presence": print, "check_content": print}
    monkeypatch.setattr(TransformerTrainer, "_stored_data", lambda self: type("Data", (), checks))
    seen = []

    def validate(self, save_probabilities):
        seen.append(module.export_prediction_from_logits)
        raise RuntimeError("stopped")

    monkeypatch.setattr(module.nnUNetTrainer, "perform_actual_validation", validate)
    with pytest.raises(RuntimeError, match="stopped"):
        trainer.perform_actual_validation()
    assert seen == [export_prediction_from_logits]
    assert module.export_prediction_from_logits is theirs


def test_files_are_nnunets(prepared, tmp_path):
    """Labels and probabilities of a fold's validation equal those of nnU-Net's own."""
    trainer = get_trainer_from_args("900", "3d_fullres", 0, TRAINER, PLANS, device=CPU)
    trainer.initialize()
    trainer.inference_allowed_mirroring_axes = None
    validations = {"ours": TransformerTrainer, "theirs": module.nnUNetTrainer}
    for name, validated in validations.items():
        trainer.output_folder = str(tmp_path / name)
        validated.perform_actual_validation(trainer, True)
    ours, theirs = (tmp_path / name / "validation" for name in validations)
    (case,) = ours.glob("*.nii.gz")
    assert case.read_bytes() == (theirs / case.name).read_bytes()
    name = case.name.replace(".nii.gz", ".npz")
    one, other = (np.load(folder / name)["probabilities"] for folder in (ours, theirs))
    np.testing.assert_array_equal(one, other)
