"""Damage files of every kind at random places, and count what their readers make of them.

    python benchmarks/mutate_files.py                              # 10,000 of each kind: results/mutate_files.json, .md
    python benchmarks/mutate_files.py --mutations 500 --kinds encoder state

A damaged file must be refused in one line that names it, or give the same content. Where a checksum covers the content,
none may give another one; where there is no checksum, as in JSON, some do, which nobody can know. Any other error would
be a traceback on a user's screen. Forged files, whose checksums are right, are refused or become other content, and
nothing that they name is executed. Mutations are drawn from a seed, so that a run can be repeated.
"""

from __future__ import annotations

import argparse
import lzma
import random
import shutil
import signal
import tempfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from functools import cache, partial
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from forged_pickles import check_inert, forge, watched

from nnunet_transformers._atomic import write_json, write_text
from nnunet_transformers._reading import read_json
from nnunet_transformers.plans.plan_files import load_plans
from nnunet_transformers.pretraining.data.index import read_index
from nnunet_transformers.runs.recipe import read_recipe
from nnunet_transformers.sharing.manifest import verify
from nnunet_transformers.sharing.weights_file import load_weights
from nnunet_transformers.weights import EncoderCheckpoint, load, load_checkpoint, package_versions
from nnunet_transformers.weights.file import read_state
from nnunet_transformers.weights.nnunet_checkpoint import read_checkpoint

ROOT = Path(__file__).resolve().parents[1]
STORED = ROOT / "tests" / "data" / "format_1"
RESULTS = ROOT / "benchmarks" / "results"
OUTCOMES = ("refused", "identical", "changed", "traceback", "executed")
# longest time of a reader in seconds; what takes longer is counted as a traceback
PATIENCE = 20


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        has_checksum: whether a checksum covers the content.
        make: writes a file of the kind into an empty folder and returns its path.
        read: reads it.
        mutate: returns the damaged bytes, from the whole ones, a source of choices and a file that executed code makes.
    """

    has_checksum: bool
    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    mutate: Callable[[bytes, random.Random, str], bytes] = lambda content, rng, _: mutate(content, rng)


def make_encoder(name: str, folder: Path) -> Path:
    """Write an encoder checkpoint of a few tensors."""
    generator = torch.Generator().manual_seed(0)
    weights = {f"encoder.{i}.weight": torch.randn(4, 8, generator=generator) for i in range(6)}
    weights["stem.proj.weight"] = torch.randn(8, 1, 2, 2, 2, generator=generator).half()
    checkpoint = EncoderCheckpoint(weights, "qt_unet_tiny", (32, 32, 32), 1, (1.0, 1.0, 3.0), ("ZScoreNormalization",))
    checkpoint.save(folder / name)
    return folder / name


def make_state(folder: Path) -> Path:
    """Write the state of a run by Lightning itself."""
    import lightning
    from lightning.pytorch.demos.boring_classes import BoringModel

    torch.manual_seed(0)
    trainer = lightning.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(BoringModel())
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def make_trained_fold(folder: Path) -> Path:
    """Write a checkpoint with the entries of nnU-Net's trainer."""
    content = {
        "network_weights": {"conv.weight": torch.arange(60.0), "conv.bias": torch.ones(4)},
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.ones(60)}}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [0.5, 0.75], "ema_fg_dice": [0.5, 0.6]},
        "_best_ema": 0.6,
        "current_epoch": 2,
        "init_args": {"configuration": "3d_fullres", "fold": 0, "plans": {"plans_name": "nnUNetPlans"}},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(content, folder / "checkpoint_final.pth")
    return folder / "checkpoint_final.pth"


def make_foreign(is_archive: bool, folder: Path) -> Path:
    """Write weights as training scripts do, among arguments, logs and configuration that are no plain types."""
    from lightning.pytorch.utilities.parsing import AttributeDict

    generator = torch.Generator().manual_seed(0)
    weights = OrderedDict((f"module.backbone.{i}.weight", torch.randn(4, 8, generator=generator)) for i in range(6))
    weights["module.head.bias"] = torch.nn.Parameter(torch.ones(3))
    arguments = argparse.Namespace(
        lr=1e-4, size=torch.Size([16, 16]), output=PurePosixPath("/data/runs"), dtype=np.float32
    )
    logs: dict[str, list[Any]] = defaultdict(list, dice=[np.float64(0.5), np.float32(0.25)], epochs=[np.int64(3)])
    content = {
        "student": weights,
        "args": arguments,
        "logs": logs,
        "hyper_parameters": AttributeDict(
            depths=[2, 2], mean=np.arange(6.0).reshape(2, 3), names=np.array(["CT", "MR"])
        ),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": np.float64(1e-4)}]},
        "date": datetime(2026, 1, 2, 3, 4),
    }
    torch.save(content, folder / "foreign.pth", _use_new_zipfile_serialization=is_archive)
    return folder / "foreign.pth"


