"""Volumes as radiologists look at them, whatever the order of the voxels in the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

# direction in which slices, rows and columns go: anterior or superior is up, the patient's right is at the left
PLANES = {"axial": ("S", "P", "L"), "coronal": ("P", "I", "L"), "sagittal": ("L", "I", "P")}
PLANE_OF_AXIS = ("sagittal", "coronal", "axial")
OPPOSITE = dict(zip("LRAPSI", "RLPAIS", strict=True))
# slices are those of the acquisition where they are so many times as thick as their pixels; else they are axial
THICK = 2.0


class Edges(NamedTuple):
    """Letters of the patient's directions at the edges of a slice: R, L, A, P, S or I."""

    left: str
    right: str
    top: str
    bottom: str


@dataclass(frozen=True)
class View:
    """Order in which the axes of a volume are drawn.

    Attributes:
        plane: axial, coronal or sagittal; empty where the file states no orientation, which is drawn as it is stored.
        orientation: (3, 2), nibabel's: place and direction of each axis of the file.
        spacing: mm between slices, rows and columns as they are drawn.
    """

    plane: str
    orientation: NDArray
    spacing: tuple[float, ...]

    @classmethod
    def of(cls, properties: Mapping[str, Any], shape: Sequence[int]) -> View:
        """Return the view of an image.

        Oblique axes count as the nearest of the patient's. 2D images and formats without a direction are drawn as they
        are stored.

        Args:
            properties: those that nnU-Net's reader returned with it.
            shape: voxels of its three axes.
        """
        spacing = [float(s) for s in properties["spacing"]]
        axes = _axes(properties)
        if axes is None:
            return cls("", np.array([[0, 1], [1, 1], [2, 1]]), tuple(spacing))
        thickness = [np.inf if voxels == 1 else mm for mm, voxels in zip(spacing, shape, strict=True)]
        thickest = int(np.argmax(thickness))
        is_thick = thickness[thickest] >= THICK * sorted(thickness)[1]
        plane = PLANE_OF_AXIS[int(axes[thickest, 0])] if is_thick else "axial"
        orientation = ornt_transform(axes, axcodes2ornt(PLANES[plane]))
        drawn = [spacing[axis] for axis in np.argsort(orientation[:, 0])]
        return cls(plane, orientation, tuple(drawn))

    def apply(self, volume: NDArray) -> NDArray:
        """Return a volume, three axes of nnU-Net's order, as (slices, rows, columns) of the view."""
        return np.ascontiguousarray(apply_orientation(volume, self.orientation))

    @property
    def edges(self) -> Edges | None:
        """Letters at the edges of a slice; None where the orientation is unknown."""
        if not self.plane:
            return None
        _, down, right = PLANES[self.plane]
        return Edges(OPPOSITE[right], right, OPPOSITE[down], down)

    def place(self, index: int, slices: int) -> str:
        """Describe a slice, such as ``axial slice 3 of 40, from I to S``; empty for a 2D image."""
        if slices == 1:
            return ""
        if not self.plane:
            return f"slice {index + 1} of {slices}, as stored: the file states no orientation"
        onward = PLANES[self.plane][0]
        return f"{self.plane} slice {index + 1} of {slices}, from {OPPOSITE[onward]} to {onward}"


def _axes(properties: Mapping[str, Any]) -> NDArray | None:
    """Return the patient's axis and direction of each axis in nnU-Net's order, which is the reverse of the file's."""
    if "sitk_stuff" in properties:
        direction = np.asarray(properties["sitk_stuff"]["direction"], dtype=float)
        number = round(direction.size**0.5)
        if number < 3:
            return None
        # DICOM's directions are left, posterior, superior; nibabel's right, anterior, superior
        directions: NDArray = np.diag([-1, -1, 1]) @ direction.reshape(number, number)[:3, :3]
    elif "nibabel_stuff" in properties:
        stuff = properties["nibabel_stuff"]
        directions = np.asarray(stuff.get("reoriented_affine", stuff["original_affine"]), dtype=float)[:3, :3]
    else:
        return None
    affine = np.eye(4)
    affine[:3, :3] = directions[:, ::-1]
    axes: NDArray = io_orientation(affine)
    return None if np.isnan(axes).any() else axes


def letters(edges: Sequence[str] | None) -> str:
    """Return the letters of a slice as HTML, to be laid over it."""
    if edges is None:
        return ""
    places = zip(Edges._fields, edges, strict=True)
    return "".join(f"<b class='{place}' aria-hidden='true'>{letter}</b>" for place, letter in places)
