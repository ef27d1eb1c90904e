"""What nnU-Net writes beside segmentations, on a disk that fills up."""

from __future__ import annotations

import json

import pytest
from nnunetv2.inference import predict_from_raw_data

from nnunet_transformers import _atomic
from nnunet_transformers.inference.whole_files import whole_json_files


def test_json_files_stay_whole_on_a_full_disk(tmp_path, monkeypatch):
    path = tmp_path / "plans.json"
    original = predict_from_raw_data.save_json
    with whole_json_files():
        predict_from_raw_data.save_json({"b": 1, "a": [2]}, str(path), sort_keys=False)
        assert json.loads(path.read_text()) == {"b": 1, "a": [2]}

        def full(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(_atomic.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            predict_from_raw_data.save_json({"c": 3}, str(path))
    assert json.loads(path.read_text()) == {"b": 1, "a": [2]}
    assert [file.name for file in tmp_path.iterdir()] == ["plans.json"]
    assert predict_from_raw_data.save_json is original
