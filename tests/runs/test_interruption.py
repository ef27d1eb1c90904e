"""Ctrl-C in a run, which Lightning turns into an exit."""

from __future__ import annotations

import sys

import pytest

from nnunet_transformers.runs.command_line import RecipeCLI, run_recipe
from nnunet_transformers.runs.recipe import read_recipe


class Stopped(RecipeCLI):
    """Ends as ``Trainer.fit`` does after Ctrl-C."""

    kind = "pretraining"

    def __init__(self, *_: object, **__: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    def check(self) -> None:
        pass


def test_ctrl_c_says_how_to_go_on(tmp_path):
    recipe = read_recipe("mae", "nnunet_transformers.pretraining")
    with pytest.raises(KeyboardInterrupt) as stop:
        run_recipe(recipe, Stopped, ["--output", str(tmp_path)], {})
    assert str(stop.value) == ""
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(KeyboardInterrupt, match=r"holds the state of the run: .* --ckpt_path last"):
        run_recipe(recipe, Stopped, ["--output", str(tmp_path)], {})
