"""Places on the hub, as texts that a command line and a plan can hold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from .._paths import inside

PREFIX = "hf://"
FORM = f"{PREFIX}owner/name[/file][@revision]"
DEFAULT_REVISION = "main"
# first parts of the hub's own addresses of other kinds of repositories
OTHER_KINDS = ("datasets", "spaces", "kernels", "buckets")
_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]*\w)?", flags=re.ASCII)
_LONGEST_NAME = 96
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Address:
    """A place on the hub.

    Attributes:
        repository: owner/name of a model repository.
        path: file or folder in it; empty for the whole repository.
        revision: branch, tag or commit hash.
    """

    repository: str
    path: str = ""
    revision: str = DEFAULT_REVISION

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address such as ``hf://owner/name/encoder.pth@v1``; the prefix may be missing.

        Raises:
            ValueError: if it has another form.
        """
        place, at, revision = text.removeprefix(PREFIX).rpartition("@")
        if not at:
            place, revision = revision, DEFAULT_REVISION
        if not revision:
            raise ValueError(f"{text!r} has no revision after its @; an address has the form {FORM}")
        owner, _, rest = place.partition("/")
        name, _, path = rest.partition("/")
        if owner in OTHER_KINDS:
            raise ValueError(f"{text!r} is not a repository of models, which has the form {FORM}")
        names = (owner, name)
        if not all(_NAME.fullmatch(n) and ".." not in n and "--" not in n and len(n) <= _LONGEST_NAME for n in names):
            raise ValueError(f"{text!r} is no address on the hub, which has the form {FORM}")
        path = path.strip("/")
        # both become paths in the cache
        for part in (path, revision) if path else (revision,):
            inside(Path(owner, name), part)
        return cls(f"{owner}/{name}", path, revision)

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit hash, behind which the content never changes."""
        return _COMMIT.fullmatch(self.revision) is not None

    def url(self, endpoint: str) -> str:
        """Return where a browser finds it: the file, or the list of the files."""
        revision = quote(self.revision, safe="")  # which may hold slashes
        if self.path:
            return f"{endpoint}/{self.repository}/resolve/{revision}/{quote(self.path)}"
        return f"{endpoint}/{self.repository}/tree/{revision}"

    def __str__(self) -> str:
        path = f"/{self.path}" if self.path else ""
        # what follows the last @ is read as the revision
        is_stated = self.revision != DEFAULT_REVISION or "@" in self.path
        return f"{PREFIX}{self.repository}{path}{f'@{self.revision}' if is_stated else ''}"
