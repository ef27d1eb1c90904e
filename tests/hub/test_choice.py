"""The weights among a repository's files."""

from __future__ import annotations

import pytest

from nnunet_transformers.hub import Address
from nnunet_transformers.hub.choice import choose

USUAL = [".gitattributes", "README.md", "config.json"]
PACKAGE = ["manifest.json", "models.json", "models/m/fold_0.safetensors", "models/m/plans.json", "README.md"]


def chosen(names, text="hf://o/n"):
    return choose([*USUAL, *names], Address.parse(text))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["encoder.pth"], "encoder.pth"),
        (["model.safetensors", "pytorch_model.bin", "training_args.bin"], "model.safetensors"),
        (["model.safetensors", "model.pth"], "model.safetensors"),
        (["encoder_3d.safetensors", "encoder_3d.pth"], "encoder_3d.pth"),
        (["a/model.safetensors", "last.ckpt"], "a/model.safetensors"),
        (["f/checkpoint_final.pth", "f/checkpoint_best.pth", "f/checkpoint_latest.pth"], "f/checkpoint_final.pth"),
        # the server's list is not trusted either
        (["encoder.pth", "../../x.pth", "/x.pth", "a\x1b.pth", "C:/x.pth"], "encoder.pth"),
    ],
)
def test_the_only_one(names, expected):
    found = chosen(names)
    assert (found.path, found.files, found.is_package) == (expected, (expected,), False)


def test_nnssl():
    names = ["checkpoint_final.pth", "adaptation_plan.json", "other/adaptation_plan.json"]
    assert chosen(names).files == ("checkpoint_final.pth", "adaptation_plan.json")
    assert chosen(names, "hf://o/n/checkpoint_final.pth").files == ("checkpoint_final.pth", "adaptation_plan.json")


SHARDS = ["a/model-00001-of-00002.safetensors", "a/model-00002-of-00002.safetensors"]


@pytest.mark.parametrize("path", ["", "/a", "/a/model.safetensors.index.json", *(f"/{name}" for name in SHARDS)])
def test_shards(path):
    """All of them are taken, whichever is named."""
    index = "a/model.safetensors.index.json"
    found = chosen([*SHARDS, index, "b/model-00001-of-00002.safetensors"], f"hf://o/n{path or '/a'}")
    assert (found.path, found.files, found.may_lack_files) == (index, (index, *SHARDS), False)
    # as in a cache into which one was downloaded
    for names in ([index], [index, SHARDS[1]]):
        assert chosen(names).may_lack_files
    assert chosen([SHARDS[0]], f"hf://o/n/{SHARDS[0]}").may_lack_files
    single = ["m-00001-of-00001.safetensors", "m.safetensors.index.json"]
    assert set(chosen(single).files) == set(single)
    # of pickled ones, as of a whole .bin, the name is needed
    pickled = [name.replace("safetensors", "bin") for name in (*SHARDS, index)]
    assert chosen([*SHARDS, index, *pickled]).path == index
    assert set(chosen(pickled, f"hf://o/n/{pickled[0]}").files) == set(pickled)


def test_package():
    names = [f"p/{name}" for name in PACKAGE]
    for text in ("hf://o/n", "hf://o/n/p", "hf://o/n/p/manifest.json"):
        found = chosen(names, text)
        assert (found.path, set(found.files), found.is_package) == ("p", set(names), True)
    # uploaded by hand; all but what git keeps belongs to it, and is refused where it does not
    found = choose([".gitattributes", "README.md", *PACKAGE, "x.pth"], Address("o/n"))
    assert (found.path, set(found.files)) == ("", {*PACKAGE, "x.pth"})
    # one of its files can be named
    assert chosen(names, "hf://o/n/p/models/m/fold_0.safetensors").path == "p/models/m/fold_0.safetensors"


def test_folder():
    assert chosen(["a/x.pth", "b/y.pth", "ab/z.pth"], "hf://o/n/a").path == "a/x.pth"


def test_several():
    with pytest.raises(ValueError) as error:
        chosen(["encoder_2d.pth", "encoder_3d.pth", "p/manifest.json", "p/models.json"], "hf://o/n@v1")
    assert str(error.value) == (
        "hf://o/n@v1 holds the package p, encoder_2d.pth, encoder_3d.pth; name one of them, such as hf://o/n/p@v1"
    )
    with pytest.raises(ValueError, match=r"7\.pth and 12 more; name one"):
        chosen([f"{i}.pth" for i in range(20)])


def test_none():
    message = r"holds no package and no file ending in \.safetensors or \.pth"
    with pytest.raises(FileNotFoundError, match=message + "$"):
        chosen(["manifest.json", "script.py"])
    with pytest.raises(FileNotFoundError, match=message + r"; name a file, such as hf://o/n/a/mgca\.ckpt$"):
        chosen(["a/mgca.ckpt"])
    assert chosen(["a/mgca.ckpt"], "hf://o/n/a/mgca.ckpt").path == "a/mgca.ckpt"
    with pytest.raises(FileNotFoundError, match=r"o/n has no b\.pth at v2; it has a\.pth$"):
        chosen(["a.pth"], "hf://o/n/b.pth@v2")
    for name in ("modeling.py", "x.pkl"):
        with pytest.raises(ValueError, match="is no file of weights"):
            chosen([name], f"hf://o/n/{name}")
