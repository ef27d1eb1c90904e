"""The checkpoint of an image encoder, the text encoder that it was aligned with, and their heads (MGCA)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..weights.sealed import SealedCheckpoint


@dataclass(frozen=True)
class AlignmentCheckpoint(SealedCheckpoint):
    """All weights that MGCA trained; ``MGCA.from_checkpoint`` rebuilds the method.

    Attributes:
        settings: arguments of ``MGCA``, plain types.
        max_length: tokens of a report.
    """

    kind: ClassVar[str] = "alignment"
    format: ClassVar[int] = 1
    remedy: ClassVar[str] = "`nnunet-transformers pretrain fit --config mgca` writes alignment.pth beside the encoder"
    settings: dict[str, Any]
    max_length: int
