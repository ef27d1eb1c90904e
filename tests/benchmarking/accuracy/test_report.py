"""Tables, differences and curves."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.accuracy.command import main
from benchmarks.accuracy.report import difference, draw, elsewhere, table
from benchmarks.accuracy.runs import FOLDERS, Run, append_line, read_lines


class TestReport:
    def test_help_and_report_without_folders(self, tmp_path, monkeypatch, capsys):
        for name in FOLDERS:
            monkeypatch.delenv(name, raising=False)
        for words in (["--help"], ["report", "--help"]):
            with pytest.raises(SystemExit) as ended:
                main(words)
            assert ended.value.code == 0
        append_line(tmp_path / "results.jsonl", self.record("hippocampus", "stock", "tenth", 0.5))
        main(["report", str(tmp_path / "results.jsonl"), "--output", str(tmp_path / "page")])
        assert (tmp_path / "page.md").is_file()
        with pytest.raises(SystemExit, match="nnUNet_results is not set; export nnUNet_raw, "):
            main(["report", "--output", str(tmp_path / "page")])

    def test_difference_is_paired_by_patient(self):
        rng = np.random.default_rng(1)
        patients = {f"patient{n:03d}": value for n, value in enumerate(rng.uniform(0.2, 0.9, 16))}
        # both frames of a patient and both seeds count as one value; a missing label does not count
        reference = [
            {
                "dataset": "acdc_2d",
                "dice_per_case": {f"{p}_frame{f:02d}": [v, v] for p, v in patients.items() for f in (1, 9)},
            }
        ]
        gains = dict(zip(patients, rng.normal(0.05, 0.02, 16), strict=True))
        ours = [
            {
                "dataset": "acdc_2d",
                "dice_per_case": {
                    f"{p}_frame{f:02d}": [v + gains[p] + by, None] for p, v in patients.items() for f in (1, 9)
                },
            }
            for by in (-0.01, 0.01)
        ]
        middle, low, high = difference(ours, reference)
        assert middle == pytest.approx(np.mean(list(gains.values())))
        error = np.std(list(gains.values())) / 4
        assert [low, high] == pytest.approx([middle - 1.96 * error, middle + 1.96 * error], abs=0.3 * error)
        assert difference(ours, []) is None

    def test_seeds_that_draw_the_cases_are_paired(self):
        """The mean of seed 0 alone, which both have, where seeds differ by their cases."""

        def runs(dataset, *values):
            return [
                {"dataset": dataset, "seed": seed, "dice_per_case": {f"case{n}": [value] for n in range(5)}}
                for seed, value in enumerate(values)
            ]

        for dataset, expected in (("hippocampus_ten", 0.02), ("hippocampus", -0.08)):
            assert difference(runs(dataset, 0.82), runs(dataset, 0.8, 1.0))[0] == pytest.approx(expected)

    @staticmethod
    def record(dataset, row, budget, dice, fold=0):
        run = vars(Run(dataset, row, budget, fold, 0))
        of = {"iterations": 4, "epochs": 2, "calibrated_seconds": 1.0, "batch_size": 2, "patch_size": [8, 8, 8]}
        cases = ("patient1", "patient2")  # which suits all datasets
        found = {"dice": dice, "dice_per_label": {"large": dice}, "dice_per_case": {case: [dice] for case in cases}}
        return {
            **run,
            **of,
            **found,
            "parameters": 10**6,
            "curve": {"pseudo_dice": [0, dice]},
            "processor": "x",
            "processor_seconds": 3.0,
        }

    def test_folds_for_tuning(self):
        """Rows of the folds for tuning say which: their means are not of the same cases."""
        of = [("stock", 0.5, 1), ("stock", 0.7, 2), ("mit", 0.8, 1)]
        lines = table([self.record("hippocampus", row, "tenth", dice, fold) for row, dice, fold in of]).splitlines()
        assert [line.split(" | ")[1:4] for line in lines[2:]] == [["1, 2", "1", "0.600"], ["1", "1", "0.800"]]

    def test_effects(self):
        """A change is compared with stock and with the row that it changes; an empty column is left out."""
        of = [("stock", 0.5), ("mit", 0.8), ("mit_ema", 0.9), ("stock_half_batch", 0.6), ("mit_half_batch", 0.7)]
        records = [self.record("hippocampus", row, "tenth", dice, fold=1) for row, dice in of]

        def cells(records):
            head, _, *lines = [line.split(" | ") for line in table(records).splitlines()]
            columns = [head.index(name) for name in ("difference", "effect") if name in head]
            return [[line[column][:6] for column in columns] for line in lines]

        of_all = [["", ""], ["+0.300", ""], ["+0.400", "+0.100"], ["+0.100", "+0.100"], ["+0.200", "-0.100"]]
        assert cells(records) == of_all
        assert cells(records[1:3]) == [[""], ["+0.100"]]
        assert cells(records[:1]) == cells(records[2:3]) == [[]]

    def test_costs_elsewhere(self):
        """Processor time as shares of the measured costs: of CPU runs, and of costs measured beside earlier ones."""
        known = [
            {"row": "stock", "dataset": "hippocampus", "seconds": 8.0},
            {
                "row": "mit",
                "dataset": "hippocampus",
                "seconds": 2.0,
                "beside": ["stock", "hippocampus"],
                "beside_seconds": 4.0,
            },
            {"row": "mit", "dataset": "em", "seconds": 2.0, "beside": ["stock", "em"], "beside_seconds": 1.0},
        ]
        run = self.record("hippocampus", "qt_unet", "quarter", 0.5)
        on_gpu = {**run, "row": "unet2022", "gpu": "NVIDIA"}
        as_mit = self.record("hippocampus", "mit_ema", "quarter", 0.5)  # whose cost is MiT-7's
        text = elsewhere([run, on_gpu, as_mit], {(cost["row"], cost["dataset"]): cost for cost in known})
        assert text.endswith(": PlainConvUNet 0.50, QT-UNet T (published head and drop path) 0.75, MiT-7 0.75.")
        assert elsewhere([on_gpu], {}) == ""

    def test_panels(self):
        """A network alone has no panel where others are compared; each network has the same look in all panels."""
        of = [("em", "stock"), ("acdc_2d", "stock"), ("acdc_2d", "mit"), ("acdc_3d", "mit"), ("acdc_3d", "qt_unet")]
        records = [self.record(dataset, row, "quarter", 0.5) for dataset, row in of]
        panels = [axes for axes in draw(records).axes if axes.axison]
        assert [axes.get_title().partition("\n")[0] for axes in panels] == ["ACDC, 2d", "ACDC, 3d_fullres"]
        looks = {(line.get_label().partition(",")[0], line.get_color()) for axes in panels for line in axes.lines[1::2]}
        assert {name for name, _ in looks} == {"PlainConvUNet", "MiT-7", "QT-UNet T (published head and drop path)"}
        assert len(looks) == len({colour for _, colour in looks}) == 3
        (alone,) = draw(records[:1]).axes
        assert alone.get_title().startswith("ISBI2012EM")

    def test_equal_total_cost(self, tmp_path, monkeypatch):
        """A pretrained network is compared with a training from scratch that is longer by the pretraining."""
        monkeypatch.setenv("nnUNet_results", str(tmp_path))
        given = [
            ("hippocampus_ten", "mit", "tenth", 0.7),
            ("hippocampus_ten", "mit_mae", "tenth", 0.76),
            ("hippocampus_ten", "mit", "three_tenths", 0.75),
            ("acdc_3d_ten", "mit_mae_acdc_long", "tenth", 0.5),  # costs more than three tenths
            ("acdc_3d_ten", "mit", "three_tenths", 0.6),
        ]
        for dataset, row, budget, dice in given:
            append_line(tmp_path / "results.jsonl", self.record(dataset, row, budget, dice))
        settings = {"data.init_args.samples_per_epoch": 20, "trainer.max_epochs": 3}
        made = {"pretraining": "mit_mae", "settings": settings, "units": 0.21}
        append_line(tmp_path / "pretraining.jsonl", {**made, "curve": {"loss": [[0, 1.5], [9, 0.25]]}})
        main(["report", str(tmp_path / "results.jsonl"), "--output", str(tmp_path / "page")])
        lines = (tmp_path / "page.md").read_text().splitlines()
        (row,) = (line.split(" | ") for line in lines if line.startswith("| MiT-7 after MAE |"))
        assert sum("at equal total cost" in line for line in lines) == 1
        assert row[4:6] == ["+0.060 (+0.060 to +0.060)", "+0.010 (+0.010 to +0.010)"]
        assert "| MiT-7 | MAE | Hippocampus, `3d_fullres` | 60 | 0.21 | 1.50 to 0.25 |" in lines
        assert read_lines(tmp_path / "page_pretraining.jsonl")[0]["units"] == 0.21

    def test_costs_are_kept(self, tmp_path, monkeypatch):
        """Beside the page, the first of a row and dataset, so that others can train for as long."""
        monkeypatch.setenv("nnUNet_results", str(tmp_path))
        append_line(tmp_path / "results.jsonl", self.record("hippocampus", "mit", "quarter", 0.7) | {"gpu": "x"})
        for seconds in (3.0, 4.0):
            append_line(tmp_path / "costs.jsonl", {"row": "mit", "dataset": "hippocampus", "seconds": seconds})
        for _ in range(2):
            main(["report", str(tmp_path / "results.jsonl"), "--output", str(tmp_path / "page")])
        assert [line["seconds"] for line in read_lines(tmp_path / "page_costs.jsonl")] == [3.0]
        assert "[measured once](page_costs.jsonl)" in (tmp_path / "page.md").read_text()
