"""Where initial weights come from: a file, a folder with one, the hub, or ``timm:NAME.TAG``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..hub import PREFIX, fetch
from .file import WEIGHTS, load_checkpoint
from .kinds import recognise
from .sealed import SealedCheckpoint, content_hash, kind_of, restore
from .sealed import load as load_sealed
from .shards import find_index
from .timm_weights import timm_model

TIMM = "timm:"
# files of a folder, the first that exists: nnU-Net's of a fold, then those of a run, of a hub's repository or a package
FILES = (
    "checkpoint_final.pth",
    "checkpoint_best.pth",
    "checkpoint_latest.pth",
    "encoder.pth",
    "encoder_3d.pth",
    "encoder_2d.pth",
    "weights.safetensors",
    "model.safetensors",
)
# of a run of UniMiSS, of which a network takes one
PAIR = ("encoder_3d.pth", "encoder_2d.pth")


@dataclass(frozen=True)
class Found:
    """Weights that were found.

    Attributes:
        weights: an encoder checkpoint of this package, or weights with ``load_into``.
        source: the source, complete: an absolute path, or a name with its tag.
        sha256: hash of the weights; for a checkpoint of this package that of the file's content.
    """

    weights: Any
    source: str
    sha256: str


def find_weights(source: str | os.PathLike[str]) -> Found:
    """Find weights and read them once.

    Args:
        source: file of any kind (``kinds``); folder with one: a fold, a folder of folds with one fold, a run of
            pretraining, a package, an index and its shards; ``hf://owner/name[/file][@revision]``; or
            ``timm:NAME[.TAG]``.

    Raises:
        FileNotFoundError: if there is no such file or repository, no weights in it, or not all of their shards.
        ValueError: if the file holds no weights, or damaged ones, or several could be meant.
        ConnectionError, PermissionError: as ``hub.fetch``.
    """
    if str(source).startswith(TIMM):
        weights, name = timm_model(str(source).removeprefix(TIMM))
        return Found(weights, f"{TIMM}{name}", content_hash({WEIGHTS: weights.weights}))
    if str(source).startswith(PREFIX):
        fetched = fetch(str(source))
        path = _file(fetched.path)
        # pinned to the commit, under which the content never changes
        name = str(replace(fetched.address, path=path.relative_to(fetched.snapshot).as_posix()))
    else:
        # not resolved: the links of a Hugging Face cache have the names, its files are called by their hashes
        path = Path(os.path.abspath(_file(Path(source))))
        name = str(path)
    found = recognise(path, load_checkpoint(path))
    sha256 = found.sha256 if isinstance(found, SealedCheckpoint) else content_hash({WEIGHTS: found.weights})
    return Found(found, name, sha256)


def load(source: str | os.PathLike[str], expected: Any = None) -> Any:
    """Read weights of any kind.

    Args:
        source: as ``find_weights`` takes it; also any other checkpoint of this package.
        expected: class or classes of checkpoints of this package that the caller accepts.

    Returns:
        a checkpoint of this package, or weights that it recognises. What a network can start from has
        ``load_into(network)``, which returns the load report.

    Raises:
        FileNotFoundError, ValueError: as ``find_weights``, with ``expected`` as ``sealed.load``.

    Examples:
        >>> from nnunet_transformers.architectures import create_network
        >>> from nnunet_transformers.weights import load
        >>> network = create_network("qt_unet_tiny", 1, 2, (64, 64, 64))
        >>> print(load("released.pth").load_into(network))
    """
    if expected is not None:
        return load_sealed(source, expected)
    if not str(source).startswith(TIMM) and Path(source).is_file():
        path = Path(source)
        content = load_checkpoint(path)
        # of all kinds, as a matcher or a classifier is none that networks start from
        return restore(path, content) if kind_of(content) else recognise(path, content)
    return find_weights(source).weights


def _file(path: Path) -> Path:
    """The file of weights that a path means."""
    if not path.is_dir():
        return path
    candidates = [path / name for name in FILES if (path / name).is_file()]
    is_pair = {file.name for file in candidates[:2]} == set(PAIR)  # neither of which comes first
    candidates = candidates[: 2 if is_pair else 1]
    candidates = candidates or [p / FILES[0] for p in sorted(path.glob("fold_*")) if (p / FILES[0]).is_file()]
    # those of a package, or of one of its models
    candidates = candidates or sorted([*path.glob("models/*/fold_*.safetensors"), *path.glob("fold_*.safetensors")])
    if not candidates and (index := find_index(path)) is not None:
        return index
    if not candidates:
        raise FileNotFoundError(
            f"{path} holds no weights; it would have one of {', '.join(FILES)}, or model.safetensors.index.json and "
            "its shards"
        )
    if len(candidates) > 1:
        raise ValueError(f"{path} holds several weights; give one of {_names(candidates, path)}")
    return candidates[0]


def _names(paths: Sequence[Path], folder: Path) -> str:
    return ", ".join(str(p.relative_to(folder)) for p in paths[:6])
