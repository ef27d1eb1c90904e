"""The doctor's check of installed packages that declare networks, planners, trainers, methods and recipes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from importlib.metadata import distribution
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from .. import _plugins, discovery
from .._plugins import Declaration
from ._findings import OK, PROBLEM, WARNING, Finding
from ._options import missing_extra

# module and name of the base of the classes that nnU-Net looks up
CLASS_KINDS = {
    "planners": ("nnunetv2.experiment_planning.experiment_planners.default_experiment_planner", "ExperimentPlanner"),
    "trainers": ("nnunetv2.training.nnUNetTrainer.nnUNetTrainer", "nnUNetTrainer"),
}
THIS = "nnunet-transformers"
RECIPE_COMMANDS = ("pretraining", "classification", "detection")


def check_plugins() -> Iterator[Finding]:
    """Import what installed packages declare, and name what does not load and which names are taken twice."""
    for declaration in _plugins.declarations():
        if problem := _problem_of(declaration):
            yield Finding(PROBLEM, f"{declaration} {problem}", _remedy(declaration.package))
        elif owner := _owner(declaration):
            yield Finding(WARNING, f"{declaration} has a name of {owner}, which is taken", "uninstall or rename one")
        if declaration.kind == "recipes":
            for name, owner in _hidden_recipes(declaration):
                text = f"{declaration} has the recipe {name}, a name of {owner}, which is taken"
                yield Finding(WARNING, text, "uninstall or rename one")
    packages = sorted({f"{d.package} {d.version}" for d in _plugins.declarations()})
    if packages:
        names = ", ".join(d.name for d in _plugins.declarations() if d.kind in ("networks", "planners", "trainers"))
        yield Finding(OK, f"plugins: {', '.join(packages)}" + (f" ({names})" if names else ""))


def _remedy(package: str) -> str:
    """What to do about a broken package; one from elsewhere is on no index, or another one of its name is."""
    source = json.loads(distribution(package).read_text("direct_url.json") or "{}")
    if "dir_info" in source:
        mend = f"mend it in {url2pathname(urlparse(source['url']).path)}"
    else:
        mend = f"install it again from {source['url']}" if source else f"pip install --upgrade {package}"
    return f"{mend}, or pip uninstall {package}"


def check_hidden_classes() -> Iterator[Finding]:
    """Name the planners and trainers of the user's that have a name of this package's or of an installed package's.

    nnU-Net finds that package's instead: this package's before all others, an installed package's before those of
    ``nnUNet_extTrainer``.
    """
    if discovery.is_switched_off():
        return
    declared = _plugins.declared("trainers")
    owners = {name: declaration.package for name, declaration in declared.items()}
    owners.update(dict.fromkeys(discovery.CLASSES, THIS))
    places = {"nnU-Net's folder": (_plugins.stock_names() & set(discovery.CLASSES), "-tr and -pl find")}
    # checkouts of this package and of those that are installed may be among the folders
    own = [Path(discovery.__file__).resolve().parent, *(place for d in declared.values() for place in _places(d))]
    for entry in filter(None, os.environ.get("nnUNet_extTrainer", "").split(os.pathsep)):
        files = [(path, path.resolve()) for path in Path(entry).rglob("*.py")]
        others = (path for path, real in files if not any(real.is_relative_to(folder) for folder in own))
        places[entry] = _plugins.class_names(others) & set(owners), "-tr finds"
    for place, (names, finds) in places.items():
        for owner in sorted({owners[name] for name in names}):
            hidden = ", ".join(sorted(name for name in names if owners[name] == owner))
            of_owner = "this package's" if owner == THIS else f"the installed package {owner}'s"
            yield Finding(
                WARNING,
                f"{place} has {hidden}, and {finds} {of_owner} of that name",
                f"rename yours, or set {discovery.SWITCH}=0 to use it",
            )


def _places(declaration: Declaration) -> list[Path]:
    """Folders, or file, of the package that a declaration leads into; none if it cannot be found."""
    with suppress(*_plugins.LOAD_ERRORS):
        if spec := find_spec(declaration.path.partition(".")[0]):
            return [Path(place).resolve() for place in spec.submodule_search_locations or [spec.origin or ""] if place]
    return []


def _problem_of(declaration: Declaration) -> str | None:
    """Say what is wrong with a declaration, after importing what it declares."""
    try:
        if declaration.kind in CLASS_KINDS:
            found, name = declaration.load_class(declaration.name), declaration.name
            module, base_name = CLASS_KINDS[declaration.kind]
            base = getattr(import_module(module), base_name)
            if not (isinstance(found, type) and issubclass(found, base)):
                return f"is no {base.__name__}"
            if found.__name__ != name:
                return f"is the class {found.__name__}; plans and checkpoints name that, so declare it by its own name"
        elif declaration.kind == "networks":
            from ..architectures import get_network

            declaration.load()
            get_network(declaration.name)
        elif declaration.kind == "recipes":
            from ..runs.recipe import recipes_in

            if declaration.name not in RECIPE_COMMANDS:
                return f"belongs to no command; name it {', '.join(RECIPE_COMMANDS)}"
            if not recipes_in(declaration.value):
                return f"holds no .yaml in {declaration.value}"
        elif declaration.kind in ("", "pretraining_methods"):
            declaration.load()
        else:
            return f"is of the unknown group {_plugins.GROUP}.{declaration.kind}"
    except _plugins.LOAD_ERRORS as error:
        return f"does not load: {missing_extra(error) or _plugins.reason(error)}"
    return None


def _hidden_recipes(declaration: Declaration) -> Iterator[tuple[str, str]]:
    """Yield the recipes of a declaration whose names precede it, in this package or one sorted before, and in which."""
    from ..runs.recipe import recipes_in

    with suppress(*_plugins.LOAD_ERRORS):  # told as its problem
        names = set(recipes_in(declaration.value))
        places = {THIS: f"nnunet_transformers.{declaration.name}.recipes"}
        earlier = takewhile(lambda other: other != declaration, _plugins.declarations())
        places.update((d.package, d.value) for d in earlier if (d.kind, d.name) == ("recipes", declaration.name))
        for owner, place in places.items():
            hidden = names & set(recipes_in(place))
            yield from ((name, owner) for name in sorted(hidden))
            names -= hidden


def _owner(declaration: Declaration) -> str | None:
    """Who else has a declaration's name and precedes it: nnU-Net, this package, or a package that is sorted before."""
    if declaration.kind not in (*CLASS_KINDS, "networks", "pretraining_methods"):
        return None
    if declaration.kind in CLASS_KINDS:
        if declaration.name in discovery.CLASSES:
            return THIS
        if declaration.name in _plugins.stock_names():
            return "nnU-Net"
    if declaration.kind == "networks":
        from ..architectures import get_network

        if get_network(declaration.name).network_class.__module__.startswith("nnunet_transformers."):
            return THIS
    first = _plugins.declared(declaration.kind)[declaration.name]
    return None if first == declaration else first.package
