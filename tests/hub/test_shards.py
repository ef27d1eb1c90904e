"""Names of shards, of their index, and of those that are missing."""

from __future__ import annotations

import pytest

from nnunet_transformers.hub.shards import ending_of_shards, index_of_shard, missing_beside

SHARDS = [f"a/model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


@pytest.mark.parametrize("name", SHARDS)
def test_names_of_shards(name):
    assert index_of_shard(name) == "a/model.safetensors.index.json"
    assert missing_beside(name, SHARDS) == []
    assert missing_beside(name, []) == [other for other in SHARDS if other != name]


def test_numbers_may_be_longer_than_five_digits():
    assert index_of_shard("pytorch_model-00001-of-000163.bin") == "pytorch_model.bin.index.json"
    assert missing_beside("m-00002-of-000002.bin", []) == ["m-00001-of-000002.bin"]


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "model-00001-of-00001.safetensors",
        "fold-1-of-5.safetensors",
        "model-00001-of-00002.pth",
        "model.safetensors.index.json",
    ],
)
def test_whole_files(name):
    assert index_of_shard(name) is None


def test_indices():
    assert ending_of_shards("a/model.safetensors.index.json") == ".safetensors"
    assert ending_of_shards("pytorch_model.bin.index.json") == ".bin"
    for name in ("index.json", "model.pth.index.json", "model.safetensors"):
        assert ending_of_shards(name) is None
