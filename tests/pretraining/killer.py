"""A callback that kills its run."""

from __future__ import annotations

import os
import signal
from typing import Any

from lightning import Callback


class KillAt(Callback):
    """Kill the process within an optimiser step, as a power cut would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
