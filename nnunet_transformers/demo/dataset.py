"""Small dataset from real MRI: the ICBM 152 template and its tissue maps, which nilearn's wheel contains.

Each case is the template with a random deformation, contrast, bias field and noise; its labels are the tissue maps with
the same deformation (Fonov et al., "Unbiased average age-appropriate atlases for pediatric studies", NeuroImage 2011).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter, map_coordinates, zoom

NAME = "Dataset901_DemoBrain"
LABELS = {"background": 0, "grey matter": 1, "white matter": 2}
SPACING = 3.5
TRAIN_CASES, TEST_CASES = 10, 3


def _template() -> tuple[np.ndarray, np.ndarray]:
    """Load T1 image and label map at ``SPACING`` mm, each (depth, height, width), cropped to the head."""
    try:
        import nilearn
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the demo's data comes from nilearn: pip install 'nnunet-transformers[demo]', or pass --data"
        ) from error
    folder = Path(nilearn.__file__).parent / "datasets" / "data"
    maps = {}
    for kind in ("t1", "gm", "wm"):
        image = sitk.ReadImage(str(folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"))
        data = sitk.GetArrayFromImage(image).astype(np.float32)
        maps[kind] = zoom(data / data.max(), np.array(image.GetSpacing()[::-1]) / SPACING, order=1)
    head = np.argwhere(maps["t1"] > 0.05)
    box = tuple(slice(low, high + 1) for low, high in zip(head.min(0), head.max(0), strict=True))
    t1, grey, white = (maps[kind][box] for kind in ("t1", "gm", "wm"))
    label = np.where(np.maximum(grey, white) < 0.4, 0, np.where(grey >= white, 1, 2)).astype(np.uint8)
    return t1, label


def _smooth_noise(shape: Sequence[int], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a smooth random field with standard deviation 1; ``sigma`` is its smoothness in voxels."""
    field = gaussian_filter(rng.standard_normal(shape), sigma)
    return field / field.std()


def _make_case(t1: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in t1.shape), indexing="ij")).astype(np.float64)
    centre = (np.array(t1.shape) / 2)[:, None, None, None]
    scale = rng.uniform(0.9, 1.1, size=(3, 1, 1, 1))
    where = (grid - centre) * scale + centre + np.stack([1.5 * _smooth_noise(t1.shape, 6, rng) for _ in range(3)])
    image = map_coordinates(t1, where, order=1, mode="constant")
    label = map_coordinates(label, where, order=0, mode="constant")
    image = np.clip(image, 0, None) ** rng.uniform(0.7, 1.4) * (1 + 0.15 * _smooth_noise(t1.shape, 15, rng))
    image = image * rng.uniform(300, 900) + rng.normal(0, 12, t1.shape)
    return image.astype(np.float32), label


def make_dataset(raw_folder: Path, seed: int = 0) -> Path:
    """Write the dataset in nnU-Net's raw layout, with labelled test cases, unless it is complete already.

    Args:
        raw_folder: nnUNet_raw.
        seed: seed of all random numbers.

    Returns:
        the folder of the dataset.

    Raises:
        ModuleNotFoundError: if nilearn is not installed.
    """
    folder = Path(raw_folder) / NAME
    if (folder / "dataset.json").is_file():
        return folder
    t1, label = _template()
    rng = np.random.default_rng(seed)
    for sub in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    for index in range(TRAIN_CASES + TEST_CASES):
        split = "Tr" if index < TRAIN_CASES else "Ts"
        for array, name in zip(_make_case(t1, label, rng), ("images", "labels"), strict=True):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing((SPACING,) * 3)
            channel = "_0000" if name == "images" else ""
            sitk.WriteImage(image, str(folder / f"{name}{split}" / f"brain_{index:02d}{channel}.nii.gz"))
    # written last: a folder that has it is complete
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "T1"},
                "labels": LABELS,
                "numTraining": TRAIN_CASES,
                "file_ending": ".nii.gz",
                "reference": "ICBM 152 nonlinear 2009a symmetric, Fonov et al. 2011, as shipped by nilearn",
            },
            indent=2,
        )
    )
    return folder
