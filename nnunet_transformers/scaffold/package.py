"""Write a package with a network, its planner, trainer and tests, which installs and trains at once."""

from __future__ import annotations

import ast
import keyword
import re
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from .. import __version__
from .._atomic import new_folder
from .._plugins import declared, stock_names
from ..discovery import CLASSES

TEMPLATE = Path(__file__).parent / "template"
# of the template: module, distribution, class
MODULE, DISTRIBUTION, CLASS = "my_network", "my-network", "MyNetwork"
REQUIREMENT = "nnunet-transformers"
NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def class_name(name: str) -> str:
    """Name of a network's class: ``my_net`` has ``MyNet``."""
    return "".join(part.capitalize() for part in name.split("_"))


@cache
def template_names() -> set[str]:
    """Names in the code of the template, but for those that become the network's."""
    nodes = (n for file in TEMPLATE.rglob("*.py") for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    names = {getattr(node, field, None) for node in nodes for field in ("id", "attr", "name", "arg", "asname")}
    return {name for name in names if isinstance(name, str) and CLASS not in name}


def check_name(name: str) -> None:
    """Check the name of a new network, which its package, class, planner and trainer get.

    Raises:
        ValueError: if it is no name of a Python module in small letters, or one of these names is taken.
    """
    if NAME.fullmatch(name) is None or keyword.iskeyword(name) or keyword.iskeyword(class_name(name)):
        raise ValueError(
            f"{name!r} cannot be a network's name: small letters, digits and single underscores, a letter first, no "
            "keyword of Python's, such as my_net"
        )
    classes = {
        known.lower(): known for known in (*CLASSES, *stock_names(), *declared("planners"), *declared("trainers"))
    }
    for kind in ("Planner", "Trainer"):
        if (known := classes.get(f"nnunet{kind}{class_name(name)}".lower())) is not None:
            raise ValueError(f"{name} would have the {kind.lower()} {known}, which exists; choose another name")
    if class_name(name) in template_names():
        raise ValueError(f"{name} would have the class {class_name(name)}, which its files use; choose another name")
    if find_spec(name) is not None:
        raise ValueError(f"there is a Python module {name}, which the package would hide; choose another name")
    with suppress(PackageNotFoundError):
        taken = distribution(name).metadata["Name"]
        raise ValueError(f"there is an installed package {taken}, which pip would replace; choose another name")
    from ..architectures import list_networks  # PyTorch takes seconds

    if name in list_networks():
        raise ValueError(f"there is a network {name}, see `nnunet-transformers models`; choose another name")


def write_package(name: str, folder: Path) -> list[Path]:
    """Write the package of a network.

    Args:
        name: name of the network and of the package, such as ``my_net``.
        folder: folder to write, which must not exist.

    Returns:
        the files, relative to the folder.

    Raises:
        FileExistsError: if the folder exists.
        ValueError: as ``check_name``.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists; remove it or name another folder with -o")
    check_name(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    written = []
    with new_folder(folder) as partial:
        for source in sorted(path for path in TEMPLATE.rglob("*") if path.is_file() and path.suffix != ".pyc"):
            relative = Path(_renamed(str(source.relative_to(TEMPLATE)), name))
            (partial / relative).parent.mkdir(parents=True, exist_ok=True)
            (partial / relative).write_text(_renamed(source.read_text(encoding="utf-8"), name), encoding="utf-8")
            written.append(relative)
    return written


def _renamed(text: str, name: str) -> str:
    text = text.replace(f'"{REQUIREMENT}"', f'"{REQUIREMENT}>={__version__}"')
    for old, new in ((MODULE, name), (DISTRIBUTION, name.replace("_", "-")), (CLASS, class_name(name))):
        text = text.replace(old, new)
    return text
