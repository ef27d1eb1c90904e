"""Command ``compare``: models on the same cases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .._atomic import new_folder, write_json, write_text
from ._options import DatasetJson, Processes
from ._output import echo, echo_table

if TYPE_CHECKING:
    from ..evaluation import Evaluation, Table

commands = typer.Typer()

EVALUATION = "evaluation.json"
SUMMARY = "summary.json"
# columns of the tables that hold names
TEXT_COLUMNS = {"means": 2, "differences": 3, "ranks": 3, "cases": 3}


@commands.command()
def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="A B ...",
            help="Files of `evaluate`, folders with one, folds, or predictions (with --labels); NAME=PATH names it.",
        ),
    ],
    labels: Annotated[
        Path | None, typer.Option(help="Folder of reference segmentations: evaluates folders of predictions.")
    ] = None,
    dataset_json: DatasetJson = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="Metric to compare, may be given again; by default Dice, HD95 and NSD.")
    ] = None,
    cases: Annotated[int, typer.Option(min=0, help="Cases that differ most, to list.")] = 10,
    images: Annotated[Path | None, typer.Option(help="Folder of the images, for the pictures of the page.")] = None,
    pictures: Annotated[int, typer.Option(min=0, help="Cases that differ most, to draw on the page.")] = 6,
    processes: Processes = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="New folder for a page with pictures (HTML) and the tables: Markdown, CSV, LaTeX, JSON.",
        ),
    ] = None,
) -> None:
    """Compare models: paired differences with intervals and tests, ranks and their stability, and single cases."""
    from ..evaluation import compare as compare_evaluations

    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists; remove it or choose another name")
    paths = _paths(models)
    evaluations = {name: _evaluation(path, labels, dataset_json, processes) for name, path in paths.items()}
    comparison = compare_evaluations(evaluations, metric or ())
    tables = comparison.tables(cases)
    for name, table in tables.items():
        echo_table(table.title, table.headings, table.texts(), TEXT_COLUMNS[name])
    for remark in comparison.remarks:
        echo(remark)
    if output is not None:
        from ..evaluation.report import write_comparison

        folders = {name: _folder(path, evaluations[name]) for name, path in paths.items()}
        with new_folder(output) as folder:
            _write(tables, comparison.remarks, folder)
            named = {name: str(path) for name, path in paths.items()}
            write_json({"models": named, **comparison.as_json()}, folder / "comparison.json")
            page = folder / "comparison.html"
            write_comparison(comparison, evaluations, page, folders, labels, images, pictures, cases)
        echo(f"written: {output}")


def _paths(models: list[str]) -> dict[str, Path]:
    """Return the models' paths by name, by default as they were given."""
    named: dict[str, Path] = {}
    for text in models:
        name, _, path = text.partition("=")
        if not path or Path(text).exists():
            name, path = text, text
        if name in named:
            raise ValueError(f"two models have the name {name}; name them by NAME=PATH")
        named[name] = Path(path)
    return named


def _folder(path: Path, evaluation: Evaluation) -> Path:
    """Return where to look for a model's segmentations first.

    A file may lie beside those of another model, so that what it states comes before its own folder.
    """
    if path.is_dir():
        return path
    stated = Path(next(iter(evaluation.files.values()))[0])
    return stated.parent if stated.is_absolute() and stated.is_file() else path.parent


def _evaluation(path: Path, labels: Path | None, dataset_json: Path | None, processes: int | None) -> Evaluation:
    from ..evaluation import Evaluation, evaluate_folder
    from ..evaluation.segmentations import dataset_json_of

    if path.is_file():
        return Evaluation.load(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    if labels is not None:
        folder = path / "validation" if (path / "validation").is_dir() else path
        if dataset_json is None and folder.is_dir() and dataset_json_of(folder) is None:
            raise FileNotFoundError(f"no dataset.json in {folder} names the labels; give it by --dataset-json")
        return evaluate_folder(folder, labels, dataset_json=dataset_json, processes=processes)
    # a fold's are those of its validation
    for place in (path, path / "validation"):
        found = [
            _named(Evaluation.load(file), file) for name in (EVALUATION, SUMMARY) if (file := place / name).is_file()
        ]
        if len(found) > 1 and not found[0].agrees_with(found[1]):
            raise ValueError(
                f"{place / EVALUATION} and nnU-Net's {SUMMARY} beside it have other Dice of the same cases, as if one "
                "were of former predictions: evaluate again, or name the file"
            )
        if found:
            return found[0]
    raise FileNotFoundError(
        f"{path} holds no {EVALUATION}: run `nnunet-transformers evaluate`, or name the folder of labels by --labels"
    )


def _named(evaluation: Evaluation, file: Path) -> Evaluation:
    """Name the labels of nnU-Net's summary.json, which has their numbers only, as the model's dataset.json does."""
    from ..evaluation.segmentations import dataset_json_of, load_dataset_json
    from ..evaluation.targets import Targets

    described = dataset_json_of(file.parent)
    if file.name != SUMMARY or described is None:
        return evaluation
    names = {target.key: target.name for target in Targets.from_dataset_json(load_dataset_json(described)).targets}
    return replace(evaluation, labels={key: names.get(key, name) for key, name in evaluation.labels.items()})


def _write(tables: dict[str, Table], remarks: list[str], folder: Path) -> None:
    notes = [f"{remark}\n" for remark in remarks]
    page = "\n".join(["# Comparison\n", *(table.as_markdown() for table in tables.values()), *notes])
    write_text(page, folder / "comparison.md")
    for name, table in tables.items():
        write_text(table.as_csv(), folder / f"{name}.csv")
        write_text(table.as_latex(), folder / f"{name}.tex")
