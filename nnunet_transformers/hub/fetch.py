"""Download weights from the hub into huggingface_hub's cache, from which they come when there is no connection."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

from .address import Address
from .blobs import check_blob
from .choice import Choice, choose
from .errors import UnreachableError, client, hub_errors, not_in_cache

# seconds; the client itself waits as long as it takes
TIMEOUT = 10


@dataclass(frozen=True)
class Fetched:
    """Weights from the hub, in the cache.

    Attributes:
        snapshot: the cache's folder of the commit. Its files are links; do not write to them.
        repository: owner/name.
        file: path of the file in the repository, or of the folder of a package; empty if that is the whole repository.
        commit: hash of the commit.
        files: paths of all files that belong to it, in the repository.
        is_from_cache: whether the hub was not asked, or gave no answer.
    """

    snapshot: Path
    repository: str
    file: str
    commit: str
    files: tuple[str, ...]
    is_from_cache: bool = False

    @property
    def path(self) -> Path:
        """The file, or the folder of a package."""
        return self.snapshot / self.file if self.file else self.snapshot

    @property
    def is_package(self) -> bool:
        """Whether it is a package rather than a file."""
        return self.path.is_dir()

    @property
    def address(self) -> Address:
        """Address with the commit hash, which a plan can keep: it stands for the same content for good."""
        return Address(self.repository, self.file, self.commit)

    @property
    def contents(self) -> dict[str, Path]:
        """All files by their names in the package, or in the folder of the file."""
        base = self.path if self.is_package else self.path.parent
        return {(self.snapshot / name).relative_to(base).as_posix(): self.snapshot / name for name in self.files}

    def __str__(self) -> str:
        """Say what was chosen, and whether it was downloaded."""
        what = f"a package of {len(self.files)} files" if self.is_package else " and ".join(self.contents)
        return f"{self.address}: {what}{', from the cache' if self.is_from_cache else ''}"


def fetch(source: str | Address) -> Fetched:
    """Download the weights that an address means, unless the cache has them.

    Only the chosen files are downloaded, see ``choose``, and compared with the hub's hashes; nothing is interpreted. A
    file of a pinned address that the cache has is taken without asking the hub. Without a connection, or with
    ``HF_HUB_OFFLINE``, the last download of the same revision is taken.

    Args:
        source: ``hf://owner/name[/file][@revision]``.

    Raises:
        ValueError: if it is no address, there are several weights to choose from, or a file was damaged on its way.
        FileNotFoundError: if there is no such repository, revision or file, or no weights in it.
        PermissionError: if the repository needs a token.
        ConnectionError: if the hub gives no answer and the cache does not have the files; the message has the address
            for a browser.
        OSError: if the cache cannot be written.

    Examples:
        >>> fetch("hf://owner/name").address
        Address(repository='owner/name', path='encoder.pth', revision='5f0c...')
    """
    address = source if isinstance(source, Address) else Address.parse(source)
    cached = _cached(address) if address.is_pinned else None
    if cached is not None and address.path and (cached / address.path).is_file():
        choice = choose(_names(cached), address)
        if not choice.may_lack_files:
            return _fetched(address, cached, choice, is_from_cache=True)
    try:
        with hub_errors(address):
            info = client().model_info(address.repository, revision=address.revision, timeout=TIMEOUT)
        choice = choose([sibling.rfilename for sibling in info.siblings or ()], address)
        with hub_errors(address):
            patterns = [glob.escape(name) for name in choice.files]
            folder = client().snapshot_download(
                address.repository, revision=address.revision, allow_patterns=patterns, etag_timeout=TIMEOUT
            )
        is_from_cache = False
    except UnreachableError as error:
        cached = _cached(address)
        if cached is None:
            raise UnreachableError(not_in_cache(address, str(error))) from error
        folder, is_from_cache = str(cached), True
        try:
            choice = choose(_names(cached), address)
        except FileNotFoundError:
            raise UnreachableError(not_in_cache(address, str(error))) from error
    return _fetched(address, Path(folder), choice, is_from_cache)


def unreachable(address: Address) -> str | None:
    """Return why the hub gives no answer on a repository, within seconds; None if it gives one, whatever it says."""
    try:
        with hub_errors(address):
            client().model_info(address.repository, revision=address.revision, timeout=TIMEOUT)
    except UnreachableError as error:
        return str(error)
    except (OSError, ValueError):
        pass
    return None


def _fetched(address: Address, folder: Path, choice: Choice, is_from_cache: bool) -> Fetched:
    """Describe files in the cache's folder of a commit, whose name is the commit's hash."""
    for name in choice.files:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{address.repository} changed while {name} was downloaded; fetch it again")
        check_blob(folder / name)
    return Fetched(folder, address.repository, choice.path, folder.name, choice.files, is_from_cache)


def _cached(address: Address) -> Path | None:
    """Return the cache's folder of a revision, as it was when it was last downloaded; None if there is none."""
    try:
        # no patterns: a folder with some of the repository's files will do
        folder = client().snapshot_download(
            address.repository, revision=address.revision, allow_patterns=[], local_files_only=True
        )
    except Exception:
        return None
    return Path(folder)


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
