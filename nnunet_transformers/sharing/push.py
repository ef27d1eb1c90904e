"""Push an encoder checkpoint or a package to the Hugging Face hub, with a model card, in one commit.

A checkpoint goes there as .pth and as safetensors, which other tools read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from ..hub import Address
from ..hub.address import DEFAULT_REVISION
from ..hub.errors import client, hub_errors
from ..weights import PretrainedWeights, load
from ..weights.safetensors_file import SUFFIX
from .card import NAME as CARD
from .hub_card import encoder_card, package_card
from .manifest import NAME as MANIFEST
from .manifest import verify

# folder of a package in its repository: beside it the hub keeps a card that can be edited, and files of git
PACKAGE = "package"
FILE_NAME = re.compile(r"\w[\w.-]*\.(?:pth|safetensors)", flags=re.ASCII)


@dataclass(frozen=True)
class Pushed:
    """What was pushed.

    Attributes:
        address: its place, with the commit hash.
        sha256: hash of the checkpoint's content, or of the package's manifest.
        bytes: size of the files but for the card.
    """

    address: Address
    sha256: str
    bytes: int


def push(
    source: Path,
    repository: str,
    private: bool = False,
    revision: str = DEFAULT_REVISION,
    licence: str = "",
    datasets: Sequence[str] = (),
    keep_card: bool = False,
) -> Pushed:
    """Push an encoder checkpoint or a package; the repository and the branch are made where they are missing.

    Args:
        source: file of an encoder checkpoint, or folder of a package; verified first.
        repository: owner/name on the hub.
        private: make a private repository.
        revision: branch.
        licence: licence of the weights, for the card; by default the one that a package states.
        datasets: names of the training data, for the card; by default the one that a package states.
        keep_card: leave the repository's card as it is.

    Raises:
        FileNotFoundError: if there is no such file or folder, or no package in the folder.
        ValueError: if it is no encoder checkpoint or package of this package's formats, or was altered, or a private
            repository is asked for and there is a public one.
        PermissionError: if the hub refuses the token.
        ConnectionError: if the hub gives no answer.
    """
    target = Address.parse(repository)
    if target.path or target.revision != DEFAULT_REVISION:
        raise ValueError(f"{repository!r} must be owner/name; a branch is named by --revision")
    address, files, sha256, card = _prepare(source, target.repository, revision, licence, datasets)
    with TemporaryDirectory() as folder:
        if not source.is_dir() and source.suffix != SUFFIX:
            copy = Path(folder, source.with_suffix(SUFFIX).name)
            load(source, PretrainedWeights).save(copy)
            files[copy.name] = copy
        return _commit(address, files, sha256, card, private, keep_card)


def _commit(
    address: Address, files: Mapping[str, Path], sha256: str, card: str, private: bool, keep_card: bool
) -> Pushed:
    """Upload files by their names in the repository, and the card."""
    repository, revision = address.repository, address.revision
    additions = [CommitOperationAdd(name, path) for name, path in files.items()]
    api = client()
    with hub_errors(address):
        api.create_repo(repository, private=private or None, exist_ok=True)
        if revision != DEFAULT_REVISION:
            api.create_branch(repository, branch=revision, exist_ok=True)
        info = api.model_info(repository, revision=revision)
    if private and not info.private:
        raise ValueError(f"{repository} is public already; nothing was pushed. Make it private on its page first")
    present = {sibling.rfilename for sibling in info.siblings or ()}
    if not (keep_card and CARD in present):
        additions.append(CommitOperationAdd(CARD, card.encode()))
    # of an earlier package in this place, or the .pth of an earlier checkpoint, which would be taken before this one
    earlier = str(PurePosixPath(address.path).with_suffix(".pth")) if address.path in files else ""
    is_earlier = [name for name in present if name.startswith(f"{address.path}/") or name == earlier]
    stale = [name for name in is_earlier if name not in files]
    with hub_errors(address):
        commit = api.create_commit(
            repository,
            [*additions, *map(CommitOperationDelete, stale)],
            commit_message=f"Push {address.path} by nnunet-transformers",
            revision=revision,
        )
    size = sum(path.stat().st_size for path in files.values())
    return Pushed(Address(repository, address.path, commit.oid), sha256, size)


def _prepare(
    source: Path, repository: str, revision: str, licence: str, datasets: Sequence[str]
) -> tuple[Address, dict[str, Path], str, str]:
    """Verify a file or folder; return its address, its files by name in the repository, its hash and its card."""
    if source.is_dir():
        manifest = verify(source)
        address = Address(repository, PACKAGE, revision)
        files = {f"{PACKAGE}/{name}": source / name for name in [*manifest.entries, MANIFEST]}
        return address, files, manifest.sha256, package_card(source, manifest.sha256, address, licence, datasets)
    checkpoint = load(source, PretrainedWeights)
    if not FILE_NAME.fullmatch(source.name):
        raise ValueError(
            f"{source.name!r} cannot be a name on the hub: letters, digits, dots, hyphens, and .pth or .safetensors"
        )
    address = Address(repository, source.name, revision)
    card = encoder_card(checkpoint, address, licence, datasets)
    return address, {source.name: source}, checkpoint.sha256, card
