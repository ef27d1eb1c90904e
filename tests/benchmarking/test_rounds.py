"""Benchmark runs: order, ratios, failures, files, and the command."""

from __future__ import annotations

import json
import sys
from functools import partial

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from typer.testing import CliRunner

from benchmarks.releases import compare
from nnunet_transformers import cli
from nnunet_transformers.benchmarking import measure, plot
from nnunet_transformers.benchmarking import rounds as run
from nnunet_transformers.benchmarking.measure import Settings
from nnunet_transformers.benchmarking.results import _rounded as rounded
from nnunet_transformers.benchmarking.results import describe_ratios, markdown, ratios, summarise

from ..cli.test_cli import run_main

KEYS = ("forward_s", "forward_backward_s", "optimiser_step_s", "training_step_s", "forward_bytes", "training_bytes")
SETTINGS = Settings((8, 8, 8), threads=1)
# replaces the measuring process: its figures are its position in the order, its network's name how it fails
CHILD = """
import json, os, signal, sys
job = json.loads(sys.argv[1])
if job["network"] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if job["network"] == "wrong":
    raise ValueError("patch_size (8, 8, 8) is too small\\nby far")
with open(sys.argv[3], "a") as file:
    print(job["network"], file=file)
with open(sys.argv[3]) as file:
    turn = len(file.readlines())
figures = dict.fromkeys(%r, turn) | {"parameters": 1, "multiply_adds": 2}
if job["roofline"] and job["network"]:
    gaps = [{"layer": "encoder 1 | Linear", "seconds": 0.002, "floor_s": 0.001}] * 3
    figures["roofline"] = dict.fromkeys(("forward", "forward_backward"), {"floor_s": 0.5, "share": 0.25, "gaps": gaps})
environment = {"processor": "A CPU", "threads": 1, "versions": {"torch": "2"}}
rates = {"multiply_adds_per_second": 5e10, "bytes_per_second": 2e10} if job["roofline"] else None
with open(sys.argv[2], "w") as file:
    json.dump(figures if job["network"] else {"environment": environment, "rates": rates}, file)
"""


@pytest.fixture
def turns(monkeypatch, tmp_path):
    """Return the file to which the processes write their order."""
    file = tmp_path / "turns"
    code = CHILD.replace("%r", repr(KEYS)).replace("sys.argv[3]", repr(str(file)))
    monkeypatch.setattr(run, "CHILD", [sys.executable, "-c", code])
    return file


def figures(value, **others):
    return {"parameters": 1e6, "multiply_adds": 1e9, **dict.fromkeys(KEYS, value), **others}


def content(*names_and_values):
    """Summarise a run of two rounds."""
    summary = summarise({name: [figures(v), figures(2 * v)] for name, v in names_and_values}, {}, 2)
    environment = {"processor": "A CPU", "threads": 1, "versions": {"torch": "2"}}
    settings = {"patch_size": [8, 8], "batch_size": 1, "input_channels": 1, "num_classes": 2, "precision": "float32"}
    return {"environment": environment, "rates": None, **summary, "settings": {**settings, "compile": False}}


def test_networks_take_turns_and_failures_are_rows(turns):
    lines = []
    result = run.run_benchmark(["PlainConvUNet", "killed", "wrong", "b"], SETTINGS, 3, report=lines.append)
    # the device first
    assert turns.read_text().split() == ["None", *["PlainConvUNet", "b"] * 3]
    assert [line for line in lines if "killed" in line] == [
        "round 1 of 3, killed: ended by SIGKILL, as the system does when memory is short"
    ]
    networks = result["networks"]
    assert networks["wrong"] == {"failed": "patch_size (8, 8, 8) is too small"}
    assert networks["b"]["forward_s"] == {"median": 5, "min": 3, "max": 7}
    assert networks["b"]["ratios"]["forward_s"] == 5 / 4  # of 3 / 2, 5 / 4 and 7 / 6
    text = markdown(result)
    assert "| wrong | patch_size (8, 8, 8) is too small |" in text
    assert "| b | 0.000001 | 0.000000002 | 5000 (3000 to 7000) | 1.25 |" in text
    assert "A CPU, 1 threads; 1 x 1 x 8x8x8, 14 classes; float32; median of 3 rounds; torch 2" in text
    assert "50 G multiply-adds and 20 GB a second" in text
    assert "| b | 500 | 0.25 | encoder 1 \\| Linear 2 (1); " in text


@pytest.mark.parametrize("interrupted_at, rounds, not_measured", [(1, 1, ["b"]), (2, 1, []), (5, 2, [])])
def test_interrupted_run_keeps_whole_rounds(turns, interrupted_at, rounds, not_measured):
    lines = []

    def report(line):
        lines.append(line)
        if len(lines) == interrupted_at:
            raise KeyboardInterrupt

    result = run.run_benchmark(["PlainConvUNet", "b"], SETTINGS, 3, report=report)
    assert result["rounds"] == rounds
    assert [name for name, figures in result["networks"].items() if "failed" in figures] == not_measured
    assert "interrupted" in markdown(result) or not not_measured
    if rounds == 2:
        assert result["networks"]["b"]["ratios"]["forward_s"] == (3 / 2 + 5 / 4) / 2


