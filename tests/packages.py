"""Install a package as pip does, in this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipFile

import pytest
from hatchling.build import build_wheel

from nnunet_transformers import _plugins
from nnunet_transformers.architectures import _registry


@contextmanager
def site_folder(folder: Path) -> Iterator[Path]:
    """Make a folder on Python's path that packages are installed into; afterwards nothing of them is left."""
    folder.mkdir()
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setattr(_registry, "_networks", dict(_registry._networks))
        monkeypatch.setattr(_registry, "_broken", {})
        _plugins.declarations.cache_clear()
        yield folder
    _plugins.declarations.cache_clear()
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


def install(project: Path, site: Path) -> None:
    """Build the wheel of a project and unpack it: modules and metadata."""
    before = Path.cwd()
    os.chdir(project)
    try:
        wheel = build_wheel(str(site.parent))
    finally:
        os.chdir(before)
    with ZipFile(site.parent / wheel) as archive:
        archive.extractall(site)
    _plugins.declarations.cache_clear()
