"""What a package holds: kinds of files, and the code among them, which is the same in all packages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from string import Template

ENTRY_POINT, DOCKERFILE, REQUIREMENTS, WHEELS = "predict.py", "Dockerfile", "requirements.txt", "wheels"
SOCKETS = "sockets.json"
WHEELS_LINE = f"--find-links {WHEELS}"
TEMPLATES = files(__package__) / "templates"
KINDS = re.compile(
    rf"README\.md|models\.json|{re.escape(ENTRY_POINT)}|{DOCKERFILE}|{re.escape(REQUIREMENTS)}|{re.escape(SOCKETS)}|{WHEELS}/[\w.+-]+\.whl"
    r"|models/[\w.-]+/(plans\.json|dataset\.json|dataset_fingerprint\.json|fold_\w+\.safetensors)"
)
PIN = re.compile(r"[\w.-]+==[\w.!+-]+")


def entry_point() -> str:
    """Return the entry point of every package."""
    return (TEMPLATES / ENTRY_POINT).read_text()


def dockerfile(python: str) -> str:
    """Return the Dockerfile of a package for a version of Python, such as 3.11."""
    return Template((TEMPLATES / DOCKERFILE).read_text()).substitute(python=python)


def check_kinds(names: Iterable[str], folder: Path) -> None:
    """Refuse files that no package has, such as a module that the entry point would import in place of a library.

    Raises:
        ValueError: if a file, given by its path in the package, is of an unknown kind; the message names it.
    """
    for name in names:
        if not KINDS.fullmatch(name):
            raise ValueError(f"{folder} holds {name!r}, a file that no package has; do not use it")


def check_code(folder: Path) -> None:
    """Refuse a package whose entry point, Dockerfile or requirements could run other code than this package's own.

    Raises:
        ValueError: if one of them is not as ``make_package`` writes it; the message names it.
    """
    for name, is_known in ((ENTRY_POINT, _is_entry_point), (DOCKERFILE, _is_dockerfile), (REQUIREMENTS, _are_pins)):
        path = folder / name
        if path.is_file() and not is_known(path.read_text(encoding="utf-8", errors="replace")):
            raise ValueError(f"{path} is not as `package make` writes it, so it may run any code; do not use it")


def _is_entry_point(text: str) -> bool:
    return text == entry_point()


def _is_dockerfile(text: str) -> bool:
    python = re.search(r"^FROM python:(\d+\.\d+)-slim", text, flags=re.MULTILINE)
    return python is not None and text == dockerfile(python[1])


def _are_pins(text: str) -> bool:
    """Tell whether requirements are versions from a registry or from the package's wheels, no addresses or options."""
    return all(line == WHEELS_LINE or PIN.fullmatch(line) for line in text.splitlines())
