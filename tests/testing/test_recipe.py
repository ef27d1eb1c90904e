"""A recipe is checked as a whole: one step on random volumes, its files, and its method's contract."""

from __future__ import annotations

from pathlib import Path

from nnunet_transformers.testing import check_pretraining_method, recipe
from nnunet_transformers.testing.method import check_method


def test_example_of_the_documentation(examples, monkeypatch):
    checked = []

    def check(method_class, batches, *arguments):
        checked.extend([method_class.__name__, len(batches)])
        check_method(method_class, batches, *arguments)

    monkeypatch.setattr(recipe, "check_method", check)
    file = Path(__file__).parents[2] / "docs/examples/vicreg.yaml"
    check_pretraining_method(str(file), [*recipe.SMALL, "--model.init_args.hidden_dim=32"])
    assert checked == ["VICReg", 1]