def read_foreign(path: Path) -> dict[str, Any]:
    """Read a checkpoint of others, and check that nothing but plain data came of it."""
    content = load_checkpoint(path)
    check_inert(content)
    return content


def make_plan(folder: Path) -> Path:
    """Copy a stored plan into the folder of a dataset."""
    dataset = folder / "Dataset004_Hippocampus"
    dataset.mkdir()
    return Path(shutil.copy(STORED / "plans" / "nnUNetQTUNetTPlans.json", dataset))


def make_index(folder: Path) -> Path:
    """Copy the stored index of prepared images."""
    return Path(shutil.copy(STORED / "prepared" / "index.json", folder))


def make_recipe(folder: Path) -> Path:
    """Copy a recipe of the package."""
    text = files("nnunet_transformers.pretraining").joinpath("recipes").joinpath("qt_ssl_in_task.yaml").read_text()
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


def make_package(name: str, folder: Path) -> Path:
    """Copy the stored package, and return one of its files."""
    shutil.copytree(STORED / "package", folder, dirs_exist_ok=True)
    for path in folder.rglob("*.xz"):
        path.with_suffix("").write_bytes(lzma.decompress(path.read_bytes()))
        path.unlink()
    return next(folder.rglob(name))


def read_package(pinned: str | None, path: Path) -> Any:
    """Verify the package of a file and read its weights, as every use of a package does."""
    folder = next(parent for parent in path.parents if (parent / "models.json").is_file())
    return verify(folder, pinned), [load_weights(weights) for weights in sorted(folder.rglob("*.safetensors"))]


@cache
def pinned_manifest() -> str:
    """Return the hash of the stored package's manifest, as its author would publish it."""
    with tempfile.TemporaryDirectory() as folder:
        make_package("manifest.json", Path(folder))
        return verify(Path(folder)).sha256


