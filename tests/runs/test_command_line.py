"""What the command line of recipes lets Lightning say."""

from __future__ import annotations

import logging

import pytest

from nnunet_transformers.runs.command_line import _concerns_the_run


@pytest.mark.parametrize(
    ("message", "is_said"),
    [
        ("GPU available: False, used: False", False),
        ("\U0001f4a1 Tip: For seamless cloud logging", False),
        ("loader: at most 0.25 GB of batches", True),
        ("`Trainer.fit` stopped: `max_epochs=2` reached.", True),
    ],
)
def test_advertisements(message, is_said):
    assert _concerns_the_run(logging.makeLogRecord({"msg": message})) is is_said
