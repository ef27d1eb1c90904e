"""Mutation test: change the code in one place, run its tests, and list the changes that no test notices.

Mutants are cosmic-ray's, and statements left out. None is ever written to a file: a process that has imported torch,
nnU-Net and what else takes seconds, but nothing of this package, is forked for each; the fork imports the mutated
module from memory and runs pytest. All of it happens in a copy of the commit, made for the run.

    pip install cosmic-ray
    python benchmarks/mutation.py --sample 60 --jobs 2     # results/mutation.jsonl; goes on where it was stopped
    python benchmarks/mutation.py --again                  # the survivors, after a change of tests
    python benchmarks/mutation.py --report                 # results/mutation.md

A mutant in the tests' own process only is a mutant: tests that start another Python see the code as it is. Survivors
that no test should notice are explained in mutation_explained.yaml.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import gc
import hashlib
import importlib.util
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from importlib.machinery import ModuleSpec, SourceFileLoader
from itertools import chain
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "nnunet_transformers"
EXPLAINED = ROOT / "benchmarks/mutation_explained.yaml"
# what takes seconds to import, and is the same for every mutant
PRELOADED = (
    "SimpleITK",
    "batchgeneratorsv2",
    "blosc2",
    "dynamic_network_architectures.architectures.primus",
    "hypothesis",
    "jsonargparse",
    "lightly.loss",
    "lightly.models.modules",
    "lightly.models.utils",
    "lightly.utils.scheduler",
    "_hypothesis_pytestplugin",
    "_pytest.debugging",
    "lightning",
    "lightning.pytorch.cli",
    "matplotlib.figure",
    "matplotlib.pyplot",
    "nibabel",
    "nnunetv2",
    "nnunetv2.experiment_planning.plan_and_preprocess_api",
    "nnunetv2.inference.predict_from_raw_data",
    "nnunetv2.run.run_training",
    "onnx",
    "pandas",
    "pytest",
    "rich",
    "safetensors",
    "scipy.ndimage",
    "scipy.stats",
    "sklearn.metrics",
    "timm",
    "timm.models.vision_transformer",
    "tokenizers",
    "torch",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "torchvision",
    "transformers",
    "transformers.models.bert.modeling_bert",
    "typer",
)


@dataclass(frozen=True)
class Target:
    """Source files, and the tests that are to notice changes of them: the fast ones, each file in a minute at most.

    Attributes:
        folder: name of the sample that the files belong to.
        pattern: of the files, below the package.
        tests: arguments of pytest.
    """

    folder: str
    pattern: str
    tests: tuple[str, ...]


# the first pattern that fits a file counts
TARGETS = (
    Target("losses", "pretraining/losses/*.py", ("tests/pretraining/test_losses.py",)),
    Target(
        "methods",
        "pretraining/methods/mgca.py",
        ("tests/pretraining/test_defaults.py", "tests/pretraining/test_mgca.py"),
    ),
    Target(
        "methods",
        "pretraining/methods/alice.py",
        ("tests/pretraining/test_defaults.py", "tests/pretraining/test_alice.py"),
    ),
    Target(
        "methods",
        "pretraining/methods/mae.py",
        ("tests/pretraining/test_defaults.py", "tests/pretraining/test_mae.py"),
    ),
    Target(
        "methods",
        "pretraining/methods/qt_ssl.py",
        ("tests/pretraining/test_defaults.py", "tests/pretraining/test_qt_ssl.py"),
    ),
    Target(
        "methods",
        "pretraining/methods/unimiss.py",
        ("tests/pretraining/test_defaults.py", "tests/pretraining/test_unimiss.py"),
    ),
    Target(
        "methods",
        "pretraining/methods/anatomical_embedding.py",
        ("tests/pretraining/test_defaults.py", "tests/pretraining/test_matching.py"),
    ),
    Target(
        "methods",
        "pretraining/methods/volume_fusion.py",
        ("tests/pretraining/test_defaults.py", "tests/pretraining/test_volume_fusion.py"),
    ),
    Target("methods", "pretraining/methods/*.py", ("tests/pretraining",)),
    Target(
        "trainers",
        "trainers/trainer.py",
        (
            "tests/trainers/test_defaults.py",
            "tests/trainers/test_steps.py",
            "tests/trainers/test_recipe.py",
            "tests/trainers/test_precision.py",
            "tests/trainers/test_training.py::TestStoredData",
            "tests/trainers/test_initialisation.py",
        ),
    ),
    Target(
        "trainers",
        "trainers/initial_weights.py",
        ("tests/trainers/test_initialisation.py",),
    ),
    Target("trainers", "trainers/loaded_encoder.py", ("tests/trainers/test_steps.py",)),
    Target("trainers", "trainers/pretrained.py", ("tests/trainers/test_initialisation.py",)),
    Target("trainers", "trainers/precision.py", ("tests/trainers/test_precision.py",)),
    Target("trainers", "trainers/benchmark.py", ("tests/trainers/test_benchmark.py",)),
    Target(
        "trainers",
        "trainers/*.py",
        ("tests/trainers/test_defaults.py", "tests/trainers/test_steps.py", "tests/trainers/test_recipe.py"),
    ),
    Target("plans", "plans/tiling.py", ("tests/plans/test_tiling.py", "tests/plans/test_planner.py")),
    Target("plans", "plans/memory.py", ("tests/plans/test_memory.py",)),
    Target("plans", "plans/presets.py", ("tests/plans/test_presets.py",)),
    Target("plans", "plans/planned.py", ("tests/plans/test_planned.py", "tests/plans/test_presets.py")),
    Target(
        "plans",
        "plans/plan_files.py",
        ("tests/plans/test_planned.py", "tests/plans/test_presets.py", "tests/cli/test_presets.py"),
    ),
    Target("plans", "plans/stored_data.py", ("tests/plans/test_stored_data.py", "tests/plans/test_planner.py")),
    Target("plans", "plans/changed_patch.py", ("tests/plans/test_changed_patch.py",)),
    Target("plans", "plans/gate.py", ("tests/plans/test_gate.py",)),
    Target("plans", "plans/*.py", ("tests/plans/test_planner.py",)),
    Target("weights", "weights/transfer.py", ("tests/weights/test_transfer.py", "tests/weights/test_encoder.py")),
    Target(
        "methods",
        "pretraining/encoder_pretraining.py",
        ("tests/pretraining/test_qt_ssl.py", "tests/pretraining/test_unimiss.py::TestSteps"),
    ),
    Target("weights", "weights/adapters.py", ("tests/weights/test_transfer.py", "tests/weights/test_encoder.py")),
    Target("weights", "weights/sealed.py", ("tests/weights", "tests/test_stored_files.py")),
)


@dataclass(frozen=True)
class Mutant:
    """A change of one file.

    Attributes:
        folder: sample that it belongs to.
        file: below the repository.
        line: of the change, from 1.
        operator: of cosmic-ray, or "remove statement".
        occurrence: of the operator in the file.
        before, after: the lines that differ.
        source: hash of the file that was changed.
    """

    folder: str
    file: str
    line: int
    operator: str
    occurrence: int
    before: str
    after: str
    source: str


def without_text(code: str) -> str:
    """What of a module is executed: no annotations, which are not evaluated here, and no docstrings.

    Raises:
        SyntaxError: if it is no Python.
    """
    tree = ast.parse(code)
    for node in ast.walk(tree):
        for attribute in ("annotation", "returns"):
            if getattr(node, attribute, None) is not None:
                setattr(node, attribute, ast.Constant(0))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(0)
    return ast.dump(tree)


def removable(code: str) -> list[ast.stmt]:
    """Statements without which a module can still run: calls, additions in place, and names that get another value."""
    found: list[ast.stmt] = []
    assigned: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Assign) and all(isinstance(target, ast.Name) for target in node.targets):
            names = {target.id for target in node.targets if isinstance(target, ast.Name)}
            read = {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)}
            if names & (read | assigned):
                found.append(node)
            assigned |= names
        elif isinstance(node, ast.AugAssign | ast.Delete) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        ):
            found.append(node)
    return found


def remove_statement(code: str, occurrence: int) -> str:
    """The module with ``pass`` in the place of a statement, on as many lines."""
    statement, lines = removable(code)[occurrence], code.splitlines(keepends=True)
    first, last = statement.lineno - 1, statement.end_lineno or statement.lineno
    indent = lines[first][: statement.col_offset]
    return "".join([*lines[:first], f"{indent}pass\n", *["\n"] * (last - first - 1), *lines[last:]])


def mutated(code: str, operator: str, occurrence: int) -> str | None:
    """The code of a mutant; None if the operator leaves it as it is."""
    if operator == "remove statement":
        return remove_statement(code, occurrence)
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    return mutate_code(code, get_operator(operator)(), occurrence)


def places(code: str) -> dict[tuple, list[tuple[str, int]]]:
    """Operators and occurrences for each place of a module: a place is drawn first, as some have a dozen operators."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    found: dict[tuple, list[tuple[str, int]]] = defaultdict(list)
    nodes = list(ast_nodes(get_ast(code)))
    for name in operator_names():
        operator_class = get_operator(name)
        if operator_class.arguments():
            continue
        positions = chain.from_iterable(operator_class().mutation_positions(node) for node in nodes)
        for occurrence, position in enumerate(positions):
            place = (*position[0], name.partition("_")[0])
            found[place].append((name, occurrence))
    for occurrence, statement in enumerate(removable(code)):
        found[(statement.lineno, statement.col_offset, "remove")].append(("remove statement", occurrence))
    return found


