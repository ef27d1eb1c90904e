"""Weights are found wherever training scripts put them, and their names lose whatever prefix these gave them."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_transformers.architectures import create_network
from nnunet_transformers.weights.layout import (
    MAX_LEVELS,
    STATE_DICT_KEYS,
    common_prefixes,
    find_state_dicts,
    others,
    place,
    strip_prefix,
)

with torch.device("meta"):
    REAL = create_network("qt_unet_tiny", 1, 2, (64, 64, 64)).state_dict()
PARTS = ("module", "_orig_mod", "model", "backbone", "encoder", "base_encoder", "img_encoder_q", "student", "0", "net")
PREFIXES = st.lists(st.sampled_from(PARTS), max_size=4).map(lambda parts: "".join(f"{part}." for part in parts))
KEYS = st.sampled_from(("state_dict", "model", "student", "ema", "net", "a.b"))
OTHERS = {"epoch": 3, "args": {"lr": 0.1}, "optimizer": {"state": {0: {"step": torch.zeros(3)}}, "param_groups": []}}
ONE, TWO = {"a": torch.ones(2)}, {"b": torch.ones(3)}


def wheres(content):
    return [where for where, _ in find_state_dicts(content)]


def test_order():
    content = {"ema": ONE, "student": ONE, "state_dict": {"teacher": ONE, "model": TWO}, "network_weights": TWO}
    assert wheres(content) == ["network_weights", "state_dict.model", "state_dict.teacher", "student", "ema"]
    assert find_state_dicts(content)[1][1] is not TWO
    assert find_state_dicts(content)[1][1].keys() == TWO.keys()


@pytest.mark.parametrize("key", STATE_DICT_KEYS)
def test_preferred_keys_come_before_others(key):
    content = {"aaa": ONE, **({key: TWO} if key else TWO)}
    assert wheres({**content, "b2": torch.ones(1)} if not key else content)[0] == key


def test_other_entries_are_left_out():
    content = {**ONE, **TWO, "epoch": 3}
    assert find_state_dicts(content) == [("", {**ONE, **TWO})]
    assert find_state_dicts({"loss": torch.ones(()), "epoch": 3, "net": ONE}) == [("net", ONE)]
    assert find_state_dicts({"loss": torch.ones(()), "net": ONE}) == [("net", ONE)]
    assert find_state_dicts({"state_dict": {**ONE, **TWO, "_extra_state": None}}) == [("state_dict", {**ONE, **TWO})]


def test_states_of_optimisers_are_no_weights():
    assert wheres({**OTHERS, "net": ONE}) == ["net"]
    assert find_state_dicts(OTHERS) == []
    assert find_state_dicts({}) == []
    assert find_state_dicts({"a": {}, "b": [ONE], 3: ONE}) == []


def test_levels():
    content = ONE
    for level in range(MAX_LEVELS + 1):
        assert wheres(content) == [".".join(["x"] * level)]
        content = {"x": content}
    assert wheres(content) == []


@settings(max_examples=40)
@given(keys=st.lists(KEYS, max_size=MAX_LEVELS), prefix=PREFIXES, above=PREFIXES, first=st.booleans())
def test_nested_and_prefixed(keys, prefix, above, first):
    """A real state dict is found and is as it was, whatever stands around it."""
    weights = {f"{prefix}{name}": value for name, value in REAL.items()}
    elsewhere = {f"{above}projector.{i}.weight": torch.ones(1) for i in range(3)}
    content = {**elsewhere, **weights} if first else {**weights, **elsewhere}
    for key in reversed(keys):
        content = {**OTHERS, key: content}
    (where, found), *_ = find_state_dicts(content)
    assert where == ".".join(keys)
    stripped, stated = strip_prefix(found, REAL.keys())
    assert stated == prefix
    assert {name: value for name, value in stripped.items() if name in REAL} == dict(REAL)
    unused = {f"{stated}{name}" if f"{stated}{name}" in elsewhere else name for name in stripped.keys() - REAL.keys()}
    assert unused == elsewhere.keys()
    assert len(stripped) == len(content if not keys else found)


@settings(max_examples=40)
@given(share=st.integers(1, len(REAL)), prefix=PREFIXES)
def test_a_part_is_enough(share, prefix):
    """A network of another depth has some of the names; fewer ones below a longer prefix do not outweigh them."""
    names = list(REAL)[:share]
    weights = {f"{prefix}{name}": REAL[name] for name in names}
    weights |= {f"{prefix}more.{name}": REAL[name] for name in names[1:]}
    stripped, stated = strip_prefix(weights, REAL.keys())
    assert stated == prefix
    assert stripped.keys() >= set(names)


@pytest.mark.parametrize(
    "names, wanted, prefix",
    [
        (["a", "b"], ["a", "b"], ""),
        (["module.a", "module.b", "a"], ["a", "b"], "module."),
        (["student.a", "teacher.a"], ["a"], "student."),
        (["teacher.a", "student.a"], ["a"], "teacher."),
        (["x.y.a", "z.a"], ["a"], "z."),
        (["a.a"], ["a", "a.a"], ""),
        (["y.small", "x.big"], ["big", "small"], "x."),
        (["x.c", "d"], ["a"], ""),
        ([".a", "..b"], ["a", "b"], "."),
        ([], ["a"], ""),
        (["a"], [], ""),
    ],
)
def test_choice_of_the_prefix(names, wanted, prefix):
    weights = {name: torch.ones(9 if "big" in name else 1) for name in names}
    assert strip_prefix(weights, wanted)[1] == prefix


def test_names_elsewhere():
    """They stay unused: what would be taken for a name below the prefix gets a dot."""
    weights = {name: torch.ones(1) for name in ("module.a", "module.b", "module.d", "head.c", "a", "c")}
    stripped, prefix = strip_prefix(weights, ["a", "b", "c", "d"])
    assert prefix == "module."
    assert list(stripped) == ["a", "b", "d", "head.c", ".a", ".c"]
    assert stripped["a"] is weights["module.a"]
    assert strip_prefix(weights, ["x"]) == (weights, "")


def test_common_prefixes():
    """Those that half of the names have, so that there are few; the shortest first."""
    names = ("model.encoder.a.x", "model.encoder.b.y", "model.encoder.c", "loss.weight")
    weights = dict.fromkeys(names, torch.ones(1))
    assert common_prefixes(weights) == ["", "model.", "model.encoder."]
    assert common_prefixes({f"{one}.net.a": torch.ones(1) for one in ("student", "teacher")})[1:3] == [
        "student.",
        "teacher.",
    ]


def test_places():
    assert place("file.pth", "") == "file.pth"
    assert place("file.pth", "state_dict", "module.model.") == "file.pth, state_dict, module.model"
    found = find_state_dicts({**ONE, **TWO, "c": torch.ones(1), "ema": ONE, "student": TWO})
    assert [where for where, _ in found] == ["student", "", "ema"]
    assert others(found, "student") == {"the file itself": 3, "ema": 1}


def test_speed():
    names = [f"encoder.stages.{i % 4}.blocks.{i}.attention.projection.weight" for i in range(2000)]
    weights = {f"module._orig_mod.{name}": torch.ones(1) for name in names}
    start = time.process_time()
    assert strip_prefix(weights, names)[1] == "module._orig_mod."
    assert time.process_time() - start < 0.5
