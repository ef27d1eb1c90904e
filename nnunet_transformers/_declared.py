"""Classes that files may name: those of given packages, and of what installed packages declare.

Plans and recipes name classes by their import paths, and importing a module runs it. An installed package declares its
modules or classes by entry points of ``GROUP``, since its user has chosen to install it:

    [project.entry-points."nnunet_transformers"]
    hybrid = "hybrid_unet"
"""

from __future__ import annotations

import pydoc
from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points
from typing import Any

GROUP = "nnunet_transformers"


@cache
def declared() -> tuple[str, ...]:
    """Return the import paths of the modules and classes that installed packages declare."""
    return tuple(sorted(entry.value.partition(" ")[0].replace(":", ".") for entry in entry_points(group=GROUP)))


def find_class(path: Any, packages: Iterable[str]) -> type | None:
    """Import a class that is defined in one of some packages, or that an installed package declares.

    A class that such a module only imports is not found: by way of its imports every module leads to other code.
    Nothing outside these packages is imported.

    Args:
        path: import path from a file, of any type.
        packages: import paths of the packages.

    Returns:
        the class, or None if there is none of this path.
    """
    allowed = (*packages, *declared())
    if not isinstance(path, str) or not _leads_into(path, allowed):
        return None
    try:
        found = pydoc.locate(path)
    except pydoc.ErrorDuringImport:
        return None
    if not isinstance(found, type):
        return None
    is_defined_there = _leads_into(f"{found.__module__}.{found.__qualname__}", allowed)
    return found if is_defined_there or path in declared() else None


def _leads_into(path: str, packages: Iterable[str]) -> bool:
    return any(path == package or path.startswith(f"{package}.") for package in packages)