def target_of(file: str, targets: Sequence[Target]) -> Target | None:
    """The first whose pattern fits."""
    return next((t for t in targets if fnmatch(file, f"{PACKAGE}/{t.pattern}")), None)


def mutant_of(folder: str, file: str, code: str, operator: str, occurrence: int) -> Mutant | None:
    """The mutant of an operator's occurrence in the code of a file; None if it is no Python or executes the same."""
    changed = mutated(code, operator, occurrence)
    with contextlib.suppress(SyntaxError):
        if changed is None or without_text(changed) == without_text(code):
            return None
        compile(changed, file, "exec")
        old, new = code.splitlines(), changed.splitlines()
        opcodes = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
        differing = [lines for tag, *lines in opcodes if tag != "equal"]
        (first, _, new_first, _), (_, end, _, new_end) = differing[0], differing[-1]
        before, after = "\n".join(old[first:end]), "\n".join(new[new_first:new_end]).rstrip()
        digest = hashlib.sha256(code.encode()).hexdigest()[:12]
        return Mutant(folder, file, first + 1, operator, occurrence, before, after, digest)
    return None


def draw(root: Path, folder: str, number: int, seed: int) -> list[Mutant]:
    """The mutants of a folder, in random order, the same for the same files.

    Args:
        root: of the repository.
        folder: of ``TARGETS``.
        number: of mutants; fewer if there are no more places.
        seed: of the order.
    """
    files = sorted(str(path.relative_to(root)) for path in (root / PACKAGE).rglob("*.py"))
    codes = {f: (root / f).read_text() for f in files if (t := target_of(f, TARGETS)) and t.folder == folder}
    rng = random.Random(f"{folder} {seed}")
    spots = [(f, key, options) for f, code in codes.items() for key, options in sorted(places(code).items())]
    rng.shuffle(spots)
    mutants: list[Mutant] = []
    for file, _, options in spots:
        if len(mutants) == number:
            break
        if drawn := mutant_of(folder, file, codes[file], *rng.choice(options)):
            mutants.append(drawn)
    return mutants


