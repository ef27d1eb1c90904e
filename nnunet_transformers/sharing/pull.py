"""Pull an encoder checkpoint or a package from the Hugging Face hub into a folder, verified."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from .._atomic import new_folder
from ..hub import Fetched, fetch
from ..weights import PretrainedWeights, load
from .manifest import verify


@dataclass(frozen=True)
class Pulled:
    """What was pulled.

    Attributes:
        path: the checkpoint's file, or the package's folder.
        fetched: where it came from.
        sha256: hash of the checkpoint's content, or of the package's manifest.
    """

    path: Path
    fetched: Fetched
    sha256: str


def pull(source: str, output: Path, sha256: str | None = None) -> Pulled:
    """Download an encoder checkpoint or a package, and verify its hash before it is there.

    Args:
        source: ``hf://owner/name[/file][@revision]``.
        output: folder to write, whole or not at all: it becomes the package, or holds the checkpoint's file.
        sha256: hash that the source states: of the checkpoint's content, or of the package's manifest.

    Raises:
        FileExistsError: if ``output`` exists.
        ValueError: if it is no encoder checkpoint or package of this package's formats, was altered, or has another
            hash than ``sha256``.
        FileNotFoundError, PermissionError, OSError: as ``hub.fetch``.
    """
    if output.exists():
        raise FileExistsError(f"{output} exists; remove it or choose another name")
    fetched = fetch(source)
    with new_folder(output) as partial:
        for name, cached in fetched.contents.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(cached, partial / name)
        target = partial if fetched.is_package else partial / fetched.path.name
        try:
            found = verify(target).sha256 if fetched.is_package else load(target, PretrainedWeights).sha256
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(str(error).replace(str(target), str(fetched.address))) from error
        if sha256 is not None and found != sha256.lower():
            raise ValueError(f"{fetched.address} has SHA-256 {found}, not {sha256}; nothing was written")
    return Pulled(output / target.relative_to(partial), fetched, found)
