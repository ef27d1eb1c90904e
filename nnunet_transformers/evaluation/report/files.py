"""Files that a page shows: found by their names in the folders that are here, whatever paths another machine wrote."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath

from numpy.typing import NDArray

from ..._paths import inside
from ..._text import times


def images_in(folder: Path, case: str, file_ending: str) -> list[str]:
    """Return the files of a case's channels in nnU-Net's naming, in order; none if there are none.

    Raises:
        ValueError: if the name of the case leads out of the folder.
    """
    pattern = inside(folder, f"{glob.escape(case)}_[0-9][0-9][0-9][0-9]{file_ending}").name
    return sorted(str(path) for path in folder.glob(pattern))


def segmentation_in(folders: Iterable[Path], stated: str) -> Path | None:
    """Find a segmentation by the name of a stated path; in a trained model's folder also in its folds' validation.

    The stated path itself is the last place to look; None if it is nowhere.

    Raises:
        ValueError: if the name leads out of the folder.
    """
    name = PureWindowsPath(stated).name
    for folder in folders:
        inside(folder, name)
        places = [folder / name, *sorted(folder.glob(f"fold_*/validation/{glob.escape(name)}"))]
        if found := next((path for path in places if path.is_file()), None):
            return found
    return Path(stated) if Path(stated).is_file() else None


def check_size_of(path: Path | str, voxels: NDArray, reference: Path | str, truth: NDArray) -> None:
    """Check that an image or a prediction is of the case of its reference.

    Raises:
        ValueError: if it has other sizes.
    """
    if voxels.shape != truth.shape:
        raise ValueError(f"{path} has {times(voxels.shape)} voxels, its reference {reference} {times(truth.shape)}")
