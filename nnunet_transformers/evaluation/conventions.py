"""Conventions of the metrics, which papers and challenges choose differently: named, and written beside the results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

EMPTY_IN_BOTH = ("nan", "perfect")
DIAGONAL, UNDEFINED = "diagonal", "nan"
HD95 = ("max", "pooled")
ALL_LABELS = "all"
# mm, of an image of 240x240x155 voxels of 1 mm: BraTS's distance for a label that only one of the two has
BRATS_DISTANCE = 373.12866


@dataclass(frozen=True)
class Conventions:
    """How the metrics of a case are defined where definitions differ.

    Attributes:
        empty_in_both: values of a label that neither prediction nor reference has: ``nan``, which leaves the case out
            of means, as in nnU-Net; or ``perfect``, Dice, IoU and NSD 1 and distances 0, as in BraTS and SIIM.
        empty_in_one: distances of a label that only one of the two has: ``diagonal``, that of the image; ``nan``, left
            out; or a number of mm, such as BraTS's 373.12866. Overlap and NSD are 0.
        hd95: ``max``, the larger of the two directed 95th percentiles (Maier-Hein et al., "Metrics reloaded", Nature
            Methods 2024, supplement; MONAI); or ``pooled``, the percentile of both directions' distances together
            (medpy).
        surface_connectivity: a voxel is of the surface if a neighbour is outside: 1 for neighbours by a face (medpy,
            MONAI), 2 by an edge as well, 3 by a corner as well.
        tolerances: mm; the NSD is computed at each of them for every label.
        label_tolerances: mm by label name; if there are any, a metric ``NSD`` has each label's own tolerance, and that
            of other labels is the first of ``tolerances``.
        lesions: names of the labels whose connected components are compared, or ``("all",)``.
        lesion_connectivity: voxels of a component are connected by faces (1), edges (2) or corners (3).
        lesion_iou: 0: a lesion is detected if a predicted voxel is inside it; from 0.5: if the IoU with a predicted
            component is larger.

    Raises:
        ValueError: if a value is none of these.
    """

    empty_in_both: str = "nan"
    empty_in_one: str | float = DIAGONAL
    hd95: str = "max"
    surface_connectivity: int = 1
    tolerances: Sequence[float] = (2.0,)
    label_tolerances: Mapping[str, float] = field(default_factory=dict)
    lesions: Sequence[str] = ()
    lesion_connectivity: int = 3
    lesion_iou: float = 0.0

    def __post_init__(self) -> None:
        if self.empty_in_both not in EMPTY_IN_BOTH:
            raise ValueError(f"empty in both: {self.empty_in_both!r} is not one of {', '.join(EMPTY_IN_BOTH)}")
        if self.hd95 not in HD95:
            raise ValueError(f"HD95: {self.hd95!r} is not one of {', '.join(HD95)}")
        if isinstance(self.empty_in_one, str):
            if self.empty_in_one not in (DIAGONAL, UNDEFINED):
                raise ValueError(f"empty in one: {self.empty_in_one!r} is not diagonal, nan or a number of mm")
        elif not 0 <= self.empty_in_one < math.inf:
            raise ValueError(f"empty in one: {self.empty_in_one} is no distance in mm")
        for tolerance in (*self.tolerances, *self.label_tolerances.values()):
            if not 0 <= tolerance < math.inf:
                raise ValueError(f"tolerance {tolerance} is no distance in mm")
        if self.label_tolerances and not self.tolerances:
            raise ValueError("tolerances of labels need one for the other labels: add a number of mm without a label")
        for connectivity in (self.surface_connectivity, self.lesion_connectivity):
            if connectivity not in (1, 2, 3):
                raise ValueError(f"connectivity {connectivity} is not 1 (faces), 2 (edges) or 3 (corners)")
        if self.lesion_iou and not 0.5 <= self.lesion_iou < 1:
            raise ValueError(f"IoU of lesions {self.lesion_iou} is not 0 or in [0.5, 1), where matches are unique")

    def tolerances_of(self, label: str) -> dict[str, float]:
        """Return the tolerances of a label in mm, by the metric's name, such as ``NSD 2 mm``."""
        named = {f"NSD {tolerance:g} mm": tolerance for tolerance in self.tolerances}
        if self.label_tolerances:
            named["NSD"] = self.label_tolerances.get(label, self.tolerances[0])
        return named

    def has_lesions(self, label: str) -> bool:
        """Return whether the components of a label are compared."""
        return label in self.lesions or ALL_LABELS in self.lesions

    def as_json(self) -> dict[str, Any]:
        """Return plain types."""
        content = {**asdict(self), "tolerances": [*self.tolerances], "lesions": [*self.lesions]}
        return {**content, "label_tolerances": {**self.label_tolerances}}
