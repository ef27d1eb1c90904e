"""The final validation's export in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nnunetv2.training.nnUNetTrainer import nnUNetTrainer

from ..export import export_prediction_from_logits


@contextmanager
def bounded_export() -> Iterator[None]:
    """Let nnU-Net's validation, which calls its export by name, resample and choose labels slab by slab."""
    original = nnUNetTrainer.export_prediction_from_logits
    nnUNetTrainer.export_prediction_from_logits = export_prediction_from_logits
    try:
        yield
    finally:
        nnUNetTrainer.export_prediction_from_logits = original
