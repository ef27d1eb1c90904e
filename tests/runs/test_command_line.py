"""What the command line of recipes lets Lightning say."""

from __future__ import annotations

import logging

import pytest
from lightning.fabric.utilities import seed
from lightning.pytorch.trainer.connectors import checkpoint_connector

from nnunet_transformers.runs.command_line import LOGGERS, _concerns_the_run


@pytest.mark.parametrize(
    ("message", "is_said"),
    [
        ("GPU available: False, used: False", False),
        ("\U0001f4a1 Tip: For seamless cloud logging", False),
        ("Seed set to 0", False),
        ("`weights_only` was not set, defaulting to `False`.", False),
        ("`Trainer(limit_val_batches=1.0)` was configured so 100% of the batches will be used..", False),
        ("loader: at most 0.25 GB of batches", True),
        ("`Trainer.fit` stopped: `max_epochs=2` reached.", True),
    ],
)
def test_advertisements(message, is_said):
    assert _concerns_the_run(logging.makeLogRecord({"msg": message})) is is_said


def test_lightning_says_it_by_these_loggers():
    assert {module.log.name for module in (seed, checkpoint_connector)} <= {module.__name__ for module in LOGGERS}
