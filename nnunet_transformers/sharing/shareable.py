"""Plans and dataset descriptions to hand on: without the paths of the machine that they were made on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from .._atomic import write_json
from .._reading import read_json
from ..weights.attach import INITIALISATION, MARKER

# the table of nnU-Net's that lists the training images by path
TABLE = "dataset"
# of a validation's summary.json
CASES, FILES = "metric_per_case", ("prediction_file", "reference_file")


def copy_shareable(source: Path, target: Path) -> None:
    """Copy plans.json or another JSON file of a model, byte for byte unless it states paths.

    Raises:
        ValueError: if it is no JSON file.
        OSError: if it cannot be copied.
    """
    content = read_json(source)
    shared = without_paths(content)
    if shared == content:
        shutil.copyfile(source, target)
    else:
        write_json(shared, target)


def without_paths(content: Mapping[str, Any]) -> dict[str, Any]:
    """Reduce the files that a plan's weights came from, or a validation compared, to their names.

    The table of training images is left out.
    """
    shared = {key: value for key, value in content.items() if key != TABLE}
    if MARKER in shared:
        shared[MARKER] = _names(shared[MARKER])
    if CASES in shared:
        shared[CASES] = [
            {key: _names(value) if key in FILES else value for key, value in case.items()} for case in shared[CASES]
        ]
    if isinstance(shared.get("configurations"), Mapping):
        shared["configurations"] = {
            name: {key: _names(value) if key == INITIALISATION else value for key, value in configuration.items()}
            for name, configuration in shared["configurations"].items()
        }
    return shared


def _names(value: Any) -> Any:
    """Replace paths in a specification of initial weights by the names of their files."""
    if isinstance(value, Mapping):
        return {key: _names(inner) for key, inner in value.items()}
    return PureWindowsPath(value).name if isinstance(value, str) else value
