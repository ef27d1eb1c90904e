"""Folders, plans and splits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from nnunetv2.utilities.crossval_split import generate_crossval_split

from benchmarks.accuracy import prepare as prepare_module
from benchmarks.accuracy.command import main
from benchmarks.accuracy.prepare import grouped_split, prepare, write_split
from benchmarks.accuracy.runs import FOLDERS
from benchmarks.accuracy.tables import ROWS
from nnunet_transformers._reading import RefusedError
from nnunet_transformers.plans.planned import PlannedConfiguration

from ...conftest import set_nnunet_folders, write_dataset
from .helpers import BALLS, FOLDER


class TestPrepare:
    COMMANDS = (
        (["prepare"], ("nnUNet_raw", "nnUNet_preprocessed")),
        (["calibrate"], ("nnUNet_preprocessed", "nnUNet_results")),
        (["pretrain", "mit_mae"], FOLDERS),
        (["run", "--queue", str(FOLDER / "judge.jsonl")], ("nnUNet_preprocessed", "nnUNet_results")),
        (["reproduce", "--device", "cpu"], FOLDERS),
    )

    @pytest.mark.parametrize(("words", "needed"), COMMANDS, ids=lambda words: words[0])
    def test_missing_folders(self, tmp_path, monkeypatch, words, needed):
        for missing in needed:
            set_nnunet_folders(tmp_path, monkeypatch)
            monkeypatch.delenv(missing)
            with pytest.raises(SystemExit, match=f"^{missing} is not set; export nnUNet_raw, "):
                main(words)

    @pytest.mark.parametrize(
        "words",
        [
            ["prepare", "--datasets", "hippocampus", "em"],
            ["pretrain", "mit_mae", "mit_mae_acdc"],
            ["reproduce", "--device", "cpu"],
        ],
        ids=lambda words: words[0],
    )
    def test_missing_dataset(self, nnunet_folders, words):
        """It is said where it has to be, before anything is made of those that are there."""
        write_dataset(nnunet_folders / "raw", "Dataset004_Hippocampus", cases=1)
        with pytest.raises(SystemExit, match=r"^Dataset\w+ is not in nnUNet_raw: \S*raw\S*Dataset\w+ has to hold it"):
            main(words)
        assert not any((nnunet_folders / "preprocessed").iterdir())

    def test_dataset_that_is_nowhere(self, nnunet_folders):
        with pytest.raises(RefusedError, match="Dataset900_Balls is not in nnUNet_raw"):
            prepare(BALLS, [ROWS["stock"]])

    def test_calibration_without_a_plan(self, nnunet_folders):
        with pytest.raises(SystemExit, match=r"nnUNetPlans.json is missing; `python -m benchmarks.accuracy prepare`"):
            main(["calibrate", "--datasets", "em", "--rows", "stock"])

    def test_only_pretrained_rows(self, fresh, monkeypatch):
        """The plan of their network is made, once."""
        planned, planned_of = [], prepare_module._planned
        monkeypatch.setattr(prepare_module, "_plan", lambda data, row, processes: planned.append(row))
        monkeypatch.setattr(prepare_module, "_planned", lambda data, row: planned_of(data, ROWS["stock"]))
        main(["prepare", "--datasets", "hippocampus", "--rows", "mit_mae", "mit_volume_fusion", "mit"])
        assert planned == [ROWS["mit"]]

    def test_only_unsuitable_rows(self, fresh, capsys):
        prepare(replace(BALLS, configuration="2d"), [ROWS["primus_v3_s"]])
        assert "Dataset900_Balls, 2d: no row suits it; it is left out" in capsys.readouterr().out

    def test_changed_token_rules(self, fresh):
        """A row that changes the planner's rules has a plan of its own; the next is planned by the planner's."""
        balls = replace(BALLS, configuration="2d")
        coarse = replace(ROWS["mit"], plans="nnUNetMiT7Plans_coarse", token_rules={"finest_tokens_2d": 0})
        prepare(balls, [coarse, ROWS["mit"]])
        planned = (PlannedConfiguration.load(BALLS.dataset, row.plans, "2d") for row in (coarse, ROWS["mit"]))
        strides = [
            plan.configuration.configuration["architecture"]["arch_kwargs"]["patch_embed_stride"] for plan in planned
        ]
        assert strides == [[4, 4], [2, 2]]


class TestSplit:
    CASES = tuple(f"patient{number:03d}_frame{frame:02d}" for number in range(20) for frame in (1, 12))

    def test_patients_stay_together(self):
        split = grouped_split(self.CASES, r"patient\d+")
        for fold in split:
            patients = [{case.split("_")[0] for case in fold[part]} for part in ("train", "val")]
            assert not patients[0] & patients[1]
            assert sorted(fold["train"] + fold["val"]) == sorted(self.CASES)
        assert sorted(case for fold in split for case in fold["val"]) == sorted(self.CASES)

    def test_without_groups_it_is_nnunets(self):
        expected = generate_crossval_split(sorted(self.CASES), seed=12345, n_splits=5)
        assert grouped_split(self.CASES, ".*") == [{k: list(map(str, v)) for k, v in f.items()} for f in expected]

    def test_another_split_is_not_replaced(self, tmp_path):
        write_split(tmp_path / "splits_final.json", grouped_split(self.CASES, r"patient\d+"))
        write_split(tmp_path / "splits_final.json", grouped_split(self.CASES, r"patient\d+"))
        with pytest.raises(ValueError, match="another split"):
            write_split(tmp_path / "splits_final.json", grouped_split(self.CASES, ".*"))
