"""nnU-Net's preprocessing of an image to predict: its values in less memory, without what only training needs.

nnU-Net keeps the image as it was read beside its copy, fills the holes of a mask that only some normalisations use, and
resamples a segmentation that has nothing but this mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.preprocessing.cropping.cropping import bounding_box_to_slice, crop_to_nonzero, get_bbox_from_mask
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from numpy.typing import NDArray

from .._reading import read_json
from ..cpu import release_freed_memory
from ..plans.planned import channel_names
from .image_resampling import in_bounded_memory

# nnU-Net's normalisations, which use the mask only where the plan says so
OWN_SCHEMES = {
    "CTNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
    "ZScoreNormalization",
}


class PredictionPreprocessor(DefaultPreprocessor):
    """nnU-Net's preprocessor; an image without a segmentation of a previous stage has none afterwards either, but None.

    Image and properties are nnU-Net's.
    """

    def run_case(
        self,
        image_files: list[str],
        seg_file: str | None,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict[str, Any] | str,
    ) -> tuple[NDArray[Any], NDArray[Any] | None, dict[str, Any]]:
        """Read and preprocess an image.

        Raises:
            ValueError: if the image has other channels than the model, or they differ in their grids; the message
                names its first file.
        """
        content = read_json(dataset_json) if isinstance(dataset_json, str) else dataset_json
        reader = plans_manager.image_reader_writer_class()
        data, properties = read_channels(reader, image_files)
        _check_channels(len(data), image_files[0], content)
        if seg_file is not None:
            seg, _ = reader.read_seg(seg_file)
            return self.run_case_npy(data, seg, properties, plans_manager, configuration_manager, content)
        data = np.require(data, np.float32, "W")  # those of nnU-Net's readers are as they are
        release_freed_memory()  # of the file's content
        return self._image(data, properties, plans_manager, configuration_manager), None, properties

    def run_case_npy(
        self,
        data: NDArray[Any],
        seg: NDArray[Any] | None,
        properties: dict[str, Any],
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict[str, Any] | str,
    ) -> tuple[NDArray[Any], NDArray[Any] | None, dict[str, Any]]:
        """Preprocess an array, (channels, *spatial), which stays as it is; the properties are changed."""
        if seg is not None:
            found: tuple[NDArray[Any], NDArray[Any], dict[str, Any]] = super().run_case_npy(
                data, seg, properties, plans_manager, configuration_manager, dataset_json
            )
            return found
        return self._image(data.astype(np.float32), properties, plans_manager, configuration_manager), None, properties

    def _image(
        self,
        data: NDArray[np.float32],
        properties: dict[str, Any],
        plans: PlansManager,
        configuration: ConfigurationManager,
    ) -> NDArray[np.float32]:
        """Turn, crop, normalise in place and resample, and note in the properties what export undoes."""
        data = data.transpose([0, *(axis + 1 for axis in plans.transpose_forward)])
        spacing = [properties["spacing"][axis] for axis in plans.transpose_forward]
        properties["shape_before_cropping"] = data.shape[1:]
        outside: Sequence[Any] = [None]
        if any(configuration.use_mask_for_norm) or not OWN_SCHEMES.issuperset(configuration.normalization_schemes):
            data, outside, box = crop_to_nonzero(data)
        else:
            box = _nonzero_box(data)
            inside = (slice(None), *bounding_box_to_slice(box))
            data = data[inside]
        properties["bbox_used_for_cropping"] = box
        properties["shape_after_cropping_and_before_resampling"] = data.shape[1:]
        data = self._normalize(data, outside, configuration, plans.foreground_intensity_properties_per_channel)
        del outside
        # a 2D plan leaves the first axis of volumes as it is
        target = configuration.spacing
        target = [spacing[0], *target] if len(target) < len(spacing) else target
        new_shape = compute_new_shape(data.shape[1:], spacing, target)
        resampled: NDArray[np.float32] = configuration.resampling_fn_data(data, new_shape, spacing, target)
        if self.verbose:
            print(f"old shape: {data.shape[1:]}, new shape: {new_shape}, old spacing: {spacing}, new spacing: {target}")
        return resampled


def read_channels(reader: BaseReaderWriter, files: Sequence[str]) -> tuple[NDArray[Any], dict[str, Any]]:
    """Read the files of an image by one of nnU-Net's readers.

    Raises:
        ValueError: if they differ in size or spacing.
    """
    try:
        found: tuple[NDArray[Any], dict[str, Any]] = reader.read_images(files)
        return found
    except RuntimeError as error:
        if str(error):
            raise
        # the readers print the sizes, and raise an error that says nothing
        names = ", ".join(Path(file).name for file in files)
        raise ValueError(
            f"{names}: the channels differ in size or spacing; resample them onto the same grid"
        ) from error


def _check_channels(count: int, file: str, dataset_json: dict[str, Any]) -> None:
    """Raise ValueError unless an image has as many channels as dataset.json says, if it does."""
    if not {"channel_names", "modality"} & set(dataset_json):
        return
    names = channel_names(dataset_json)
    if count != len(names):
        raise ValueError(
            f"{Path(file).name}: the image has {count} channels, the model takes {len(names)} ({', '.join(names)})"
        )


def _nonzero_box(data: NDArray[np.float32]) -> list[list[int]]:
    """Return first and last voxel, exclusive, of what is not zero along each axis; holes in it do not change that."""
    mask = data[0] != 0
    for channel in data[1:]:
        mask |= channel != 0
    box: list[list[int]] = get_bbox_from_mask(mask)
    return box


class PredictionConfiguration(ConfigurationManager):
    """Configuration whose preprocessor, if it is nnU-Net's default, and resampling of images need less memory."""

    @property
    def preprocessor_class(self) -> type[DefaultPreprocessor]:
        """``PredictionPreprocessor`` in place of nnU-Net's default."""
        found: type[DefaultPreprocessor] = super().preprocessor_class
        return PredictionPreprocessor if found is DefaultPreprocessor else found

    @property
    def resampling_fn_data(self) -> Callable[..., Any]:
        """The plan's function, or one with its values."""
        return in_bounded_memory(super().resampling_fn_data)


def for_prediction(configuration: Any) -> Any:
    """Return a configuration of nnU-Net's whose images are preprocessed in less memory."""
    if type(configuration) is not ConfigurationManager:
        return configuration
    return PredictionConfiguration(configuration.configuration)
