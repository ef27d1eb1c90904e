"""docs/papers.md is that of its data, and the data are those of recipes, presets and trainers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from nnunet_transformers.plans.presets import load_presets

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def papers():
    specification = importlib.util.spec_from_file_location("papers", ROOT / "docs" / "papers.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_page_is_that_of_the_data(papers):
    assert papers.PAGE.read_text() == papers.page(), "run `make papers`"


def test_rows_are_whole(papers):
    """An unquoted comma ends an entry of YAML's flow mappings."""
    for paper in papers.read():
        assert all(
            {"what", "paper", "release", "here"} <= row.keys() <= {"what", "paper", "release", "here", "why"}
            for row in paper["values"]
        )
        assert all(row.keys() == {"what", "rerun", "needs", "lacks"} for row in paper["tables"])


def test_what_is_neither_paper_nor_release_has_a_reason(papers):
    for paper in papers.read():
        for row in paper["values"]:
            here = papers.text(papers.resolve(row["here"])).lower()
            # "48; 96 for all of CheXpert" is 48 first of all
            stated = [papers.text(row[source]).lower().split(";")[0] for source in ("paper", "release")]
            where = f"{paper['name']}: {row['what']}"
            assert here in stated or row.get("why"), f"{where} is {here}, not {' or '.join(stated)}, and no reason"


def test_every_preset_is_in_a_table(papers):
    rows = [row for paper in papers.read() for row in paper["tables"]]
    of_presets = [row for row in rows if row["rerun"].startswith(papers.PRESETS)]
    for row in of_presets:
        for pattern in row["rerun"].removeprefix(papers.PRESETS).split(", "):
            assert papers.presets_of({"rerun": papers.PRESETS + pattern}), f"no preset is like {pattern}"
    assert {name for row in of_presets for name in papers.presets_of(row)} == set(load_presets())


def test_values_are_those_of_their_sources(papers):
    """Of each kind of source one value that stands there."""
    assert papers.resolve("preset synapse-320: training.learning_rate") == 1e-4
    assert papers.resolve("preset siim-vit: patch_size") == [224, 224]
    assert papers.resolve("pretraining mgca: model.init_args.lr") == 2e-5
    assert papers.resolve("pretraining mgca: model.init_args.cta_heads") == 0  # by default
    assert papers.resolve("classification mgca_linear: patience") == 10
    assert papers.resolve("trainer nnUNetTrainerUNet2022Paper: layer_decay") == 1
    with pytest.raises(KeyError):
        papers.resolve("pretraining mgca: model.init_args.no_such_argument")
