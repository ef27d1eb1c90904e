"""Checkpoints of an image encoder, the text encoder that it was aligned with, and their heads (MGCA)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from lightning import LightningModule

from ..runs.callbacks import hyperparameters
from ..weights.sealed import SealedCheckpoint
from .encoder_checkpoint import all_weights

Method = TypeVar("Method", bound=LightningModule)


@dataclass(frozen=True)
class AlignmentCheckpoint(SealedCheckpoint):
    """All weights of a method that aligned images with reports.

    Attributes:
        settings: arguments of the method, plain types.
        max_length: tokens of a report.
    """

    kind: ClassVar[str] = "alignment"
    format: ClassVar[int] = 2
    earlier: ClassVar[tuple[int, ...]] = (1,)
    remedy: ClassVar[str] = "`nnunet-transformers pretrain fit --config mgca` writes alignment.pth beside the encoder"
    settings: dict[str, Any]
    max_length: int

    @classmethod
    def from_method(cls, method: LightningModule, max_length: int) -> AlignmentCheckpoint:
        """Build the checkpoint of a method in training."""
        return cls(all_weights(method), hyperparameters(method), max_length)

    def build_method(self, method_class: type[Method], text_encoder: str | None = None) -> Method:
        """Build the trained method, in evaluation mode.

        Args:
            method_class: class of the method, ``MGCA``.
            text_encoder: local folder or hub name of the text encoder, if it has moved since training.

        Raises:
            OSError: if there is no such text encoder.
            ValueError: if the settings are not those of the class.
            RuntimeError: if the weights belong to another class.
        """
        changes = {"pretrained": False} | ({"text_encoder": text_encoder} if text_encoder else {})
        try:
            method = method_class(**{**self.settings, **changes})
        except TypeError as error:
            raise ValueError(f"the alignment's settings are not those of {method_class.__name__}: {error}") from error
        method.load_state_dict(self.weights)
        return method.eval()
