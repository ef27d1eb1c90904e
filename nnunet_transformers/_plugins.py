"""Networks, planners, trainers, pretraining methods and recipes of installed packages, which declare them.

A package declares them by entry points of the groups ``nnunet_transformers.KIND``, one kind for each key of ``KINDS``:

    [project.entry-points."nnunet_transformers.trainers"]
    nnUNetTrainerMine = "my_package.trainer:nnUNetTrainerMine"

Entry points are read when a name is asked for that neither nnU-Net nor this package has. Of several packages that
declare one name, the first by the packages' names is taken. What cannot be read or imported is passed over:
``nnunet-transformers doctor`` names it. Standard library only, as ``discovery``, which asks here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import Distribution, EntryPoint, distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ._one_line import suggested
from .discovery import CLASSES

GROUP = "nnunet_transformers"
# what an entry point declares, by the last part of its group's name
KINDS = {
    "networks": "network",
    "planners": "planner",
    "trainers": "trainer",
    "pretraining_methods": "pretraining method",
    "recipes": "folder of recipes for",
}
# a package that calls sys.exit when it is imported is broken as well
LOAD_ERRORS = (Exception, SystemExit)
CLASS = re.compile(r"^class (\w+)", flags=re.MULTILINE)


@dataclass(frozen=True, order=True)
class Declaration:
    """What an installed package declares.

    Attributes:
        package, version: of the package, as pip names it.
        kind: one of ``KINDS``; empty for the group without a kind, by which files may name classes (``_declared``).
        name: network, planner, trainer or method; for recipes the command that takes them, such as ``pretraining``.
        value: import path, ``module`` or ``module:object``.
    """

    package: str
    version: str
    kind: str
    name: str
    value: str

    def __str__(self) -> str:
        return f"the {KINDS.get(self.kind, 'entry')} {self.name} of the installed package {self.package} {self.version}"

    @property
    def path(self) -> str:
        """Import path with dots only, as plans and recipes write it."""
        return self.value.partition(" ")[0].replace(":", ".")

    def load(self) -> Any:
        """Import the module or object. Raises whatever the package raises."""
        return EntryPoint(self.name, self.value, f"{GROUP}.{self.kind}").load()

    def load_class(self, name: str) -> Any:
        """Import the class of this name: the declared one, or a variant in the same module, such as ``NAME_5epochs``.

        Returns:
            the class; None if the module has no such variant.

        Raises:
            AttributeError: if the module lacks the declared class, and whatever the package raises.
        """
        module, _, attribute = self.value.partition(" ")[0].partition(":")
        if name != self.name:
            return getattr(import_module(module), name, None)
        return self.load() if attribute else getattr(import_module(module), name)


@cache
def declarations() -> tuple[Declaration, ...]:
    """Read what the installed packages declare, ordered by package, kind and name."""
    found: dict[tuple[str, str, str], Declaration] = {}
    for distribution in distributions():
        try:
            for declaration in _of(distribution):
                # of a package that is there twice, Python imports the first on its path
                found.setdefault((declaration.package, declaration.kind, declaration.name), declaration)
        except LOAD_ERRORS:  # damaged metadata of some package, which pip itself reports
            continue
    return tuple(sorted(found.values()))


def _of(distribution: Distribution) -> Iterator[Declaration]:
    for entry in distribution.entry_points:
        group, _, kind = entry.group.partition(".")
        if group == GROUP:
            name = str(distribution.metadata["Name"]).lower().replace("_", "-")
            yield Declaration(name, distribution.version, kind, entry.name, entry.value)


def declared(kind: str) -> dict[str, Declaration]:
    """Declarations of one kind by name; of several with one name the first package's."""
    found: dict[str, Declaration] = {}
    for declaration in declarations():
        if declaration.kind == kind:
            found.setdefault(declaration.name, declaration)
    return found


def packages_of(paths: Iterable[str]) -> set[str]:
    """Names of the installed packages that declare something in the outermost modules of these import paths."""
    modules = {path.partition(".")[0] for path in paths}
    return {declaration.package for declaration in declarations() if declaration.path.partition(".")[0] in modules}


def find_class(name: str) -> Any:
    """Import the planner or trainer of a name, or a variant of one (``NAME_5epochs``), of an installed package.

    Returns:
        the class; None if no package declares it. None as well, after a line on stderr, if it cannot be imported.
    """
    for kind in ("planners", "trainers"):
        known = declared(kind)
        stems = [stem for stem in known if name == stem or name.startswith(f"{stem}_")]
        if not stems:
            continue
        stem = max(stems, key=len)
        # the first package's, unless it is broken
        for declaration in (d for d in declarations() if (d.kind, d.name) == (kind, stem)):
            try:
                return declaration.load_class(name)
            except LOAD_ERRORS as error:
                print(f"nnunet-transformers: {declaration} does not load: {reason(error)}", file=sys.stderr)
    return None


def suggest(name: str) -> None:
    """Name the planners and trainers that are closest to one that nobody has, in a line on stderr."""
    if not any(what in name.lower() for what in ("planner", "trainer")):
        return
    known = {*CLASSES, *declared("planners"), *declared("trainers"), *stock_names()}
    if name in {*declared("planners"), *declared("trainers")}:  # it does not load, which was said
        suggested(name)
    elif name in known:
        kind = "planner" if "planner" in name.lower() else "trainer"
        print(f"nnunet-transformers: {name} is a {kind}; -tr takes a trainer, -pl a planner", file=sys.stderr)
        suggested(name)
    elif close := get_close_matches(name, sorted(known), n=3):
        print(f"nnunet-transformers: no planner or trainer {name}; did you mean {', '.join(close)}?", file=sys.stderr)
        suggested(name)


def reason(error: BaseException) -> str:
    """The kind of an error and the first line of its message."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def stock_names() -> set[str]:
    """Names of nnU-Net's own planners and trainers, read from its source, which is not imported for it."""
    package = find_spec("nnunetv2")
    folders = [Path(folder) for folder in (package.submodule_search_locations or ())] if package else []
    parts = ("experiment_planning", "training/nnUNetTrainer")
    return class_names(file for folder in folders for part in parts for file in (folder / part).rglob("*.py"))


def class_names(files: Iterable[Path]) -> set[str]:
    """Names of the classes in Python files, which are not imported for it."""
    names: set[str] = set()
    for file in files:
        with suppress(OSError):  # of an editor's links to nowhere, which lock a file, Python imports nothing either
            names.update(CLASS.findall(file.read_text(encoding="utf-8", errors="replace")))
    return names
