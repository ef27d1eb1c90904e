"""The mutation test's results, and the explanations of survivors."""

from __future__ import annotations

import json

import mutation
import pytest
import yaml

RESULTS = mutation.ROOT / "benchmarks/results/mutation.jsonl"


def test_what_is_explained_survives_in_code_that_is_there():
    explained = mutation.explanations(mutation.EXPLAINED, mutation.current_results(RESULTS, mutation.ROOT))
    assert all(explained.values())


@pytest.fixture
def root(tmp_path):
    (tmp_path / "code.py").write_text("    a = 1\n    b = 2\n")
    common = {"folder": "f", "file": "code.py", "line": 1, "operator": "o", "seconds": 1.0, "commit": "c"}
    entries = [
        {**common, "before": "    a = 1", "after": "    a = 2", "outcome": "survived"},
        {**common, "before": "    a = 1", "after": "    a = 0", "outcome": "survived"},
        {**common, "before": "    gone = 1", "after": "    gone = 2", "outcome": "survived"},
        {**common, "before": "    b = 2", "after": "    b = 3", "outcome": "survived"},
        {**common, "before": "    b = 2", "after": "    b = 3", "outcome": "killed"},
    ]
    (tmp_path / "results.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    return tmp_path


def explain(root, **entry):
    path = root / "explained.yaml"
    path.write_text(yaml.safe_dump([{"file": "code.py", "operator": "o", "why": "The same.", **entry}]))
    return path


def test_page(root, monkeypatch):
    """The last result of a change counts, code that has gone does not, and an explanation stands by its survivor."""
    monkeypatch.setattr(mutation, "ROOT", root)
    monkeypatch.setattr(mutation, "EXPLAINED", explain(root, before="a = 1", after="a = 0"))
    mutation.report(root / "results.jsonl", root / "page.md")
    page = (root / "page.md").read_text()
    assert "| f | 3 | 1 | 0 | 2 | 1 | 33% | 50% | 1.0 |" in page
    assert "+     a = 0\n```\n\nThe same.\n" in page
    assert "+     a = 2\n```\n\nNot explained.\n" in page
    assert "gone = 1" not in page


@pytest.mark.parametrize("before,after", [("b = 2", "b = 3"), ("gone = 1", "gone = 2"), ("a = 1", "a = 7")])
def test_explanation_of_what_is_no_survivor(root, before, after):
    entries = mutation.current_results(root / "results.jsonl", root)
    with pytest.raises(ValueError, match=rf"explains code.py \| o \| {before} \| {after}, which is no survivor"):
        mutation.explanations(explain(root, before=before, after=after), entries)
