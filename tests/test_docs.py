"""Links and commands in the documentation exist, and the commands that take seconds run.

A block of commands below an (invisible) ``<!-- run -->`` is run, in the order of the page, in a folder with a tiny
dataset, each command with the arguments that ``SMALLER`` adds to it.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from nnunet_transformers import cli
from nnunet_transformers.architectures import create_network
from nnunet_transformers.discovery import CLASSES
from nnunet_transformers.runs.options import SHORT
from nnunet_transformers.trainers.trainer import TransformerTrainer
from nnunet_transformers.weights import EncoderCheckpoint, encoder_weights
from tests.conftest import EXAMPLES, set_nnunet_folders, write_dataset
from tests.packages import install, site_folder

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
PAGES += [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks/results").glob("*.md"))]
# but for the page of commands that are wrong on purpose
SOUND = [page for page in PAGES if page.name != "mistakes.md"]
BLOCK = re.compile(r"^<!-- run -->\n\n((?:    .*\n)+)", flags=re.MULTILINE)
RUN = [page for page in PAGES if BLOCK.search(page.read_text())]
DATASET = "Dataset004_Hippocampus"
SMALLER = {
    "nnUNetv2_plan_and_preprocess": "-np 1 -npfp 1",
    "nnUNetv2_extract_fingerprint": "-np 1",
    "nnUNetv2_preprocess": "-np 1",
    "nnUNetv2_train": "-device cpu",
    "nnUNetv2_predict": "-device cpu -npp 1 -nps 1",
    "nnunet-transformers predict": "-device cpu -npp 0 -nps 0",
    "nnunet-transformers pretrain prepare": "--processes 1",
    "nnunet-transformers evaluate": "--processes 0",
    "nnunet-transformers compare": "--processes 0",
    "nnunet-transformers pretrain fit": "--trainer.max_epochs 1 --trainer.accumulate_grad_batches 1 "
    "--trainer.accelerator cpu --data.init_args.batch_size 2 --data.init_args.samples_per_epoch 2 "
    "--data.init_args.num_workers 0",
}
COMMAND = re.compile(r"nnunet-transformers ((?:[^`\n]|\\\n)+)")


def heading_anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in heading_anchors(file), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", SOUND, ids=lambda page: page.name)
def test_commands(page):
    root = typer.main.get_command(cli.app)
    for given in COMMAND.findall(page.read_text()):
        command = root
        words = [w for w in re.split(r"[\s|]+", given.replace("\\\n", " ")) if w]
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        if command is root:
            assert not re.match(r"[a-z]+-?[a-z]* (--|-[a-z] )", given), f"{page.name}: no command in {given!r}"
            continue
        known = {option for parameter in command.params for option in parameter.opts}
        if command is root.commands["predict"]:
            known |= passed_options()
        if command.name == "fit":
            known |= {f"--{name}" for name in SHORT}
        for word in words:
            option = word.split("=")[0]
            # what is Lightning's has a dot in its name
            if re.fullmatch(r"--?[a-z][\w-]*", option) and option != "--ckpt_path":
                assert option in known, f"{page.name}: {command.name} has no {option}"


def passed_options() -> set[str]:
    """What `predict` passes on to nnU-Net's two commands."""
    helps = (CliRunner().invoke(cli.app, ["predict", *model, "-h"]).output for model in ((), ("-m", "MODEL")))
    return {option for text in helps for option in re.findall(r"(?<!\S)--?[a-z]\w*", text)}


@pytest.mark.parametrize("page", SOUND, ids=lambda page: page.name)
def test_trainers_and_planners(page):
    stock = {"nnUNetTrainer", "nnUNetTrainerBenchmark_5epochs", "nnUNetPlannerResEncM", "nnUNetPlannerResEncL"}
    examples = {"nnUNetTrainerMine", "nnUNetTrainerMyNet", "nnUNetPlannerMyNet"}
    for name in re.findall(r"\bnnUNet(?:Trainer|Planner)(?:_?[^\W_])*", page.read_text()):
        assert name in CLASSES or name in stock | examples, f"{page.name} names {name}"


