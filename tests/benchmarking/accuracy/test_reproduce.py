"""One command for a queue."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from threading import Thread

import pytest
import torch

from benchmarks.accuracy import command, reproduce, tables
from benchmarks.accuracy.command import main
from benchmarks.accuracy.reproduce import run_in_processes
from benchmarks.accuracy.runs import Run, append_line, read_lines, results_file, work_folder
from benchmarks.accuracy.tables import DATA, ROWS
from nnunet_transformers._reading import read_json

from .helpers import BALLS, STOCK, wait_for_a_signal, write_queue


class TestReproduce:
    def test_one_command(self, fresh, monkeypatch, capsys):
        """It prepares what is missing, runs and reports; a failed run is said, and the same command goes on."""
        monkeypatch.setattr(command.os, "nice", lambda by: by, raising=False)
        monkeypatch.setattr(command.signal, "signal", lambda number, handler: None)
        # in this process, where the tables are replaced
        worked = []
        monkeypatch.setattr(command, "run_in_processes", lambda run, words, count: worked.append(count) or run(words))
        monkeypatch.setitem(tables.BUDGETS, "100_epochs", tables.Budget(iterations=3))
        monkeypatch.setitem(DATA, "hippocampus_planned", replace(BALLS, largest_batch=None))
        plan = fresh / "preprocessed" / BALLS.dataset / "nnUNetPlans.json"
        plan.unlink()
        queue = write_queue(fresh / "queue.jsonl", Run("hippocampus_planned", "stock", "100_epochs", 0, 0))
        words = ["reproduce", "--device", "cpu", "--queue", str(queue), "--loaders", "0", "--workers", "2"]
        main(words)
        assert plan.is_file()
        assert worked == [2]
        (record,) = read_lines(results_file())
        assert record["batch_size"] == read_json(plan)["configurations"]["3d_fullres"]["batch_size"]
        assert (record["iterations"], record["calibrated_seconds"]) == (3, None)
        page = (work_folder() / "accuracy.md").read_text()
        assert "### Balls, `3d_fullres`, planned batch, 3 iterations" in page
        assert "minutes" not in page.partition("###")[2]
        assert page.startswith("# Dice at equal iterations") and "budget" not in page
        assert (work_folder() / "accuracy.png").stat().st_size > 1000
        write_queue(queue, *(Run("hippocampus_planned", "stock", "100_epochs", 0, seed) for seed in (0, 1)))
        monkeypatch.setattr(command, "run_in_processes", lambda *_: None)
        with pytest.raises(SystemExit, match=r"1 of 2 runs are not finished; their errors.* the same command goes on"):
            main(words)

    def test_workers(self, fresh, capfd):
        """Processes that share a queue say why they end."""
        queue = write_queue(fresh / "queue.jsonl", STOCK)
        append_line(results_file(), vars(STOCK))
        words = ["run", "--queue", str(queue)]
        run_in_processes(main, words, 1)
        assert "Error" not in capfd.readouterr().err
        queue.write_text('{"dataset": "hippocampus", "row": "resnet", "budget": "whole", "fold": 0, "seed": 0}')
        run_in_processes(main, words, 1)
        assert "no row 'resnet'" in capfd.readouterr().err

    def test_without_gpu(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(SystemExit, match="no GPU is found; add --device cpu"):
            main(["reproduce"])

    def test_mistakes(self, fresh):
        """They are said before anything is prepared."""
        queue = write_queue(fresh / "queue.jsonl")
        words = ["reproduce", "--device", "cpu", "--queue"]
        for path in (queue, fresh / "mistyped.jsonl"):
            with pytest.raises(SystemExit, match=rf"{path.name} has no runs, or does not exist"):
                main([*words, str(path)])
        with pytest.raises(SystemExit, match="add --device cuda"):
            main([*words, str(write_queue(queue, STOCK)), "--graphs"])

    def test_costs(self, fresh, monkeypatch):
        """Of a budget in processor time the reference is prepared, and costs are measured before the workers start."""
        prepared, measured = [], []
        monkeypatch.setattr(reproduce, "prepare", lambda data, rows, processes: prepared.append((data, *rows)))
        monkeypatch.setattr(reproduce, "seconds_per_iteration", lambda *pair: measured.append(pair))
        runs = [Run("em", "mit", budget, 0, 0) for budget in ("tenth", "quarter", "100_epochs")]
        reproduce.prepare_runs(runs, 1, torch.device("cpu"), 0)
        assert prepared == [(DATA["em"], ROWS["mit"]), (DATA["hippocampus"], ROWS["stock"])]
        assert measured == [("stock", "hippocampus"), ("mit", "em")]
        del prepared[:], measured[:]
        reproduce.prepare_runs(runs[2:], 1, torch.device("cpu"), 0)
        assert prepared == [(DATA["em"], ROWS["mit"])] and not measured

    @pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals of POSIX")
    @pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 2), (signal.SIGINT, 1)])
    def test_signals_go_on_to_the_workers(self, tmp_path, number, workers):
        """Each gets one, and the handlers of before are back."""
        before = signal.getsignal(number)

        def send():
            while len(list(tmp_path.iterdir())) < workers:
                time.sleep(0.05)
            os.kill(os.getpid(), number)

        Thread(target=send, daemon=True).start()
        run_in_processes(wait_for_a_signal, [str(tmp_path)], workers)
        assert [file.read_text() for file in tmp_path.iterdir()] == ["ended"] * workers
        assert signal.getsignal(number) is before
