"""jsonargparse's pages in one line; whole commands are in tests/mistakes."""

from __future__ import annotations

import pytest

from nnunet_transformers.runs.argument_errors import in_one_line
from nnunet_transformers.runs.recipe import read_recipe

UNION = """Parser key "trainer.precision":
  Does not validate against any of the Union subtypes
  Subtypes: [typing.Literal[64, 32], <class 'NoneType'>]
  Errors:
    - Expected a <class 'int'>
    - Expected a typing.Literal['16-mixed', 'bf16-mixed']
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: half"""
NESTED = """Parser key "model":
  Does not validate against any of the Union subtypes
  Errors:
    - Problem with given class_path 'nnunet_transformers.pretraining.methods.mae.MAE':
        Parser key "lr":
          Expected a <class 'float'>. Got value: high
    - Expected a <class 'NoneType'>
  Given value: NestedArg(key='lr', val='high')"""
REFUSED = """Parser key "data":
  Errors:
    - Problem with given class_path 'nnunet_transformers.pretraining.data.MaskedData':
        Option 'foldr' is not accepted"""


@pytest.mark.parametrize(
    ("message", "given", "line"),
    [
        (UNION, [], "--trainer.precision takes an integer or '16-mixed', 'bf16-mixed', not 'half'"),
        (NESTED, ["--lr", "high"], "--lr takes a number, not 'high'"),
        (NESTED, ["--model.init_args.lr", "high"], "--model.init_args.lr takes a number, not 'high'"),
        (REFUSED, [], "the recipe mae has no option --data.init_args.foldr; did you mean --data.init_args.folder"),
        ("unrecognized arguments: --epoch 5", [], "the recipe mae has no option --epoch; did you mean --epochs?"),
        ("unrecognized arguments: --zzz", [], "the recipe mae has no option --zzz; `recipes NAME` prints"),
        ("unrecognized arguments: 5", [], "'5' belongs to no option; "),
        (
            "argument --model: expected one argument",
            ["--folder=a", "--network", "--lr", "1"],
            "--network needs a value",
        ),
        ("argument --model: expected one argument", ["--lr", "1", "--network"], "--network needs a value"),
        ("something\n  new", [], "something new"),
        ("x" * 400, [], "x" * 300 + "..."),
    ],
)
def test_lines(message, given, line):
    recipe = read_recipe("mae", "nnunet_transformers.pretraining")
    assert in_one_line(message, recipe, given).startswith(line)
