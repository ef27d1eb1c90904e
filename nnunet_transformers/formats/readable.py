"""Files for SimpleITK, whatever they are called: a name that is not UTF-8 would end the process without an error."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

# of a file's name, by which readers know its format
ENDING = re.compile(r"[!-~]{0,20}\Z")


@contextmanager
def readable(files: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield names that every reader takes: those of the files, or of links to them that have their endings.

    Args:
        files: paths, as ``os.fsdecode`` gives them.
    """
    if all(file.isprintable() for file in files):
        yield files
        return
    with TemporaryDirectory() as folder:
        endings = ["".join(ENDING.findall(os.path.basename(file))) for file in files]
        links = [str(Path(folder, f"{number:04d}{ending}")) for number, ending in enumerate(endings)]
        for file, link in zip(files, links, strict=True):
            os.symlink(os.path.abspath(file), link)
        yield links


def encodable(name: str) -> str:
    """Return a name that can be printed and is UTF-8 in a file system: other bytes are Latin-1, as old systems wrote.

    >>> encodable(os.fsdecode(b"M\\xfcller"))
    'Müller'
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name).decode("latin-1")
    return name
