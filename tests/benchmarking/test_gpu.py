"""The first hour on a GPU: a dry run on the CPU, what fails, and what is left to a second call."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from benchmarks.gpu import command
from benchmarks.gpu.kernels import Calls, Layout
from benchmarks.gpu.rows import PACKAGES, Row, arguments_of, rows_of
from benchmarks.gpu.workers import RowFailed, Worker
from nnunet_transformers.architectures import get_network
from tests.architectures.test_networks import INSTALLED, SMALLEST

ROW = Row("eager", "mit_7", (32, 32, 32), 2, "float32", "cpu", True)


class Inline:
    """A worker that works in this process, which spares importing everything again."""

    jobs: list[Row]

    def start(self, function, row, seconds):
        self.jobs.append(row)
        module, name = function.split(":")
        self._answer = getattr(__import__(module, fromlist=[name]), name)(row)

    def result(self):
        return self._answer

    def run(self, function, row, seconds):
        self.start(function, row, seconds)
        return self.result()

    def stop(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def jobs(monkeypatch):
    """Rows that were measured, in this process and without a compiler."""
    monkeypatch.setattr(Inline, "jobs", [], raising=False)
    monkeypatch.setattr(command, "Worker", Inline)
    original = torch.compile

    def compile(function, **options):
        """FlexAttention asks for its plain implementation by options."""
        return original(function, **options) if options else function

    monkeypatch.setattr(torch, "compile", compile)
    return Inline.jobs


def run(folder, *options, network="setr_pup_tiny"):
    command.main(["--device", "cpu", "--tiny", "--networks", network, "--output", str(folder), *options])
    return json.loads((folder / "gpu.json").read_text())


def test_dry_run(jobs, tmp_path):
    run(tmp_path)
    run(tmp_path, "--steps", "flex", network="unet2022_tiny")
    rows = run(tmp_path, "--steps", "prediction", network="mit_7")
    assert {row["step"] for row in rows.values()} == set(command.STEPS)
    assert not [row["error"] for row in rows.values() if "error" in row]
    assert rows["eager setr_pup_tiny 64x64 float32"]["samples_per_s"] > 0
    assert rows["memory setr_pup_tiny 64x64 float32"]["estimated_bytes"] > 1e8
    ours, theirs = (rows[f"prediction mit_7 32x32x32 float32 {who}"] for who in ("ours", "nnU-Net"))
    assert ours["logits_sum"] == pytest.approx(theirs["logits_sum"], rel=1e-3)
    assert all(call["largest_error"] < 1e-5 for call in rows["flex unet2022_tiny 64x64 float32"]["calls"])
    text = (tmp_path / "gpu.md").read_text()
    assert text.count("\n## ") == len(command.STEPS) - 1  # the facts are a list
    assert text.count("| setr_pup_tiny | 64x64 |") == 6
    # nothing is left to do
    jobs.clear()
    assert run(tmp_path) == rows
    assert not jobs


def test_what_is_not_installed_is_skipped(jobs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PACKAGES, "SwinUNETR", "no_such_package")
    command.main(["--tiny", "--steps", "eager", "--networks", "SwinUNETR", "--output", str(tmp_path)])
    assert capsys.readouterr().out == "SwinUNETR is skipped: pip install no_such_package\n"
    assert not jobs


def test_swin_unetr_is_trained(monkeypatch):
    monkeypatch.setitem(PACKAGES, "SwinUNETR", "torch")
    steps = {step: rows_of(step, "cuda", False, ("SwinUNETR",), ("float16", "bfloat16")) for step in command.STEPS}
    assert {step: len(rows) for step, rows in steps.items() if rows and step != "facts"} == {"eager": 4, "compile": 4}


def test_failed_rows_are_measured_again(jobs, tmp_path, monkeypatch):
    def fail(self, function, row, seconds):
        raise RowFailed("out of memory | or so")

    with monkeypatch.context() as patched:
        patched.setattr(Inline, "run", fail)
        rows = run(tmp_path, "--steps", "facts,eager")
    assert [row["error"] for row in rows.values()] == ["out of memory | or so"] * 2
    assert "- eager setr_pup_tiny 64x64 float32: out of memory" in (tmp_path / "gpu.md").read_text()
    assert "error" not in run(tmp_path, "--steps", "facts")["facts float32"]


def test_no_time_left(jobs, tmp_path, capsys):
    command.main(["--device", "cpu", "--tiny", "--steps", "eager", "--limit-seconds", "0", "--output", str(tmp_path)])
    assert not jobs
    assert "eager: no time for" in capsys.readouterr().out


def test_unknown_step(capsys):
    with pytest.raises(SystemExit):
        command.main(["--steps", "egaer"])
    assert "there is no step egaer; there are facts, kernels" in capsys.readouterr().err


def test_every_network_can_be_planned():
    rows = rows_of("eager", "cpu", False, tuple(INSTALLED), ("float16", "bfloat16"))
    assert len({row.key for row in rows}) == 2 * sum(len(get_network(name).dimensions) for name in INSTALLED)
    # one patch for all, so that times can be compared
    smallest = [row for row in rows if row.network in SMALLEST and row.precision == "float16"]
    assert all(tuple(arguments_of(row)["patch_size"]) == row.patch_size for row in smallest)


def test_overrides_tell_rows_apart():
    row = replace(ROW, overrides=(("activation_checkpointing", True),))
    assert row.key == "eager mit_7 32x32x32 float32 activation_checkpointing=True"
    assert arguments_of(row)["activation_checkpointing"]


def test_calls_of_attention_are_those_of_a_layout():
    q, k, v = torch.randn(2, 3, 5, 3, 4).transpose(2, 3).unbind(1)
    bias = torch.randn(1, 3, 5, 5, requires_grad=True)
    with Calls() as calls:
        for _ in range(2):
            F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.3)
    ((call, count),) = calls.counted.items()
    assert (count, call.scale) == (2, 0.3)
    operands = call.operands(torch.float16, "cpu")
    for tensor, drawn in zip((q, k, v, bias), operands, strict=True):
        assert Layout.of(drawn) == Layout.of(tensor)


@pytest.mark.parametrize(
    "function,argument,seconds,why",
    [
        ("math:sqrt", -1, 60, "ValueError"),
        ("os:_exit", 3, 60, "the process ended with 3"),
        ("time:sleep", 60, 3, "ran out of time"),
    ],
)
def test_worker_outlives_a_row(function, argument, seconds, why):
    with Worker() as worker:
        with pytest.raises(RowFailed, match=why):
            worker.run(function, argument, seconds)
        assert worker.run("math:sqrt", 4, 60) == 2
