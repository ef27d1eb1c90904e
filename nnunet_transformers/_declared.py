"""Classes that files may name: those of given packages, and of what installed packages declare.

Plans and recipes name classes by their import paths, and importing a module runs it. An installed package declares its
modules or classes, since its user has chosen to install it: as networks, methods and so on (``_plugins``), or, for
whatever else a file may name, by entry points of the group without a kind:

    [project.entry-points."nnunet_transformers"]
    hybrid = "hybrid_unet"
"""

from __future__ import annotations

import pydoc
from collections.abc import Iterable
from typing import Any

from ._plugins import declarations


def declared() -> tuple[str, ...]:
    """Return the import paths of the modules and classes that installed packages declare."""
    return tuple(sorted(declaration.path for declaration in declarations()))


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