def test_errors_are_those_of_the_source():
    texts = [text for file in (ROOT / "nnunet_transformers").rglob("*.py") for text in message_texts(file)]
    quoted = re.findall(r"^\| `(.+?)` \|", (ROOT / "docs/errors.md").read_text(), flags=re.MULTILINE)
    assert len(quoted) > 40
    vague, unknown = [], []
    for message in quoted:
        parts = [part.strip() for part in message.split("...")]
        pattern = re.compile(".*".join(map(re.escape, parts)), flags=re.DOTALL)
        # a short quotation would also match other messages
        vague += [message] if sum(map(len, parts)) < 13 else []
        unknown += [] if any(pattern.search(text) for text in texts) else [message]
    assert not vague, "quote more of these messages"
    assert not unknown, "no message in the source is like these"


def message_texts(file: Path) -> list[str]:
    """Strings of a source file but for docstrings; "..." is where something is put in."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and id(node) not in docstrings]
    joined = [node.values for node in nodes if isinstance(node, ast.JoinedStr)]
    texts += ["".join(v.value if isinstance(v, ast.Constant) else "..." for v in values) for values in joined]
    return [text for text in texts if isinstance(text, str)]


def call(command: str) -> None:
    """Run a command of this environment in this process, smaller."""
    program, *arguments = words = [os.path.expandvars(word) for word in shlex.split(command)]
    more = [word for start, extra in SMALLER.items() if f"{command} ".startswith(f"{start} ") for word in extra.split()]
    (entry_point,) = entry_points(group="console_scripts", name=program)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sys, "argv", [program, *arguments, *more])
        # nnU-Net plans with its number of threads, and here trains with none
        monkeypatch.setenv("nnUNet_n_proc_DA", "0" if program == "nnUNetv2_train" else "1")
        try:
            entry_point.load()()
        except SystemExit as error:
            assert not error.code, f"{shlex.join(words)} ended with {error.code}"


def run_line(line: str, monkeypatch: pytest.MonkeyPatch, site: Path) -> None:
    """Run a line of a page: a command of nnU-Net or ours, an assignment, an installation into a folder, or Python."""
    program, *words = shlex.split(line)
    if program == "export":
        for name, _, value in (os.path.expandvars(word).partition("=") for word in words):
            monkeypatch.setenv(name, value)
            if name == "PYTHONPATH":
                monkeypatch.syspath_prepend(value)
    elif program == "pip":
        install(Path(words[1]), site)
    elif program == "python":
        exec(words[1], {"__name__": "__main__"})
    else:
        call(line)


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A folder to work in with nnU-Net's three, a dataset that is planned, and an encoder for it."""
    folder = tmp_path_factory.mktemp("docs")
    dataset = write_dataset(folder / "raw", DATASET, cases=5)
    (dataset / "imagesTs").mkdir()
    shutil.copy(dataset / "imagesTr/ball_0_0000.nii.gz", dataset / "imagesTs/test_0_0000.nii.gz")
    shutil.copytree(EXAMPLES, folder / "docs/examples", ignore=shutil.ignore_patterns("__pycache__"))
    overrides = {"patch_embed_stride": 2, "num_stages": 3, "window_sizes": 4, "norm_placement": "pre"}
    encoder = create_network("qt_unet_tiny", 1, 2, (16, 16, 16), **overrides)
    EncoderCheckpoint(
        encoder_weights(encoder), "qt_unet_tiny", (16, 16, 16), 1, overrides=overrides, method="QTSSL"
    ).save(folder / "encoder.pth")
    with pytest.MonkeyPatch.context() as monkeypatch:
        enter(folder, monkeypatch)
        call("nnUNetv2_plan_and_preprocess -d 4 -pl nnUNetPlannerQTUNetT --no_pp")
    return folder


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder that holds nnU-Net's."""
    monkeypatch.chdir(set_nnunet_folders(folder, monkeypatch))


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_commands_run(page, planned, examples, tmp_path, monkeypatch):
    shutil.copytree(planned, tmp_path / "work")
    enter(tmp_path / "work", monkeypatch)
    monkeypatch.setattr(TransformerTrainer, "default_iterations", 1)
    monkeypatch.setattr(TransformerTrainer, "default_epochs", 1)
    lines = [line for block in BLOCK.findall(page.read_text()) for line in block.replace("\\\n", " ").splitlines()]
    with site_folder(tmp_path / "site") as site:
        for line in lines:
            if "pretrain fit" in line:
                # the one for pages that only load it; a run does not replace it
                Path("encoder.pth").unlink(missing_ok=True)
            run_line(line.strip(), monkeypatch, site)