def test_without_the_reference_ratios_are_to_another_network(turns):
    result = run.run_benchmark(["PlainConvUNet", "b"], SETTINGS, 1, roofline=False, report=lambda _: None)
    assert result["networks"]["b"]["ratios"]["forward_s"] == 3 / 2
    assert "## Roofline" not in markdown(result)
    summary = summarise({"PlainConvUNet": [], "b": [figures(2)]}, {"PlainConvUNet": "it is too large"}, 1)
    assert summary["reference"] == "b"
    assert summary["networks"]["b"]["ratios"]["forward_s"] == 1
    assert summary["networks"]["PlainConvUNet"] == {"failed": "it is too large"}
    said = "Ratios are to b, as there are no figures of PlainConvUNet: it is too large."
    assert describe_ratios(summary) == said
    none = summarise({"PlainConvUNet": []}, {"PlainConvUNet": "it is too large"}, 1)
    assert describe_ratios(none) == "There are no ratios: PlainConvUNet: it is too large."
    assert describe_ratios({"networks": {}}) == "Ratios are to PlainConvUNet."  # of an earlier version


@pytest.mark.parametrize(
    "ending, code, message",
    [
        ({"failed": "it is too large"}, 1, "error: 1 of 2 networks were not measured: b: it is too large"),
        ({"interrupted": True}, 130, "error: interrupted; the complete rounds are in "),
    ],
)
def test_failed_rows_and_interruptions_have_an_exit_code(ending, code, message, tmp_path, monkeypatch, capsys):
    written = content(("PlainConvUNet", 1.0), ("b", 2.0))
    if "failed" in ending:
        written["networks"]["b"] = ending
    else:
        written |= ending
    monkeypatch.setattr(run, "run_benchmark", lambda *_: written)
    output = tmp_path / "out"
    stopped, captured = run_main(monkeypatch, capsys, "benchmark", "--device", "cpu", "-o", output)
    assert stopped == code
    assert captured.err.startswith(message)
    assert "Ratios are to PlainConvUNet." in captured.out
    assert (output / "benchmark.md").is_file()


@pytest.mark.parametrize("asked", [True, False])
def test_a_peer_without_its_library_fails_only_if_asked_for(asked, tmp_path, monkeypatch, capsys):
    written = content(("PlainConvUNet", 1.0), ("SwinUNETR", 2.0))
    written["networks"]["SwinUNETR"] = {"failed": "MONAI is not installed"}
    monkeypatch.setattr(run, "run_benchmark", lambda *_: written)
    networks = ["--networks", "SwinUNETR"] if asked else []
    stopped, captured = run_main(monkeypatch, capsys, "benchmark", "--device", "cpu", "-o", tmp_path, *networks)
    assert stopped == int(asked)
    assert "SwinUNETR: MONAI is not installed" in (captured.err if asked else captured.out)


def test_nothing_was_measured(tmp_path, monkeypatch, capsys):
    """The table has a column for the reasons, and no picture is said to be written."""
    written = content(("PlainConvUNet", 1.0), ("b", 2.0))
    written |= {"reference": None, "networks": {name: {"failed": "no | memory"} for name in written["networks"]}}
    monkeypatch.setattr(run, "run_benchmark", lambda *_: written)
    code, captured = run_main(monkeypatch, capsys, "benchmark", "--device", "cpu", "-o", tmp_path)
    assert code == 1 and "benchmark.md\n" in captured.out
    lines = (tmp_path / "benchmark.md").read_text().splitlines()
    assert lines[-4:] == [
        *("| network | not measured |", "| --- | --- |"),
        *(f"| {name} | no \\| memory |" for name in ("PlainConvUNet", "b")),
    ]


def test_a_device_that_cannot_be_measured(monkeypatch):
    monkeypatch.setattr(run, "CHILD", [sys.executable, "-c", "raise RuntimeError('no CUDA')"])
    with pytest.raises(RuntimeError, match="the device cpu cannot be measured: no CUDA"):
        run.run_benchmark(["b"], SETTINGS)


def test_ratios_are_of_the_same_round():
    own, reference = ([figures(value) for value in values] for values in ((1, 9, 4), (2, 3, 4)))
    assert ratios(own, reference)["forward_s"] == 1


@pytest.mark.parametrize(
    ("value", "text"), [(9.25e-5, "0.0000925"), (0, "0"), (1.5, "1.5"), (99.96, "100"), (1234567, "1230000")]
)
def test_numbers_have_no_exponent(value, text):
    """The floor of a layer with a small product is less than a microsecond."""
    assert rounded(value) == text