KINDS = {
    "encoder": Kind(True, partial(make_encoder, "encoder.pth"), load),
    "encoder, safetensors": Kind(True, partial(make_encoder, "encoder.safetensors"), load),
    "state": Kind(True, make_state, read_state),
    "trained fold": Kind(True, make_trained_fold, lambda path: read_checkpoint(path)[0]),
    "foreign": Kind(True, partial(make_foreign, True), read_foreign),
    "foreign, PyTorch 1.5": Kind(False, partial(make_foreign, False), read_foreign),
    "forged": Kind(False, partial(make_foreign, True), read_foreign, forge),
    "forged, PyTorch 1.5": Kind(False, partial(make_foreign, False), read_foreign, forge),
    "package weights": Kind(True, partial(make_package, "fold_0.safetensors"), partial(read_package, None)),
    "package manifest": Kind(
        True, partial(make_package, "manifest.json"), lambda path: read_package(pinned_manifest(), path)
    ),
    "safetensors": Kind(False, partial(make_package, "fold_0.safetensors"), load_weights),
    "plan": Kind(False, make_plan, lambda path: load_plans(path.parent, path.stem)),
    "recipe": Kind(False, make_recipe, lambda path: read_recipe(str(path), "nnunet_transformers.pretraining")),
    "index": Kind(False, make_index, lambda path: read_index(path.parent)),
}


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Damage a file as disks, transfers and editors do, in one to three places."""
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        start = rng.randrange(len(damaged) + 1)
        end = min(len(damaged), start + rng.choice((1, 1, 1, 2, 4, 16, 512)))
        match rng.choice(("bit", "byte", "byte", "zeros", "noise", "remove", "insert", "repeat", "truncate")):
            case "bit" if start < end:
                damaged[start] ^= 1 << rng.randrange(8)
            case "byte" if start < end:
                damaged[start] = rng.randrange(256)
            case "zeros":
                damaged[start:end] = bytes(end - start)
            case "noise":
                damaged[start:end] = rng.randbytes(end - start)
            case "remove":
                del damaged[start:end]
            case "insert":
                damaged[start:start] = rng.randbytes(rng.choice((1, 2, 16)))
            case "repeat":
                damaged[start:start] = damaged[start:end]
            case "truncate":
                del damaged[start:]
    return bytes(damaged)


def is_equal(a: Any, b: Any) -> bool:
    """Compare contents, tensors by their bytes and numbers with their types: 1, 1.0 and True differ."""
    if is_dataclass(a) and not isinstance(a, type):
        return type(a) is type(b) and all(is_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and (a.dtype, a.shape) == (b.dtype, b.shape)
        return same and a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and list(a) == list(b) and all(is_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(is_equal, a, b))
    return type(a) is type(b) and repr(a) == repr(b)


@contextmanager
def patience(seconds: int) -> Iterator[None]:
    """Raise TimeoutError after some seconds, where the system has alarms."""

    def stop(*_: object) -> None:
        raise InterruptedError(f"takes longer than {seconds} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(kind: Kind, path: Path, expected: Any, mark: Path | None = None) -> tuple[str, str]:
    """Read a damaged file.

    Args:
        kind: its kind.
        path: the file.
        expected: content of the whole file.
        mark: file that executed code makes.

    Returns:
        one of ``OUTCOMES``, and the error's message, if there is one.
    """
    try:
        with patience(PATIENCE):
            content = kind.read(path)
    except Exception as error:
        if mark and mark.exists():
            return "executed", repr(error)
        message = str(error)
        # a user sees ValueError and OSError as one line, which names the file or the package that it is in
        is_named = path.name in message or path.parent.name in message
        is_line = isinstance(error, (ValueError, OSError)) and "\n" not in message and is_named
        return ("refused" if is_line and not isinstance(error, InterruptedError) else "traceback"), repr(error)
    if mark and mark.exists():
        return "executed", "without an error"
    return ("identical" if is_equal(content, expected) else "changed"), ""


def run(name: str, mutations: int, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """Damage a kind of file again and again.

    Args:
        name: one of ``KINDS``.
        mutations: number of damaged files.
        seed: seed of the damage.

    Returns:
        how often each outcome came, and the errors that were no refusals.
    """
    kind, rng = KINDS[name], random.Random(f"{name} {seed}")
    counts: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
    errors = []
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other, watched(Path(other)) as mark:
        path = kind.make(Path(folder))
        whole, expected = path.read_bytes(), kind.read(path)
        for _ in range(mutations):
            path.write_bytes(kind.mutate(whole, rng, str(mark)))
            found, message = outcome(kind, path, expected, mark)
            mark.unlink(missing_ok=True)
            counts[found] += 1
            if found in ("traceback", "executed"):
                errors.append(message)
    return counts, errors


def report(results: Mapping[str, Any]) -> str:
    """Return the table of the results in Markdown."""
    lines = [
        "# Damaged files",
        "",
        f"`python benchmarks/mutate_files.py --mutations {results['mutations']} --seed {results['seed']}`, by "
        f"{', '.join(f'{name} {version}' for name, version in results['versions'].items())}: one to three places of a "
        "file damaged at random; of forged files one to three values of the pickle replaced by calls, with right "
        "checksums.",
        "",
        "| file | checksum | refused in one line | the same content | another content | traceback | code executed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, kind in results["kinds"].items():
        counts = " | ".join(f"{kind['counts'][found]:,}" for found in OUTCOMES)
        lines.append(f"| {name} | {'yes' if kind['has_checksum'] else 'no'} | {counts} |")
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--output", type=Path, default=RESULTS / "mutate_files.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results: dict[str, Any] = {"mutations": options.mutations, "seed": options.seed, "versions": package_versions()}
    before = read_json(options.output) if options.output.exists() else {}
    # kinds of the same run that are not repeated
    results["kinds"] = before["kinds"] if results.items() <= before.items() else {}
    for name in options.kinds:
        counts, errors = run(name, options.mutations, options.seed)
        results["kinds"][name] = {"has_checksum": KINDS[name].has_checksum, "counts": dict(counts)}
        print(f"{name:20}", ", ".join(f"{counts[found]} {found}" for found in OUTCOMES), *errors[:5], sep="\n  ")
    results["kinds"] = {name: results["kinds"][name] for name in KINDS if name in results["kinds"]}
    write_json(results, options.output)
    write_text(report(results), options.output.with_suffix(".md"))


if __name__ == "__main__":
    main()
