"""The results as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Figures = Mapping[str, Any]


def _size(values: Any) -> str:
    return "x".join(map(str, values)) if values else ""


def _name(row: Figures) -> str:
    options = ", ".join(f"{name} {value}" for name, value in row["overrides"].items())
    return row["network"] + (f" ({options})" if options else "")


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}"


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f}"


def _training(row: Figures) -> list[list[str]]:
    times = [_milliseconds(row[key]) for key in ("step_s", "forward_s", "backward_s", "optimiser_s")]
    figures = [f"{row['samples_per_s']:.1f}", _gigabytes(row["peak_bytes"]), f"{row['parameters'] / 1e6:.1f}"]
    if row["step"] == "compile":
        breaks = sum(row["graph_breaks"].values())
        figures += [f"{row['compile_s']:.0f}", f"{row['graphs']}, {breaks}, {row['recompiles']}"]
    else:
        figures.append(str(len(row["waits"])))
    return [[_name(row), _size(row["patch_size"]), str(row["batch_size"]), row["precision"], *times, *figures]]


def _kernels(row: Figures) -> list[list[str]]:
    lines = []
    for call in row["calls"]:
        times = ", ".join(f"{name} {value:.2f}" for name, value in call["milliseconds"].items())
        refused = "; ".join(f"{name}: {reason}" for name, reason in call["refused"].items())
        shapes = [_size(call["query"]), _size(call["key"]), _size(call["bias"]) or "-"]
        lines.append(
            [_name(row), _size(row["patch_size"]), str(call["count"]), *shapes, call["chosen"], times, refused]
        )
    return lines


def _flex(row: Figures) -> list[list[str]]:
    lines = []
    for call in row["calls"]:
        times = [f"{call['milliseconds'][name]:.2f}" for name in ("selected", "flex")]
        shapes = [str(call["count"]), _size(call["query"]), _size(call["bias"])]
        error = f"{call['largest_error']:.1e}"
        lines.append([_name(row), _size(row["patch_size"]), row["precision"], *shapes, *times, error])
    return lines


def _memory(row: Figures) -> list[list[str]]:
    measured = row["allocated_bytes"] + row["own_bytes"]
    ratio = f"{row['estimated_bytes'] / measured:.2f}" if measured else "-"
    keys = ("estimated_bytes", "allocated_bytes", "first_bytes", "reserved_bytes", "own_bytes")
    sizes = [_gigabytes(row[key]) for key in keys]
    return [[_name(row), _size(row["patch_size"]), str(row["batch_size"]), row["precision"], ratio, *sizes]]


def _profile(row: Figures) -> list[list[str]]:
    busy = f"{row['busy_s'] / row['step_s']:.2f}"
    tables = [
        "; ".join(f"{e['name'][:60]} {e['milliseconds']:.1f} ({e['calls']})" for e in row[key][:6])
        for key in ("operators", "largest")
    ]
    return [[_name(row), _size(row["patch_size"]), _milliseconds(row["step_s"]), busy, str(row["kernels"]), *tables]]


def _prediction(row: Figures) -> list[list[str]]:
    figures = [f"{row['seconds']:.2f}", f"{row['voxels_per_s'] / 1e6:.1f}", _gigabytes(row["peak_bytes"])]
    return [[_name(row), row["variant"], str(row["batch_size"]), *figures, f"{row['logits_sum']:.6g}"]]


def _graphs(row: Figures) -> list[list[str]]:
    keys = ("forward_s", "forward_graph_s", "step_s", "step_graph_s")
    times = [_milliseconds(row[key]) if key in row else "-" for key in keys]
    return [[_name(row), _size(row["patch_size"]), *times, row.get("step_graph_error", "")]]


STEP = ["network", "patch", "batch", "precision", "step, ms", "forward", "backward", "optimiser", "samples/s"]
STEP += ["memory, GB", "parameters, M"]
# title, headings and lines of a row, by step
TABLES: dict[str, tuple[str, list[str], Callable[[Figures], list[list[str]]]]] = {
    "kernels": (
        "Attention: forward and backward, ms, of each kernel that takes the call",
        ["network", "patch", "calls", "query", "key", "bias", "selected", "ms", "refused"],
        _kernels,
    ),
    "flex": (
        "FlexAttention: forward and backward of the largest calls with a bias, ms",
        ["network", "patch", "precision", "calls", "query", "bias", "selected", "FlexAttention", "largest error"],
        _flex,
    ),
    "eager": ("Training step", [*STEP, "waits"], _training),
    "compile": ("Training step, torch.compile", [*STEP, "compile, s", "graphs, breaks, recompiles"], _training),
    "memory": (
        "Memory of a training step, GB; ratio of the estimate to allocated + CUDA's own",
        ["network", "patch", "batch", "precision", "ratio", "estimate", "allocated", "first step", "reserved", "own"],
        _memory,
    ),
    "profile": (
        "Where the time of a step goes, ms (calls)",
        ["network", "patch", "step, ms", "busy share", "kernels", "operators", "largest kernels"],
        _profile,
    ),
    "prediction": (
        "Sliding window over a CT, logits alone",
        ["network", "predictor", "batch", "s", "Mvoxel/s", "memory, GB", "sum of logits"],
        _prediction,
    ),
    "graphs": (
        "CUDA graphs, ms",
        ["network", "patch", "forward", "as a graph", "step", "network as a graph", "failure"],
        _graphs,
    ),
}


def _table(headings: list[str], lines: list[list[str]]) -> str:
    cells = [headings, ["---"] * len(headings), *lines]
    return "".join("| " + " | ".join(str(c).replace("|", "\\|") for c in line) + " |\n" for line in cells)


def markdown(rows: Mapping[str, Figures]) -> str:
    """Render all rows, step by step.

    Args:
        rows: content of ``gpu.json``.
    """
    parts = ["# On a GPU\n"]
    for row in rows.values():
        if row["step"] == "facts" and "error" not in row:
            facts = {key: row[key] for key in row if key in FACTS}
            parts.append("".join(f"- {key}: {value}\n" for key, value in facts.items()))
    for step, (title, headings, lines) in TABLES.items():
        own = [row for row in rows.values() if row["step"] == step]
        if not own:
            continue
        measured = [line for row in own if "error" not in row for line in lines(row)]
        failed = [f"- {key}: {row['error']}\n" for key, row in rows.items() if row["step"] == step and "error" in row]
        parts.append(f"## {title}\n\n{_table(headings, measured)}" + ("\nFailed:\n\n" + "".join(failed)) * bool(failed))
    return "\n".join(parts)


FACTS = (
    "gpu",
    "processor",
    "cores",
    "capability",
    "multiprocessors",
    "bytes",
    "devices",
    "driver",
    "versions",
    "rates",
)
