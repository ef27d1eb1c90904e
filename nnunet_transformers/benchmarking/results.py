"""Summarise a run: medians, spreads and ratios, as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from statistics import median
from typing import Any

from .networks import REFERENCE

# figures that are the same in every round
AS_THEY_ARE = ("parameters", "multiply_adds", "roofline")
# heading, figure, unit, and whether the table shows the ratio beside it
COLUMNS = (
    ("parameters, M", "parameters", 1e6, False),
    ("multiply-adds, G", "multiply_adds", 1e9, False),
    ("forward, ms", "forward_s", 1e-3, True),
    ("forward + backward, ms", "forward_backward_s", 1e-3, True),
    ("optimiser, ms", "optimiser_step_s", 1e-3, False),
    ("training step, ms", "training_step_s", 1e-3, True),
    ("memory, forward, GB", "forward_bytes", 1e9, False),
    ("memory, training, GB", "training_bytes", 1e9, True),
    ("sliding window, Mvoxel/s", "voxels_per_s", 1e6, True),
)
# headings and keys of the roofline's passes
PASSES = (("forward", "forward"), ("forward + backward", "forward_backward"))


def summarise(
    measured: Mapping[str, Sequence[Mapping[str, Any]]], failed: Mapping[str, str], rounds: int
) -> dict[str, Any]:
    """Compute medians and spreads over the rounds, and ratios to ``REFERENCE``, or to the first that was measured.

    Args:
        measured: results of ``measure`` for each network, one per round.
        failed: networks that could not be measured, with the reason.
        rounds: number of rounds.

    Returns:
        ``rounds``, ``reference``, which is the first network that was measured (None without any), and ``networks``.
        Each network has its figures, those of ``AS_THEY_ARE`` unchanged and the others as
        median, min and max, and ``ratios``, medians of the ratios in each round; or ``failed`` with the reason.
    """
    networks: dict[str, Any] = {}
    reference = next((name for name in (REFERENCE, *measured) if measured.get(name) and name not in failed), None)
    for name, own in measured.items():
        if name in failed:
            networks[name] = {"failed": failed[name]}
            continue
        figures = {key: own[0][key] for key in AS_THEY_ARE if key in own[0]}
        for key in (key for key in own[0] if key not in AS_THEY_ARE):
            values = [of_a_round[key] for of_a_round in own]
            figures[key] = {"median": median(values), "min": min(values), "max": max(values)}
        networks[name] = {**figures, "ratios": ratios(own, measured[reference] if reference else ())}
    return {"rounds": rounds, "reference": reference, "networks": networks}


def ratios(rounds: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Compute the median over rounds of each figure's ratio to the reference's; empty without a reference."""
    if not reference:
        return {}
    keys = [key for key in rounds[0] if key != "roofline"]
    return {key: median(own[key] / other[key] for own, other in zip(rounds, reference, strict=True)) for key in keys}


def describe(content: Mapping[str, Any]) -> str:
    """Describe environment and settings of a run in one line."""
    environment, settings = content["environment"], content["settings"]
    on = environment["processor"] + f", {environment['threads']} threads"
    if "gpu" in environment:
        on = f"{environment['gpu']} ({environment['processor']})"
    versions = ", ".join(f"{package} {version}" for package, version in environment["versions"].items())
    size = "x".join(map(str, settings["patch_size"]))
    shape = f"{settings['batch_size']} x {settings['input_channels']} x {size}, {settings['num_classes']} classes"
    how = settings["precision"] + (", torch.compile" if settings["compile"] else "")
    how += ", the processor's time" if settings.get("processor_time") else ""
    return f"{on}; {shape}; {how}; median of {content['rounds']} rounds; {versions}"


def table(content: Mapping[str, Any], short: bool = False) -> tuple[list[str], list[list[str]]]:
    """Create headings and rows of the table.

    Args:
        content: result of ``run_benchmark``.
        short: only columns with a ratio, and no minimum and maximum beside the medians.
    """
    figures = [f for f in content["networks"].values() if "failed" not in f]
    columns = [column for column in COLUMNS if any(column[1] in f for f in figures)]
    columns = [column for column in columns if column[3] or not short]
    headings = ["network"]
    for heading, _, _, has_ratio in columns:
        headings += [heading, "ratio"] if has_ratio else [heading]
    if not columns:
        headings.append("not measured")  # a column for the reasons
    rows = []
    for name, figures in content["networks"].items():
        if "failed" in figures:
            rows.append([name, figures["failed"]] + [""] * (len(headings) - 2))
            continue
        row = [name]
        for _, key, unit, has_ratio in columns:
            row.append(_cell(figures[key], unit, short))
            if has_ratio:
                row.append(f"{figures['ratios'][key]:.2f}" if key in figures["ratios"] else "")
        rows.append(row)
    return headings, rows


def describe_ratios(content: Mapping[str, Any]) -> str:
    """Say in a sentence which network the ratios are to, and why it is another one than usual.

    Args:
        content: result of ``run_benchmark``, or of an earlier version, whose reference was always ``REFERENCE``.
    """
    reference = content.get("reference", REFERENCE)
    if reference == REFERENCE:
        return f"Ratios are to {REFERENCE}."
    reason = content["networks"].get(REFERENCE, {}).get("failed", "was not measured")
    if reference is None:
        return f"There are no ratios: {REFERENCE}: {reason}."
    return f"Ratios are to {reference}, as there are no figures of {REFERENCE}: {reason}."


def roofline_table(content: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Create headings and rows of the roofline's table: floors, the share that is reached, and the largest gaps.

    Args:
        content: result of ``run_benchmark``; without roofline there are no rows.
    """
    headings = ["network"]
    for heading, _ in PASSES:
        headings += [f"{heading}, floor, ms", "share reached", "largest gaps, ms (floor)"]
    rows = []
    for name, figures in content["networks"].items():
        if "roofline" not in figures:
            continue
        row = [name]
        for _, key in PASSES:
            of_pass = figures["roofline"][key]
            gaps = [
                f"{gap['layer']} {_rounded(1e3 * gap['seconds'])} ({_rounded(1e3 * gap['floor_s'])})"
                for gap in of_pass["gaps"]
            ]
            row += [_rounded(1e3 * of_pass["floor_s"]), f"{of_pass['share']:.2f}", "; ".join(gaps)]
        rows.append(row)
    return headings, rows


def markdown(content: Mapping[str, Any]) -> str:
    """Format the tables as Markdown, below a description of the run.

    Args:
        content: result of ``run_benchmark``.
    """
    text = f"# Time and memory\n\n{describe(content)}. {describe_ratios(content)}\n\n{_markdown_table(*table(content))}"
    headings, rows = roofline_table(content)
    if not rows:
        return text
    multiply_adds, moved = (content["rates"][key] / 1e9 for key in ("multiply_adds_per_second", "bytes_per_second"))
    return (
        f"{text}\n## Roofline\n\nRates of the device, measured in the same run: {_rounded(multiply_adds)} G "
        f"multiply-adds and {_rounded(moved)} GB a second.\n\n{_markdown_table(headings, rows)}"
    )


def _markdown_table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _cell(value: float | Mapping[str, float], unit: float, short: bool) -> str:
    if not isinstance(value, Mapping):
        return _rounded(value / unit)
    middle, low, high = (_rounded(value[key] / unit) for key in ("median", "min", "max"))
    return middle if low == high or short else f"{middle} ({low} to {high})"


def _rounded(value: float) -> str:
    """Format a number with three significant digits, without an exponent."""
    return f"{Decimal(f'{value:.3g}'):f}"