def test_front():
    points = {"a": (1, 9), "b": (2, 9), "c": (2, 5), "d": (3, 1), "e": (4, 1)}
    assert plot.pareto_front(points) == ["a", "c", "d"]
    assert plot.pareto_front({"a": (1, 1), "b": (1, 1)}) == ["a"]


def test_picture(tmp_path):
    plot.draw_pareto(content(("PlainConvUNet", 3.0), ("mit_7", 1.0)), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [tmp_path / "picture.png"]


def test_no_picture_of_nothing(tmp_path):
    failed = {"environment": {}, "networks": {"mit_7": {"failed": "no memory"}}}
    assert not plot.draw_pareto(failed, tmp_path / "picture.png")
    assert not (tmp_path / "picture.png").exists()


def test_labels_do_not_overlap():
    figure = Figure(figsize=(8, 6), dpi=120)
    canvas, axes = FigureCanvasAgg(figure), figure.subplots()
    # eleven networks, eight of them nearly as fast as each other
    points = {f"network_number_{n}": (1 + 0.01 * n, 1 + 0.008 * (n % 4)) for n in range(8)}
    points |= {"far": (3, 2), "farther": (4, 2), "right": (5, 1)}
    axes.scatter(*zip(*points.values(), strict=True), label="networks")
    legend = axes.legend()
    figure.draw_without_rendering()
    plot._label(axes, legend, points, canvas.get_renderer())
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in axes.texts if text.get_text()]
    assert len(boxes) == len(points)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_command(tmp_path, monkeypatch):
    """Run two networks for one round without replacements, everything but the roofline, each action twice."""
    monkeypatch.setattr(measure, "Settings", partial(Settings, seconds=0))
    output = tmp_path / "results"
    arguments = [
        "--patch-size",
        "64,64",
        "--networks",
        "mit_7",
        "--rounds",
        "1",
        "--threads",
        "1",
        "--device",
        "cpu",
    ]
    result = CliRunner().invoke(cli.app, ["benchmark", *arguments, "--no-roofline", "-o", str(output)])
    assert result.exit_code == 0, result.output
    assert "round 1 of 1, mit_7: forward" in result.output
    assert sorted(path.name for path in output.iterdir()) == ["benchmark.json", "benchmark.md", "benchmark.png"]
    written = json.loads((output / "benchmark.json").read_text())
    assert written["environment"]["threads"] == written["settings"]["threads"] == 1
    for name, network in written["networks"].items():
        # gradients and AdamW's moments are in a training step's memory
        assert network["training_bytes"]["median"] > 4 * 4 * network["parameters"], name
        assert network["voxels_per_s"]["median"] > 0
    assert written["networks"]["PlainConvUNet"]["ratios"]["training_step_s"] == 1


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--patch-size", "ninety"], "is not a list of integers"),
        (["--patch-size", "96"], "is not two or three positive integers"),
        (["--patch-size", "96,0,96"], "is not two or three positive integers"),
        (["--networks", "unet2022_tyni"], "unknown network 'unet2022_tyni'; did you mean unet2022_tiny"),
        (["--patch-size", "2d", "--networks", "Primus-S"], "Primus-S has no 2D form"),
        (["--device", "tpu"], "--device 'tpu' is not one of cpu, cuda"),
        (["--device", "cpu", "--processor-time"], "--processor-time needs --device cpu --threads 1"),
        (["--device", "cpu", "--precision", "float16"], "--precision float16 is for CUDA"),
        (["--device", "cpu", "--precision", "int8"], "--precision 'int8' is not one of float32, float16, bfloat16"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, captured = run_main(monkeypatch, capsys, "benchmark", *arguments)
    assert code == 1
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


def test_no_cuda(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    code, captured = run_main(monkeypatch, capsys, "benchmark", "--device", "cuda")
    assert code == 1
    assert "PyTorch finds no CUDA device; --device cpu" in captured.err


def test_comparison_with_the_releases():
    def a_run(patch_size, **seconds):
        networks = {n: {key: {"median": s} for key in ("forward_s", "forward_backward_s")} for n, s in seconds.items()}
        return {"settings": {"patch_size": patch_size}, "networks": {**networks, "mit_7": {"failed": "no memory"}}}

    cube = a_run([96, 96, 96], PlainConvUNet=2.0, qt_unet_tiny=1.0)
    table = compare([cube, a_run([48, 192, 192], PlainConvUNet=9.0, mit_22=1.0)])
    assert "| qt_unet_tiny, 96x96x96 | 0.85 / 1.61 s | 2.07 / 5.38 s | 0.95 | 1.30 |" in table
    # over PlainConvUNet at 96x96x96, as the release was measured
    assert "| mit_22, 48x192x192 | 1.43 / 1.61 s | 4.07 / 5.38 s | 0.56 | 0.66 |" in table
    assert "unet2022" not in table