def found_again(root: Path, entry: dict) -> Mutant | None:
    """An earlier mutant in the code of today: the same change, nearest to the line where it was.

    Args:
        root: of the repository.
        entry: of the results.
    """
    path, folder, file, operator = root / entry["file"], entry["folder"], entry["file"], entry["operator"]
    if not path.is_file():
        return None
    code = path.read_text()
    occurrences = [number for options in places(code).values() for name, number in options if name == operator]
    mutants = filter(None, (mutant_of(folder, file, code, operator, number) for number in occurrences))
    same = [twin for twin in mutants if change(asdict(twin)) == change(entry)]
    return min(same, key=lambda twin: abs(twin.line - entry["line"]), default=None)


class MutantLoader(SourceFileLoader):
    """Loads one module from memory."""

    def __init__(self, name: str, path: str, code: str) -> None:
        super().__init__(name, path)
        self.code = code

    def get_code(self, fullname: str):
        return compile(self.code, self.path, "exec")


class MutantFinder:
    """Finds that module before Python finds its file."""

    def __init__(self, file: Path, code: str) -> None:
        self.is_package = file.name == "__init__.py"
        parts = file.parent.parts if self.is_package else (*file.parent.parts, file.stem)
        self.name, self.path, self.code = ".".join(parts), str(file.absolute()), code

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        loader = MutantLoader(name, self.path, self.code)
        return importlib.util.spec_from_file_location(
            name,
            self.path,
            loader=loader,
            submodule_search_locations=[str(Path(self.path).parent)] if self.is_package else None,
        )


