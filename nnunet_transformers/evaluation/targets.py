"""Labels and regions to evaluate, as dataset.json, an option or BraTS name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from ..plans.planned import label_names

# BraTS's regions by the challenge's label values, which changed in 2023 (Baid et al., arXiv:2107.02314, section 3;
# Adewole et al., arXiv:2305.19369): necrosis 1, oedema 2, enhancing tumour 4, later 3
BRATS = {
    "2021": {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)},
    "2023": {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)},
}


@dataclass(frozen=True)
class Target:
    """Label or region to evaluate.

    Attributes:
        name: its name.
        values: label value, or values whose union it is.
        key: its key in nnU-Net's summary.json: ``1``, or ``(1, 2)`` for a region.
    """

    name: str
    values: tuple[int, ...]
    key: str


@dataclass(frozen=True)
class Targets:
    """Labels and regions of a dataset.

    Attributes:
        targets: labels or regions, background excluded.
        ignore: value of the reference whose voxels do not count, if there is one.
        known: all values that may occur; None if any may.
        source: what says so, for messages.
    """

    targets: tuple[Target, ...]
    ignore: int | None = None
    known: tuple[int, ...] | None = None
    source: str = "dataset.json"

    @classmethod
    def from_dataset_json(cls, dataset: Mapping[str, Any]) -> Targets:
        """Take the regions of a dataset.json, or its labels if it has none, as nnU-Net's evaluation does."""
        manager = LabelManager(dataset["labels"], dataset.get("regions_class_order"))
        names = label_names(dataset)
        evaluated = manager.foreground_regions if manager.has_regions else manager.foreground_labels
        targets = tuple(Target(names[_key(v)], _values(v), _key(v)) for v in evaluated)
        ignore = manager.ignore_label if manager.has_ignore_label else None
        known = {int(value) for value in manager.all_labels} | ({int(ignore)} if ignore is not None else set())
        return cls(targets, ignore, tuple(sorted(known)))

    @classmethod
    def from_regions(cls, regions: Mapping[str, Sequence[int]]) -> Targets:
        """Take labels and regions by name; other values count as background."""
        return cls(tuple(Target(n, tuple(v), _key(v[0] if len(v) == 1 else v)) for n, v in regions.items()))

    @classmethod
    def of_brats(cls, year: str) -> Targets:
        """Take BraTS's regions; label values of another year are refused, as they would be background.

        Raises:
            ValueError: if there is no such year.
        """
        if year not in BRATS:
            raise ValueError(f"--brats {year!r} is not one of {', '.join(BRATS)}")
        regions = BRATS[year]
        return replace(cls.from_regions(regions), known=(0, *regions["WT"]), source=f"BraTS {year} (see --brats)")

    @property
    def names(self) -> list[str]:
        """Names in order."""
        return [target.name for target in self.targets]


def parse_region(text: str) -> tuple[str, tuple[int, ...]]:
    """Parse a label or region such as "liver=1", "WT=1,2,4" or "3", which is its own name.

    Raises:
        ValueError: if the values are not different positive integers.
    """
    name, _, values = text.rpartition("=")
    try:
        numbers = tuple(int(value) for value in values.split(","))
    except ValueError:
        numbers = (0,)
    if min(numbers) < 1 or len({*numbers}) < len(numbers):
        raise ValueError(
            f"--label {text!r} is not NAME=VALUE, NAME=VALUE,VALUE... or a value; values are above 0 and differ"
        )
    return name or values, numbers


def _values(value: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in np.atleast_1d(value))


def _key(value: Any) -> str:
    """Return the key of nnU-Net's summary.json."""
    return str(_values(value)) if isinstance(value, (tuple, list)) else str(int(value))
