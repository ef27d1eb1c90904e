"""Every reader refuses damaged files and files of other kinds in one line; `benchmarks/mutate_files.py` has more."""

from __future__ import annotations

import gzip
import pickle
import shutil
import zipfile
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
import torch
from forged_pickles import HARMFUL, push_name, watched

from benchmarks.mutate_files import KINDS, STORED, Kind, main, make_package, outcome, run
from nnunet_transformers.classification.checkpoint import ClassifierCheckpoint
from nnunet_transformers.detection.checkpoint import DetectorCheckpoint
from nnunet_transformers.evaluation.iou_thresholds import _load_probabilities
from nnunet_transformers.evaluation.segmentations import load_dataset_json
from nnunet_transformers.pretraining.alignment import AlignmentCheckpoint
from nnunet_transformers.pretraining.data import PreparedImages
from nnunet_transformers.pretraining.matching.embedding import EmbeddingMatcher
from nnunet_transformers.pretraining.matching.precomputed import PrecomputedMatcher
from nnunet_transformers.sharing.trained import extract_models
from nnunet_transformers.sharing.weights_file import load_weights
from nnunet_transformers.weights import load_checkpoint, load_encoder, load_state_dict

READERS = {
    **{name: kind.read for name, kind in KINDS.items() if not name.startswith("package")},
    "checkpoint": load_checkpoint,
    "state dict": load_state_dict,
    "load_encoder": load_encoder,
    "classifier": ClassifierCheckpoint.load,
    "detector": DetectorCheckpoint.load,
    "alignment": AlignmentCheckpoint.load,
    "matcher": lambda path: EmbeddingMatcher(str(path)),
    "landmarks": lambda path: PrecomputedMatcher(str(path)),
    "package weights": load_weights,
    "dataset.json": lambda path: load_dataset_json(path),
    "probabilities": lambda path: _load_probabilities(path, 0, 1),
    "zip": lambda path: extract_models(path, path.parent),
}
# readers that find their file by its name
NAMES = {"index": "index.json", "dataset.json": "dataset.json", "plan": "plans.json"}


def contents(folder):
    """Content of files of every kind."""
    made = {}
    for name, kind in KINDS.items():
        (folder / name).mkdir()
        made[name] = kind.make(folder / name).read_bytes()
    np.savez(folder / "a.npz", probabilities=np.ones(3))
    np.savez(folder / "objects.npz", probabilities=np.array([{}], dtype=object))
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("plans.json", "{}")
    torch.save([1], folder / "list.pth")
    torch.save({"a": torch.ones(2)}, folder / "old.pth", _use_new_zipfile_serialization=False)
    made |= {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    return {
        **made,
        "blosc": (STORED / "prepared" / "ball_0.b2nd").read_bytes(),
        "empty": b"",
        "zeros": bytes(1000),
        "pickle": b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00cos\nsystem\n(S'true'\ntR.",
        "page": b"<!DOCTYPE html><html><body>404</body></html>",
        "gzip": gzip.compress(b"{}"),
        "deep": b"[" * 100_000,
        "deep mapping": b'{"a":' * 100_000,
        "number": b"1" * 5000,
        "UTF-16": "{}".encode("utf-16"),
        "list": b"[1, 2]",
        "text": b'"a"',
        "null": b"null",
        "object": b"{}",
        "nested": b'{"configurations": {"2d": 1}, "cases": 1, "labels": 2, "base": {"a": 1}, "model": []}',
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return contents(tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize("reader", READERS)
def test_files_of_every_other_kind(reader, files, tmp_path):
    folder = tmp_path / "Dataset004_Hippocampus"
    folder.mkdir()
    for ending in ("pth", "safetensors") if reader in ("checkpoint", "state dict") else ("pth",):
        path = folder / NAMES.get(reader, f"file.{ending}")
        for name, content in files.items():
            path.write_bytes(content)
            try:
                READERS[reader](path)
            except (ValueError, OSError) as error:
                assert "\n" not in str(error), name
                assert path.name in str(error), name
                assert len(str(error)) < 1000, name


@pytest.mark.parametrize("name", KINDS)
def test_damage(name):
    counts, errors = run(name, 40)
    assert not errors
    assert not counts["executed"]
    assert counts["refused"] > 10
    if KINDS[name].has_checksum:
        assert not counts["changed"]


def test_outcomes(tmp_path):
    """The benchmark sees what it counts."""
    path = tmp_path / "a.pth"

    def fails(error, _):
        raise error

    for error, expected in (
        (ValueError(f"{path} is no file"), "refused"),
        (ValueError(f"{path} is\nno file"), "traceback"),
        (ValueError("no file"), "traceback"),
        (IndexError(f"{path} is no file"), "traceback"),
    ):
        kind = Kind(True, shutil.copy, partial(fails, error))
        assert outcome(kind, path, None)[0] == expected
    for found, expected in (({"a": 1}, "identical"), ({"a": True}, "changed"), ({"a": 1.0}, "changed")):
        assert outcome(Kind(True, shutil.copy, lambda _, value=found: value), path, {"a": 1})[0] == expected
    mark = tmp_path / "executed"
    for read in (lambda _: mark.touch(), lambda path: mark.touch() or fails(ValueError(f"{path} is no file"), None)):
        assert outcome(Kind(True, shutil.copy, read), path, None, mark)[0] == "executed"
        mark.unlink()
    tensor = torch.tensor([0.0])
    kind = Kind(True, shutil.copy, lambda _: [tensor.clone()])
    assert outcome(kind, path, [tensor])[0] == "identical"
    assert outcome(kind, path, [-tensor])[0] == "changed"


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.exec", "builtins.eval", "builtins.__import__", "stranger.Thing"]
)
def test_forged_pickles_would_be_seen(name, tmp_path):
    """Unpickled, what forged files name does leave the mark."""
    with watched(tmp_path) as mark, suppress(AttributeError):
        text = HARMFUL[name].format(str(mark)).encode()
        pickle.loads(push_name(name) + b"X" + len(text).to_bytes(4, "little") + text + b"\x85R.")
    assert mark.exists()


def test_report(tmp_path):
    main(["--mutations", "3", "--kinds", "index", "--output", str(tmp_path / "results.json")])
    assert "| index | no | " in (tmp_path / "results.md").read_text()


@pytest.mark.parametrize("content", [b"", b"not blosc", None], ids=["empty", "text", "half"])
def test_prepared_image(content, tmp_path):
    for path in (STORED / "prepared").iterdir():
        shutil.copy(path, tmp_path)
    path = tmp_path / "ball_0.b2nd"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    images = PreparedImages(tmp_path)
    with pytest.raises(ValueError, match=r"ball_0\.b2nd is truncated or not a prepared image: .*; prepare"):
        images.read("ball_0", (0, 0, 0), images.shapes["ball_0"][1:])


def test_prepared_image_of_another_size(tmp_path):
    for path in (STORED / "prepared").iterdir():
        shutil.copy(path, tmp_path)
    text = (tmp_path / "index.json").read_text()
    images = PreparedImages(tmp_path)
    size = images.shapes["ball_0"][1]
    assert str(size) in text
    images.shapes["ball_0"] = (1, size + 1, *images.shapes["ball_0"][2:])
    with pytest.raises(ValueError, match=r"ball_0\.b2nd is .*: it has .* voxels, the index"):
        images.read("ball_0", (0, 0, 0), (4, 4, 4))


def test_package_of_the_benchmark(tmp_path):
    assert make_package("fold_0.safetensors", tmp_path).is_file()
