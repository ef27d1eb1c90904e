"""Maps of how uncertain a prediction is, and its calibration by a temperature.

``uncertainty_maps`` takes the logits of each fold, of a whole image or of any part of it; ``UncertaintyMaps`` collects
those of the slabs in which images are predicted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from numpy.typing import NDArray
from torch import Tensor

from .sources import copy_segmentation

# folders of the maps, in that of the segmentations, as tools take every image beside these for one of them
ENTROPY, DISAGREEMENT = "entropy", "disagreement"
# nnU-Net's readers write integers: 10,000 is the most that there can be
UNIT = 10_000
# formats without 16 bits
AS_PNG = (".bmp", ".jpg", ".jpeg")


def uncertainty_maps(folds: Sequence[Tensor], has_regions: bool = False) -> Tensor:
    """Compute how uncertain the mean prediction of the folds is, and how much of that is their disagreement.

    Entropy is that of the mean probabilities. Disagreement is the entropy less the mean entropy of the folds, their
    mutual information (Depeweg et al., ICML 2018; Lakshminarayanan et al., NeurIPS 2017, ensembles); 0 with one fold.

    Args:
        folds: logits of each fold, (classes, *spatial), of an image or a part of it.
        has_regions: whether the classes are regions, each with a sigmoid, whose mean is taken.

    Returns:
        entropy and disagreement, (2, *spatial), float32, as shares of the largest possible entropy.
    """
    mean = entropy = None
    for logits in folds:
        probabilities = logits.float().sigmoid() if has_regions else logits.float().softmax(0)
        own = _entropy(probabilities, has_regions)
        mean = probabilities if mean is None else mean.add_(probabilities)
        entropy = own if entropy is None else entropy.add_(own)
    if mean is None or entropy is None:
        raise ValueError("there are no logits of any fold")
    total = _entropy(mean.div_(len(folds)), has_regions)
    return torch.stack([total, (total - entropy / len(folds)).clamp_(min=0)])


def _entropy(probabilities: Tensor, has_regions: bool) -> Tensor:
    if has_regions:
        parts = torch.special.entr(probabilities) + torch.special.entr(1 - probabilities)
        return parts.mean(0) / math.log(2)
    return torch.special.entr(probabilities).sum(0) / math.log(max(2, len(probabilities)))


def write_maps(
    maps: Tensor,
    properties: dict[str, Any],
    plans: PlansManager,
    configuration: ConfigurationManager,
    file_ending: str,
    output: Path,
    with_disagreement: bool,
) -> None:
    """Write the maps in the geometry of the image, as nnU-Net does with segmentations, 10,000 for a share of 1.

    Args:
        maps: (2, *spatial), of the preprocessed image.
        properties: of its preprocessing.
        plans, configuration: of the model.
        file_ending: of the dataset.
        output: path of the segmentation without its ending; the maps are ``entropy/CASE`` and ``disagreement/CASE``
            beside it, of formats without 16 bits as PNG.
        with_disagreement: whether to write the second.
    """
    writer = plans.image_reader_writer_class()
    shares = in_image(maps, properties, plans, configuration)
    for file, share in zip(map_files(output, file_ending, with_disagreement), shares, strict=False):
        file.parent.mkdir(exist_ok=True)
        whole_numbers = np.rint(UNIT * share.clip(0, 1)).astype(np.uint16)
        if isinstance(writer, SimpleITKIOWithReorient):  # writes eight bits
            with TemporaryDirectory() as temporary:
                turned = Path(temporary, file.name)
                SimpleITKIO().write_seg(whole_numbers, str(turned), properties)
                original = properties["sitk_stuff"]["original_orientation"]
                sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(turned), original), turned, True)
                copy_segmentation(turned, file, file_ending)
        else:
            writer.write_seg(whole_numbers, str(file), properties)


def map_files(output: Path, file_ending: str, with_disagreement: bool) -> list[Path]:
    """Return the files of the maps; the arguments are those of ``write_maps``."""
    ending = ".png" if file_ending in AS_PNG else file_ending
    names = (ENTROPY, DISAGREEMENT)[: 1 + with_disagreement]
    return [output.parent / name / f"{output.name}{ending}" for name in names]


def in_image(
    maps: Tensor, properties: dict[str, Any], plans: PlansManager, configuration: ConfigurationManager
) -> NDArray:
    """Undo resampling, cropping, where maps are 0, and transposition, as nnU-Net's export does with probabilities."""
    shape = properties["shape_after_cropping_and_before_resampling"]
    target = [properties["spacing"][axis] for axis in plans.transpose_forward]
    current = configuration.spacing if len(configuration.spacing) == len(shape) else [target[0], *configuration.spacing]
    resampled = np.asarray(configuration.resampling_fn_probabilities(maps, shape, current, target))
    whole = np.zeros((len(maps), *properties["shape_before_cropping"]), np.float32)
    inside = (slice(None), *(slice(first, last) for first, last in properties["bbox_used_for_cropping"]))
    whole[inside] = resampled
    return whole.transpose([0, *(axis + 1 for axis in plans.transpose_backward)])


class UncertaintyMaps:
    """Collects the maps of an image from its slabs, in the order of the planes.

    Args:
        has_regions: as ``uncertainty_maps``.
    """

    def __init__(self, has_regions: bool) -> None:
        self._has_regions = has_regions
        self._slabs: list[Tensor] = []
        self._folds = 0

    def restart(self) -> None:
        """Forget all slabs."""
        self._slabs.clear()

    def add(self, folds: Sequence[Tensor]) -> None:
        """Add the next slab, by the logits of each fold, (classes, planes, rows, columns)."""
        self._folds = len(folds)
        self._slabs.append(uncertainty_maps(folds, self._has_regions).cpu())

    def write(self, predictor: nnUNetPredictor, properties: dict[str, Any], output: Path) -> None:
        """Write the maps as ``write_maps``; that of disagreement if there are several folds."""
        write_maps(
            torch.cat(self._slabs, 1),
            properties,
            predictor.plans_manager,
            predictor.configuration_manager,
            predictor.dataset_json["file_ending"],
            output,
            with_disagreement=self._folds > 1,
        )


class StatesUncertainty(nnUNetPredictor):
    """Mixin for a predictor, listed before nnU-Net's: whether maps are written, and the temperature of the logits.

    Attributes:
        save_uncertainty: whether to write maps.
        temperature: divisor of all logits, which changes probabilities and maps but no segmentation.
    """

    save_uncertainty = False
    temperature = 1.0

    def calibrate(self, model_folder: Path) -> None:
        """Take the temperature that ``nnunet-transformers calibrate`` stored in a model's folder.

        Raises:
            FileNotFoundError: if there is none.
        """
        from ..evaluation.calibration import load_temperature  # imports statistics, half a second

        self.temperature = load_temperature(model_folder)

    def predict_sliding_window_return_logits(self, input_image: Tensor) -> Tensor:
        """Predict an image with the weights of one fold."""
        logits: Tensor = super().predict_sliding_window_return_logits(input_image)
        return logits if self.temperature == 1 else logits.div_(self.temperature)
