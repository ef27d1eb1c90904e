"""Pinned requirements of a package: this environment's versions of the plugin and its dependencies."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PLUGIN = "nnunet-transformers"
# torch pins its CUDA packages exactly itself, and a build without CUDA has none
LEFT_TO_TORCH = ("nvidia-", "cuda-", "triton")


def pinned_requirements(more: Iterable[str] = ()) -> list[str]:
    """Return a line such as numpy==2.1.0 for the plugin and each of its direct and indirect dependencies, sorted.

    Builds of torch for one kind of device (2.6.0+cpu) are pinned by the version alone.

    Args:
        more: further packages, such as those of the models' networks.

    Raises:
        RuntimeError: if a dependency is not installed.
    """
    pins: dict[str, str] = {}
    waiting = [(canonicalize_name(name), frozenset[str]()) for name in (PLUGIN, *more)]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        try:
            found = distribution(name)
        except PackageNotFoundError as error:
            raise RuntimeError(
                f"{name} is not installed, so its version cannot be pinned; pip install {name}"
            ) from error
        pins[name] = f"{name}=={Version(found.version).public}"
        for requirement in map(Requirement, found.requires or ()):
            is_needed = requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)
            )
            entry = (canonicalize_name(requirement.name), frozenset(requirement.extras))
            if is_needed and entry not in seen and not entry[0].startswith(LEFT_TO_TORCH):
                seen.add(entry)
                waiting.append(entry)
    return sorted(pins.values())