def run_forked(tests: Sequence[str], timeout: float, file: str = "", code: str | None = None) -> tuple[int | None, str]:
    """Run tests in a fork of this process.

    Args:
        tests: arguments of pytest.
        timeout: seconds of processor time, or ten times as many on the clock, after which the fork and all that it
            started is killed: other work on the machine makes no mutant slow.
        file: that is mutated, below the current folder.
        code: of the mutant; None runs the tests as they are.

    Returns:
        pytest's exit status, None after the timeout, and the end of its output.
    """
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "output"
        child = os.fork()
        if not child:
            status = 70
            try:
                os.setsid()
                resource.setrlimit(resource.RLIMIT_CPU, (int(timeout) + 1, resource.RLIM_INFINITY))
                descriptor = os.open(output, os.O_WRONLY | os.O_CREAT)
                os.dup2(descriptor, 1)
                os.dup2(descriptor, 2)
                if code is not None:
                    sys.meta_path.insert(0, MutantFinder(Path(file), code))
                import pytest

                options = [
                    "-x",
                    "-q",
                    "-p",
                    "no:cacheprovider",
                    "-p",
                    "no:xdist",
                    "--no-header",
                    f"--basetemp={scratch}/pytest",
                ]
                status = int(pytest.main([*options, *tests]))
                sys.stdout.flush()
            finally:
                os._exit(status)
        end = time.monotonic() + 10 * timeout
        exit_code: int | None = None
        while exit_code is None and time.monotonic() < end:
            found, raw = os.waitpid(child, os.WNOHANG)
            exit_code = os.waitstatus_to_exitcode(raw) if found else None
            if not found:
                time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if exit_code is None:
            os.waitpid(child, 0)
        elif exit_code == -signal.SIGXCPU:
            exit_code = None
        return exit_code, output.read_text(errors="replace")[-3000:] if output.is_file() else ""


def preload() -> None:
    """Import what every fork needs, and nothing that is mutated."""
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    # the collections of the forks then pass over all of this, and share its memory
    gc.collect()
    gc.freeze()
    taken = [name for name in sys.modules if name.startswith(f"{PACKAGE}.") and not name.endswith(".discovery")]
    if taken:
        raise RuntimeError(f"imported before it could be mutated: {', '.join(taken)}")


def check_tests(tests: Sequence[str]) -> float:
    """The seconds that tests take without a mutant.

    Raises:
        RuntimeError: if they fail.
    """
    start = time.monotonic()
    status, output = run_forked(tests, 1800)
    if status != 0:
        raise RuntimeError(f"{' '.join(tests)} fails without a mutant (status {status}):\n{output}")
    return time.monotonic() - start


