"""The final validation exports slab by slab, and nnU-Net is as before afterwards."""

from __future__ import annotations

import pytest
import torch
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as module

from nnunet_transformers.export import export_prediction_from_logits
from nnunet_transformers.trainers.trainer import TransformerTrainer


def test_final_validation(monkeypatch):
    theirs = module.export_prediction_from_logits
    trainer = object.__new__(TransformerTrainer)
    trainer.autocast_dtype, trainer.ema_decay = torch.float32, None
    monkeypatch.setattr(TransformerTrainer, "_stored_data", lambda self: type("Data", (), {"check_content": print}))
    seen = []

    def validate(self, save_probabilities):
        seen.append(module.export_prediction_from_logits)
        raise RuntimeError("stopped")

    monkeypatch.setattr(module.nnUNetTrainer, "perform_actual_validation", validate)
    with pytest.raises(RuntimeError, match="stopped"):
        trainer.perform_actual_validation()
    assert seen == [export_prediction_from_logits]
    assert module.export_prediction_from_logits is theirs
