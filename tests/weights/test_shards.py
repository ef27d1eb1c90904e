"""Weights in several files are read whole by the folder, the index or one of them, or not at all."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from nnunet_transformers.architectures import create_network
from nnunet_transformers.weights import InitialWeights, find_weights, load, load_checkpoint, load_state_dict
from nnunet_transformers.weights.timm_encoder import create_timm
from tests.conftest import HOSTILE
from tests.weights.test_restricted import write_pickle

NAME = {".safetensors": "model", ".bin": "pytorch_model"}
INDEX = "model.safetensors.index.json"
WEIGHTS = {name: torch.full((2,), float(i)) for i, name in enumerate("abcd")}


def shard(number, ending=".safetensors", count=2):
    return f"{NAME[ending]}-{number:05}-of-{count:05}{ending}"


def write(folder, weights=WEIGHTS, ending=".safetensors", count=2):
    """Write weights in shards, as the hub's libraries do; returns the index."""
    folder.mkdir(exist_ok=True)
    places = {name: shard(1 + i * count // len(weights), ending, count) for i, name in enumerate(weights)}
    for place in sorted(set(places.values())):
        part = {name: weights[name].contiguous() for name in weights if places[name] == place}
        (save_file if ending == ".safetensors" else torch.save)(part, folder / place)
    return write_index(folder, places, ending)


def write_index(folder, places, ending=".safetensors"):
    index = folder / f"{NAME[ending]}{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 32}, "weight_map": places}))
    return index


@pytest.mark.parametrize("ending", NAME)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_whole_by_folder_index_and_shard(ending, count, tmp_path):
    index = write(tmp_path / "model", ending=ending, count=count)
    for path in (index.parent, index, *sorted(index.parent.glob(f"*{ending}"))):
        content = load_checkpoint(path)
        assert content.keys() == WEIGHTS.keys()
        assert all(torch.equal(content[name], value) for name, value in WEIGHTS.items())
        assert find_weights(path).weights.weights.keys() == load(path).weights.keys() == WEIGHTS.keys()
        assert load_state_dict(path).keys() == WEIGHTS.keys()
    assert find_weights(index.parent).source == str(index)


def test_a_shard_by_any_name_that_the_index_lists(tmp_path):
    save_file({"a": WEIGHTS["a"]}, tmp_path / "first.safetensors")
    save_file({"b": WEIGHTS["b"]}, tmp_path / "second.safetensors")
    write_index(tmp_path, {"a": "first.safetensors", "b": "second.safetensors"})
    assert load_checkpoint(tmp_path / "second.safetensors").keys() == {"a", "b"}
    # others in the folder are files of their own
    save_file({"c": WEIGHTS["c"]}, tmp_path / "third.safetensors")
    assert load_checkpoint(tmp_path / "third.safetensors").keys() == {"c"}
    # also beside an index of others that is damaged
    for content in ("{", '{"weight_map": [1]}', '{"weight_map": {"a": "sub/first.safetensors", "b": []}}'):
        (tmp_path / "other.safetensors.index.json").write_text(content)
        assert load_checkpoint(tmp_path / "third.safetensors").keys() == {"c"}


def test_a_network_starts_from_shards(tmp_path):
    """Also one of timm's; and a plan notices another shard."""
    source = create_network("qt_unet_tiny", 1, 2, (32, 32))
    index = write(tmp_path / "qt_unet", source.state_dict())
    for path in (index.parent, index.parent / shard(1)):
        report = find_weights(path).weights.load_into(create_network("qt_unet_tiny", 1, 2, (32, 32)))
        assert not report.fresh and not report.unused
    specification = InitialWeights.from_source(index.parent).specification
    last = index.parent / shard(2)
    save_file({name: value + 1 for name, value in load_file(last).items()}, last)
    with pytest.raises(ValueError, match="is another file than when the plan was written"):
        InitialWeights(specification)

    resnet = create_timm("resnet18", 3, (64, 64))
    write(tmp_path / "resnet", resnet.state_dict())
    network = create_timm("resnet18", 3, (64, 64), pretrained=str(tmp_path / "resnet"))
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in resnet.state_dict().items())


def test_safetensors_come_before_bin(tmp_path):
    write(tmp_path / "model", ending=".bin")
    index = write(tmp_path / "model")
    assert find_weights(index.parent).source == str(index)
    write_index(index.parent, {"a": shard(1)}).rename(index.parent / f"other{INDEX.removeprefix('model')}")
    write(index.parent)
    with pytest.raises(ValueError, match=rf"several indices of shards; give one of {INDEX}, other\.safetensors\.index"):
        find_weights(index.parent)


def test_from_the_hub(hub, tmp_path):
    """Index and shards are downloaded together, and taken from the cache the second time."""
    index = write(tmp_path / "model")
    files = {path.name: path.read_bytes() for path in index.parent.iterdir()}
    commit = hub.add("owner/name", files)
    found = find_weights("hf://owner/name")
    assert found.weights.weights.keys() == WEIGHTS.keys()
    assert found.source == f"hf://owner/name/{INDEX}@{commit}"
    hub.requests.clear()
    assert find_weights(found.source).sha256 == found.sha256 and not hub.requests
    hub.add("owner/other", files)
    assert find_weights(f"hf://owner/other/{shard(2)}").sha256 == found.sha256
    # an index of a single one
    index = write(tmp_path / "single", count=1)
    hub.add("owner/single", {path.name: path.read_bytes() for path in index.parent.iterdir()})
    assert find_weights("hf://owner/single").weights.weights.keys() == WEIGHTS.keys()


class TestMissing:
    """A part of the weights is never taken for all."""

    @pytest.mark.parametrize("ending", NAME)
    def test_index(self, ending, tmp_path):
        index = write(tmp_path / "model", ending=ending)
        index.unlink()
        one = index.parent / shard(1, ending)
        for path in (index.parent, one):
            with pytest.raises(FileNotFoundError, match=rf"{one.name} is a part of the .*; {index.name} is missing"):
                find_weights(path)
        (index.parent / shard(2, ending)).unlink()
        with pytest.raises(FileNotFoundError, match=rf"{index.name}, {shard(2, ending)} are missing\. Put them"):
            load_checkpoint(one)

    def test_shards(self, tmp_path):
        index = write(tmp_path / "model")
        (index.parent / shard(2)).unlink()
        for path in (index.parent, index, index.parent / shard(1)):
            with pytest.raises(FileNotFoundError, match=rf"{INDEX} names {shard(2)}, which is missing; put it"):
                load_checkpoint(path)
        (index.parent / shard(1)).unlink()
        with pytest.raises(FileNotFoundError, match=rf"{shard(1)}, {shard(2)}, which are missing; put them beside"):
            load_checkpoint(index)

    def test_what_does_not_exist(self, tmp_path):
        for name in (INDEX, shard(1)):
            with pytest.raises(FileNotFoundError, match=f"no such checkpoint: .*{name}"):
                load_checkpoint(tmp_path / name)


class TestDamaged:
    """What is wrong with an index, or between it and its shards, is one line that names the file."""

    @pytest.fixture
    def index(self, tmp_path):
        return write(tmp_path / "model")

    @pytest.mark.parametrize(
        "name",
        [
            "../secret.safetensors",
            "/etc/secret.safetensors",
            "C:/secret.safetensors",
            "..\\secret.safetensors",
            "",
            "folder/model.safetensors",
            "model.pth",
            INDEX,
        ],
    )
    def test_names_of_shards(self, name, index):
        save_file(WEIGHTS, index.parent.parent / "secret.safetensors")
        write_index(index.parent, {"a": name, "b": shard(2)})
        with pytest.raises(ValueError, match=rf"{INDEX} names the shard .*, which is no \.safetensors file in its fol"):
            load_checkpoint(index)

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "[" * 10**5])
    def test_content_of_the_index(self, content, index):
        index.write_text(content)
        for path in (index, index.parent / shard(1)):
            with pytest.raises(ValueError, match=rf"{INDEX} is truncated or not an index of shards: .*; get it again"):
                load_checkpoint(path)

    def test_a_shard_that_the_index_leaves_out(self, index):
        write_index(index.parent, {"a": shard(1), "b": shard(1)})
        with pytest.raises(ValueError, match=rf"{INDEX} names {shard(1)}, but leaves out {shard(2)}; get it again"):
            load_checkpoint(index)
        write_index(index.parent, {"a": shard(1, count=1)})
        with pytest.raises(ValueError, match=rf"{shard(2)} is a part of the weights, but {INDEX} beside it does not"):
            load_checkpoint(index.parent / shard(2))

    def test_tensors_elsewhere(self, index):
        """In another shard than the index states, in both, or in none."""
        first, second = index.parent / shard(1), index.parent / shard(2)
        for place, message in ((shard(2), "lacks a, which"), (shard(1), "lacks c, which")):
            write_index(index.parent, {"a": place, "b": shard(1), "c": place, "d": shard(2)})
            with pytest.raises(ValueError, match=rf"{message} {INDEX} has in it; get index and shards again"):
                load_checkpoint(index)
        write(index.parent)
        save_file(load_file(second) | {"a": WEIGHTS["a"] + 1}, second)
        with pytest.raises(ValueError, match=rf"{second.name} holds a, which {INDEX} does not have in it"):
            load_checkpoint(index)
        write(index.parent)
        save_file(load_file(first) | {name: torch.ones(1) for name in "uvwxyz"}, first)
        with pytest.raises(ValueError, match=rf"{first.name} holds [u-z], [u-z], [u-z] and 3 more, which {INDEX}"):
            load_checkpoint(index)

    def test_truncated_shards(self, index):
        (index.parent / shard(2)).write_bytes((index.parent / shard(2)).read_bytes()[:-1])
        with pytest.raises(ValueError, match=rf"{shard(2)} is truncated or not a safetensors file"):
            load_checkpoint(index)

    def test_other_content_of_bin(self, tmp_path, hostile):
        """Nothing is unpickled, and only tensors by name are taken."""
        index = write(tmp_path / "pickled", ending=".bin")
        last = index.parent / shard(2, ".bin")
        torch.save({"c": WEIGHTS["c"], "d": 3}, last)
        with pytest.raises(ValueError, match=rf"{last.name} holds no tensor as d; get index and shards again"):
            load_checkpoint(index)
        write_pickle(last, f"\x80\x02}}X\x01\x00\x00\x00ac{HOSTILE}\nThing\n)Rs.".encode("latin1"))
        with pytest.raises(ValueError, match=rf"{last.name} holds {HOSTILE}\.Thing besides weights and plain types"):
            load_checkpoint(index)
        assert not hostile.exists()