def test_mutants(root: Path, mutants: Sequence[Mutant], results: Path, commit: str, select: str = "") -> None:
    """Test mutants and append a line for each to the results.

    Tests run without a mutant first, unless all mutants of theirs have survived before: then the one that notices a
    mutant runs without it.

    Args:
        root: of the repository.
        mutants: to test.
        results: file to append to.
        commit: of the code.
        select: pytest's ``-k``; what the selected tests do not notice is not recorded.

    Raises:
        RuntimeError: if tests fail without a mutant.
    """
    preload()
    survived_in = {change(entry): entry["seconds"] for entry in read_results(results) if entry["outcome"] == "survived"}
    seconds: dict[str, float] = {}
    for number, mutant in enumerate(mutants, 1):
        target = target_of(mutant.file, TARGETS)
        assert target is not None, mutant.file
        known = survived_in.get(change(asdict(mutant)))
        for tests in target.tests:
            if known is None and tests not in seconds:
                seconds[tests] = check_tests([tests])
                print(f"{tests}: {seconds[tests]:.1f} s without a mutant", flush=True)
        limit = 20 + 6 * (known or sum(seconds[tests] for tests in target.tests))
        code = mutated((root / mutant.file).read_text(), mutant.operator, mutant.occurrence)
        start = time.monotonic()
        status, output = run_forked([*target.tests, "-k", select], limit, mutant.file, code)
        if select and status in (0, 5):
            print(f"{number}/{len(mutants)} not noticed by {select}: {mutant.file}:{mutant.line}", flush=True)
            continue
        if status == 5 or status == 70:
            raise RuntimeError(f"no tests were run for {mutant.file} (status {status}):\n{output}")
        outcome = "timeout" if status is None else "survived" if status == 0 else "killed"
        failed = next((line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
        by = failed.partition(" - ")[0]
        if known and outcome == "killed":
            check_tests([by.split(" ", 1)[1]] if by else target.tests)
        entry = asdict(mutant) | {
            "outcome": outcome,
            "by": by,
            "seconds": round(time.monotonic() - start, 2),
            "commit": commit,
        }
        with open(results, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        print(f"{number}/{len(mutants)} {outcome} {mutant.file}:{mutant.line} {entry['seconds']} s", flush=True)


def read_results(path: Path) -> list[dict]:
    """The lines of a results file; a line that was cut off by a kill is left out."""
    entries = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            entries.append(json.loads(line))
    return entries


def key(entry: dict) -> tuple:
    """Of a mutant of one version of a file, whichever run it was tested in."""
    return tuple(entry[name] for name in ("file", "source", "operator", "occurrence"))


def change(entry: dict) -> tuple:
    """The file and what is changed in it, in whichever version; indentation does not count."""
    return tuple(entry[name].strip() for name in ("file", "operator", "before", "after"))


def current_results(path: Path, root: Path) -> list[dict]:
    """The last result of each change of code that is still there."""
    entries = {change(entry): entry for entry in read_results(path)}.values()
    codes = {file: (root / file).read_text() for file in {e["file"] for e in entries} if (root / file).is_file()}
    return [entry for entry in entries if entry["before"] in codes.get(entry["file"], "")]


def explanations(path: Path, entries: Sequence[dict]) -> dict[tuple, str]:
    """Why no test should notice a survivor, by its ``change``.

    Raises:
        ValueError: if one is explained that is no survivor.
    """
    explained = {change(entry): entry["why"] for entry in yaml.safe_load(path.read_text())}
    survivors = {change(entry) for entry in entries if entry["outcome"] == "survived"}
    if strangers := sorted(explained.keys() - survivors):
        raise ValueError(f"{path} explains {' | '.join(strangers[0])}, which is no survivor; remove it")
    return explained


@contextlib.contextmanager
def copy_of_commit(commit: str) -> Iterator[Path]:
    """A folder with the files of a commit, so that a long run is of one version whatever happens to the checkout."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        yield Path(folder)


def run(arguments: argparse.Namespace) -> None:
    """Draw mutants, leave out those that are tested already, and test the others in processes of their own."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", arguments.commit], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()
    results = arguments.output.resolve()
    results.parent.mkdir(parents=True, exist_ok=True)
    with copy_of_commit(commit) as root:
        folders = arguments.folders or list(dict.fromkeys(target.folder for target in TARGETS))
        if arguments.again:
            entries = current_results(results, root)
            explained = explanations(EXPLAINED, entries)
            survivors = [e for e in entries if e["outcome"] == "survived" and change(e) not in explained]
            chosen = [e for e in survivors if e["folder"] in folders and fnmatch(e["file"], arguments.files)]
            found = (found_again(root, e) for e in chosen)
            mutants = [m for m in found if m]
        else:
            known = {key(entry) for entry in read_results(results)}
            drawn = chain.from_iterable(draw(root, folder, arguments.sample, arguments.seed) for folder in folders)
            mutants = [m for m in drawn if fnmatch(m.file, arguments.files) and key(asdict(m)) not in known]
        print(f"{len(mutants)} mutants of {commit} in {', '.join(folders)}", flush=True)
        environment = os.environ | {
            "PYTHONPATH": str(root),
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "CI": "true",  # the same examples of hypothesis each time
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        start, number, processes = time.monotonic(), len(read_results(results)), []
        for job in range(arguments.jobs):
            part = root / f"mutants_{job}.json"
            part.write_text(json.dumps([asdict(m) for m in mutants[job :: arguments.jobs]]))
            command = [sys.executable, __file__, "--worker", str(part), "--output", str(results), "--commit", commit]
            command += ["--select", arguments.select]
            processes.append(subprocess.Popen(command, cwd=root, env=environment))
        try:
            codes = [process.wait() for process in processes]
        finally:
            for process in processes:
                process.kill()
        minutes = (time.monotonic() - start) / 60
        tested = len(read_results(results)) - number
        print(f"{tested} mutants in {minutes:.1f} minutes, {tested / minutes:.1f} a minute")
    if any(codes):
        sys.exit(1)


def report(results: Path, page: Path) -> None:
    """Write what was killed in each folder, and every survivor."""
    entries = current_results(results, ROOT)
    explained = explanations(EXPLAINED, entries)
    lines = [
        "# Mutation test",
        "",
        "Random changes of the code, one at a time, and the tests of the changed file: `benchmarks/mutation.py`.",
        f"Commits {', '.join(sorted({entry['commit'] for entry in entries}))}.",
        "Changes of code that has gone are left out; explained are survivors that no test should notice.",
        "",
        "| folder | mutants | killed | by timeout | survived | explained | killed of all | of the others | median s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for folder in sorted({entry["folder"] for entry in entries}):
        own = [entry for entry in entries if entry["folder"] == folder]
        count = Counter(entry["outcome"] for entry in own)
        known = len([entry for entry in own if change(entry) in explained])
        noticed = len(own) - count["survived"]
        median = sorted(entry["seconds"] for entry in own)[len(own) // 2]
        counts = (len(own), count["killed"], count["timeout"], count["survived"], known)
        row = (folder, *counts, f"{noticed / len(own):.0%}", f"{noticed / (len(own) - known):.0%}", f"{median:.1f}")
        lines.append(f"| {' | '.join(map(str, row))} |")
    lines += ["", "## Survivors", ""]
    for entry in sorted(entries, key=lambda entry: (entry["file"], entry["line"])):
        if entry["outcome"] == "survived":
            changed = [f"- {line}" for line in entry["before"].splitlines()]
            changed += [f"+ {line}" for line in entry["after"].splitlines()]
            lines += [f"{entry['file']}:{entry['line']}, {entry['operator']}", "", "```diff", *changed, "```", ""]
            lines += [explained.get(change(entry), "Not explained."), ""]
    page.write_text("\n".join(lines).rstrip() + "\n")
    print("\n".join(lines[6 : lines.index("## Survivors")]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="*", help="samples to test, by default all")
    parser.add_argument("--files", default="*", help="pattern of files to test, of those that are drawn")
    parser.add_argument("--sample", type=int, default=60, help="mutants of each folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--commit", default="HEAD")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/mutation.jsonl")
    parser.add_argument("--again", action="store_true", help="test what survived unexplained, and nothing else")
    parser.add_argument("--select", default="", help="with --again, run these tests only: an expression of pytest's -k")
    parser.add_argument("--report", action="store_true", help="write the page of the results and stop")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        sys.path.pop(0)  # this folder, whose modules have names of others
        mutants = [Mutant(**entry) for entry in json.loads(arguments.worker.read_text())]
        test_mutants(Path.cwd(), mutants, arguments.output, arguments.commit, arguments.select)
        os._exit(0)  # what is imported says much when it is taken down
    elif arguments.report:
        report(arguments.output, arguments.output.with_suffix(".md"))
    else:
        run(arguments)


if __name__ == "__main__":
    main()
