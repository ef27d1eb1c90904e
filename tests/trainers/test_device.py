"""A GPU that is not there."""

from __future__ import annotations

import pytest
import torch

from nnunet_transformers.trainers.trainer import TransformerTrainer


def test_remedy_comes_before_the_training(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    trainer = object.__new__(TransformerTrainer)
    trainer.device = torch.device("cuda")
    # nnU-Net initialises before it continues, validates or loads weights
    for start in (trainer.run_training, trainer.initialize):
        with pytest.raises(RuntimeError, match=r"no CUDA device\. Train on the processor with `-device cpu`"):
            start()
