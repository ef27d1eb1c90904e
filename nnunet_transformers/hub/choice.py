"""Which files of a repository are the weights: by its list of files, before anything is downloaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from .._paths import inside
from .address import Address
from .shards import ending_of_shards, index_of, index_of_shard, missing_beside

# the two files that make a folder a package (``sharing``)
MANIFEST, MODELS = "manifest.json", "models.json"
# nnssl's description of the checkpoint beside it
ADAPTATION_PLAN = "adaptation_plan.json"
# nnU-Net's and nnssl's names of checkpoints, and of the one at the end of training
CHECKPOINT, FINAL = "checkpoint_", "checkpoint_final.pth"
# endings of the files that are found without their name, and of those that must be named
FOUND, NAMED = (".safetensors", ".pth"), (".pt", ".ckpt", ".bin")
# files that git and the hub keep in every repository
GIT = (".gitattributes", ".gitignore")
MOST_LISTED = 8


@dataclass(frozen=True)
class Choice:
    """Weights in a repository.

    Attributes:
        path: file, or folder of a package; empty for a package that is the whole repository. Of weights in shards the
            index.
        files: all files that belong to it.
        is_package: whether it is a folder.
    """

    path: str
    files: tuple[str, ...]
    is_package: bool = False

    @property
    def may_lack_files(self) -> bool:
        """Whether the list may have missed files: of a package, shards, or the plan beside a checkpoint of nnssl."""
        if index_of_shard(self.path):
            return True
        if ending_of_shards(self.path):
            return len(self.files) == 1 or bool(missing_beside(self.files[1], self.files))
        is_checkpoint = PurePosixPath(self.path).name.startswith(CHECKPOINT)
        return self.is_package or (is_checkpoint and len(self.files) == 1)


def choose(names: Iterable[str], address: Address) -> Choice:
    """Choose the weights that an address means.

    Without a file in the address these are the only package, safetensors file or .pth file of the repository or folder.
    Of one name with both endings the safetensors file is chosen, but ``encoder*.pth``, which pretraining writes, before
    its copy; of nnU-Net's checkpoints of a folder the final one. An index of shards and each of them stand for all.

    Args:
        names: paths of the repository's files.
        address: the address; its path may be a file or a folder.

    Raises:
        FileNotFoundError: if there is no such file or folder, or no weights in it.
        ValueError: if the file is not one of weights, or there are several to choose from; the message lists them.
    """
    known = [name for name in names if _is_sound(name)]
    path = PurePosixPath(address.path)
    if address.path in known:
        if path.name == MANIFEST and str(path.with_name(MODELS)) in known:
            return _package(path.parent, known)
        if path.suffix not in FOUND + NAMED and not ending_of_shards(path.name):
            raise ValueError(f"{address} is no file of weights, which end in {', '.join(FOUND + NAMED)}")
        return _file(address.path, known)
    below = [name for name in known if PurePosixPath(name).is_relative_to(path)]
    if address.path and not below:
        listed = _listed(_candidates(known)) or "no weights"
        raise FileNotFoundError(f"{address.repository} has no {address.path} at {address.revision}; it has {listed}")
    candidates = _candidates(below)
    if len(candidates) > 1:
        example = replace(address, path=candidates[0].path)
        raise ValueError(f"{address} holds {_listed(candidates)}; name one of them, such as {example}")
    if not candidates:
        others = [name for name in below if name.endswith(NAMED)]
        advice = f"; name a file, such as {replace(address, path=others[0])}" if others else ""
        raise FileNotFoundError(f"{address} holds no package and no file ending in {' or '.join(FOUND)}{advice}")
    return candidates[0]


def _is_sound(name: str) -> bool:
    try:
        inside(Path(), name)
    except ValueError:
        return False
    return name not in GIT


def _candidates(names: Sequence[str]) -> list[Choice]:
    """Return all weights among files: packages first, then the files outside of them."""
    known = set(names)
    manifests = [path for path in map(PurePosixPath, names) if path.name == MANIFEST]
    folders = [path.parent for path in manifests if str(path.with_name(MODELS)) in known]
    packages = [_package(folder, names) for folder in folders]
    packed = {name for package in packages for name in package.files}
    return packages + [_file(name, names) for name in names if name not in packed and _is_candidate(name, known)]


def _is_candidate(name: str, known: set[str]) -> bool:
    path = PurePosixPath(name)
    if ending_of_shards(name) in FOUND:
        return True
    if path.suffix not in FOUND or index_of(name) in known:
        return False
    if path.name.startswith(CHECKPOINT) and str(path.with_name(FINAL)) in known:
        return path.name == FINAL
    # a sealed encoder says more than its copy in safetensors; other files of torch.save say less that can be read
    kept = ".pth" if path.name.startswith("encoder") else ".safetensors"
    return path.suffix == kept or str(path.with_suffix(kept)) not in known


def _package(folder: PurePosixPath, names: Sequence[str]) -> Choice:
    files = tuple(name for name in names if PurePosixPath(name).is_relative_to(folder))
    return Choice("" if folder == PurePosixPath() else str(folder), files, is_package=True)


def _file(name: str, names: Sequence[str]) -> Choice:
    index = index_of(name)
    if index is not None and index in names:
        name = index
    if ending_of_shards(name):
        return Choice(name, (name, *(shard for shard in names if index_of(shard) == name)))
    path = PurePosixPath(name)
    plan = str(path.with_name(ADAPTATION_PLAN))
    return Choice(name, (name, plan) if path.name.startswith(CHECKPOINT) and plan in names else (name,))


def _listed(candidates: Sequence[Choice]) -> str:
    texts = [f"the package {c.path or '(the repository)'}" if c.is_package else c.path for c in candidates]
    more = f" and {len(texts) - MOST_LISTED} more" if len(texts) > MOST_LISTED else ""
    return ", ".join(texts[:MOST_LISTED]) + more
