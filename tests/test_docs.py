"""Links and commands in the documentation exist, and the commands that take seconds run.

A block of commands below an (invisible) ``<!-- run -->`` is run, in the order of the page, in a folder with a tiny
dataset, each command with the arguments that ``SMALLER`` adds to it.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import shutil
import sys
from contextlib import redirect_stdout, suppress
from functools import cache
from importlib.metadata import entry_points
from io import StringIO
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
from tests.cli.test_extras import PROJECT
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
ROOT_COMMAND = typer.main.get_command(cli.app)
OPTION = re.compile(r"--?[a-z][\w-]*")
# commands in messages: in backticks, or followed by what is no part of a command; "..." is where something is put in
OURS = re.compile(
    r"`nnunet-transformers ([^`]+)`|nnunet-transformers ((?:[a-z][\w-]* )*[a-z][\w-]*(?: --?[a-z][\w-]*)+)"
)
STOCK = re.compile(r"(nnUNetv2_\w+)((?: (?:\.\.\.|--?[a-z][\w-]*|[A-Z\d]\w*|\d\w*))*)")
EXTRA = re.compile(r"nnunet-transformers\[(\w+)\]")
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


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_pages_begin_with_purpose_and_command(page):
    _, _, purpose, *lines = page.read_text().splitlines()[:12]
    assert re.match(r"\S", purpose)
    assert any(re.match(r"    \S", line) for line in lines)


@pytest.mark.parametrize("page", SOUND, ids=lambda page: page.name)
def test_commands(page):
    for given in COMMAND.findall(page.read_text()):
        assert (complaint := complaint_of(given)) is None, f"{page.name}: {complaint}"


def complaint_of(given: str) -> str | None:
    """What is wrong with the words of a command of ours; None if it has a command's name and its options."""
    command = ROOT_COMMAND
    words = [w for w in re.split(r"[\s|]+", given.replace("\\\n", " ")) if w]
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    if command is ROOT_COMMAND:
        return f"no command in {given!r}" if re.match(r"[a-z]+-?[a-z]* (--|-[a-z] )", given) else None
    known = {option for parameter in command.params for option in parameter.opts}
    if command is ROOT_COMMAND.commands["predict"]:
        known |= passed_options()
    if command.name == "fit":
        known |= {f"--{name}" for name in SHORT}
    for word in words:
        option = word.split("=")[0]
        # what is Lightning's has a dot in its name
        if OPTION.fullmatch(option) and option not in ("--ckpt_path", "--help") and option not in known:
            return f"{command.name} has no {option}"
    return None


@cache
def passed_options() -> set[str]:
    """What `predict` passes on to nnU-Net's two commands."""
    helps = (CliRunner().invoke(cli.app, ["predict", *model, "-h"]).output for model in ((), ("-m", "MODEL")))
    return {option for text in helps for option in re.findall(r"(?<!\S)--?[a-z]\w*", text)}


def test_the_afternoon_is_that_of_its_script():
    """The page has the script's steps and commands, in their order, and no path of the machine that ran it."""
    specification = importlib.util.spec_from_file_location("afternoon", ROOT / "docs" / "afternoon.py")
    sys.modules["afternoon"] = script = importlib.util.module_from_spec(specification)  # of which dataclasses ask
    specification.loader.exec_module(script)
    page = script.PAGE.read_text()
    commands = [c.replace("CHECKOUT", "~/nnunet-transformers") for _, step in script.STEPS for c in step]
    assert re.findall(r"^    \$ (.*)$", page, flags=re.MULTILINE) == commands
    assert re.findall(r"^## (.*)$", page, flags=re.MULTILINE) == [title for title, _ in script.STEPS]
    assert not re.search(r"(?<![\w~.\]])/(?:home|root|tmp|work|usr)\b", page)
    assert not script.NOISE.search(page)


@pytest.mark.parametrize("page", SOUND, ids=lambda page: page.name)
def test_trainers_and_planners(page):
    stock = {"nnUNetTrainer", "nnUNetTrainerBenchmark_5epochs"}
    stock |= {"nnUNetPlanner", "nnUNetPlannerResEncM", "nnUNetPlannerResEncL"}
    examples = {"nnUNetTrainerMine", "nnUNetTrainerMyNet", "nnUNetPlannerMyNet"}
    for name in re.findall(r"\bnnUNet(?:Trainer|Planner)(?:_?[^\W_])*", page.read_text()):
        assert name in CLASSES or name in stock | examples, f"{page.name} names {name}"


def test_remedies_are_commands():
    """Every command that a message names, of ours, nnU-Net's or pip's, is there and has the options."""
    extras = PROJECT["optional-dependencies"]
    ours, stock, wrong = 0, 0, []
    for text in source_texts():
        for quoted, plain in OURS.findall(text):
            ours += 1
            wrong += [complaint] if (complaint := complaint_of(quoted or plain)) else []
            first = (quoted or plain).split()[0]
            wrong += [] if first in (*ROOT_COMMAND.commands, "--help", "...") else [f"no command {first} in {text!r}"]
        for program, options in STOCK.findall(text):
            stock += 1
            given = set(OPTION.findall(options))
            wrong += [f"{program} has no {given - known}"] if given - (known := options_of(program)) else []
        wrong += [f"no extra {extra}" for extra in EXTRA.findall(text) if extra not in {*extras, "..."}]
    assert not wrong
    assert min(ours, stock) > 20


@cache
def options_of(program: str) -> set[str]:
    """Options of one of nnU-Net's commands, as its help lists them."""
    (entry_point,) = entry_points(group="console_scripts", name=program)
    printed = StringIO()
    with pytest.MonkeyPatch.context() as monkeypatch, redirect_stdout(printed), suppress(SystemExit):
        monkeypatch.setattr(sys, "argv", [program, "--help"])
        entry_point.load()()
    return set(OPTION.findall(printed.getvalue()))


@cache
def source_texts() -> list[str]:
    """All strings of the package's source but for docstrings."""
    return [text for file in (ROOT / "nnunet_transformers").rglob("*.py") for text in message_texts(file)]


def test_errors_are_those_of_the_source():
    texts = source_texts()
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
