"""Arrays in, labels out: a trained model that is loaded once and predicts without files.

>>> segmenter = load_model("hippocampus")
>>> labels = segmenter.predict(array, spacing=(1.0, 1.0, 1.0))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import ArrayLike, NDArray

from .._atomic import check_place
from .._device import find_device
from .._image_size import check_size
from .._orientation import reoriented_by
from .._reading import reading
from .._voxels import check_complete, count_non_finite
from ..formats import Source
from ..inference import BatchedPredictor
from ..inference.cases import check_axes
from ..inference.images import predict_image, stack_stage
from ..inference.preprocessing import read_channels
from ..inference.sources import copy_segmentation
from ..plans.planned import channel_names
from ..weights.nnunet_checkpoint import FINAL
from .load import LoadedModel, load_package
from .pull import pull
from .trained import find_folds

HUB = "hf://"
# nnU-Net's spacing of the first axis of 2D images
FLAT = 999.0

Image: TypeAlias = "ArrayLike | sitk.Image | str | Path | Sequence[str | Path]"


@dataclass(frozen=True)
class Stage:
    """A model with its folds, and in a cascade the model before it."""

    predictor: BatchedPredictor
    previous: Stage | None = None


def load_model(
    source: str | Path,
    device: str = "auto",
    folds: Sequence[str | int] = (),
    use_mirroring: bool = True,
    step_size: float = 0.5,
    checkpoint: str = FINAL,
) -> Segmenter:
    """Load a trained model.

    Args:
        source: a package, its address on the hub (hf://owner/name), nnU-Net's folder of a model, or a fold in it.
        device: auto, cuda, cpu or mps.
        folds: folds to average; all by default.
        use_mirroring: average over flips along the axes that the trainer allows.
        step_size: step of the sliding window, in patches.
        checkpoint: file name of the checkpoints of a folder of nnU-Net's.

    Raises:
        FileNotFoundError: if there is no such model or fold.
        ValueError: if the package was altered, a checkpoint is damaged or would have to be unpickled, or the device is
            not available.
    """
    arguments: dict[str, Any] = {"step_size": step_size, "use_mirroring": use_mirroring}
    chosen, names = find_device(device), [str(fold) for fold in folds]
    if str(source).startswith(HUB):
        with TemporaryDirectory() as temporary:
            package = pull(str(source), Path(temporary) / "package").path
            models = load_package(package, chosen, folds=names, **arguments)
    elif (folder := Path(source)).joinpath("manifest.json").is_file():
        models = load_package(folder, chosen, folds=names, **arguments)
    else:
        return Segmenter([Stage(_load_folder(folder, chosen, names, checkpoint, step_size, use_mirroring))])

    def stage(model: LoadedModel) -> Stage:
        return Stage(model.predictor, None if model.previous is None else stage(model.previous))

    return Segmenter([stage(model) for model in models])


def _load_folder(
    folder: Path, device: torch.device, folds: list[str], checkpoint: str, step_size: float, use_mirroring: bool
) -> BatchedPredictor:
    if folder.name.startswith("fold_") and not folds:
        folder, folds = folder.parent, [folder.name.removeprefix("fold_")]
    found = find_folds(folder, folds, checkpoint)
    with redirect_stdout(StringIO()):
        predictor = BatchedPredictor(
            device=device, tile_step_size=step_size, use_mirroring=use_mirroring, allow_tqdm=False
        )
        numbers = tuple(int(fold) if fold.isdigit() else fold for fold in found)
        predictor.initialize_from_trained_model_folder(str(folder), numbers, checkpoint)
    previous = predictor.configuration_manager.previous_stage_name
    if previous is not None:
        raise ValueError(f"{folder} needs the segmentations of {previous}; make a package of it, which has both models")
    return predictor


class Segmenter:
    """A model, or an ensemble of them, ready to predict; made by ``load_model``.

    Its methods can be called from several threads: one image is predicted at a time, the others wait.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = list(stages)
        self._lock = Lock()

    @property
    def labels(self) -> dict[str, Any]:
        """Labels or regions by name, as in dataset.json."""
        return dict(self._predictor.dataset_json["labels"])

    @property
    def channels(self) -> list[str]:
        """Names of the input channels, in order."""
        return list(channel_names(self._predictor.dataset_json))

    @property
    def _predictor(self) -> BatchedPredictor:
        return self._stages[0].predictor

    def predict(self, image: Image, spacing: Sequence[float] | None = None) -> Any:
        """Segment an image.

        Args:
            image: an array, (channels, z, y, x), (z, y, x) or (y, x), as the dataset's reader yields it; a SimpleITK
                image; the file of an image, or of each channel; or a folder of one DICOM series, or of those of the
                channels.
            spacing: of an array, in mm per voxel, in its order of axes.

        Returns:
            labels in the array's order of axes, without channels; for a SimpleITK image one on the same grid.

        Raises:
            ValueError: if channels or axes are not the model's, the spacing is missing, or a voxel is no number.
        """
        turned = self._turned(image)
        array, properties, is_flat = self._read(turned, spacing)
        labels = self._predict(array, properties, False)[0]
        labels = labels[0] if is_flat else labels
        return _on_grid(labels, turned, image) if isinstance(image, sitk.Image) else labels

    def predict_probabilities(self, image: Image, spacing: Sequence[float] | None = None) -> NDArray[np.float32]:
        """Compute the probabilities of labels, or of regions, (classes, *image), float32.

        Args, Raises: as ``predict``.
        """
        turned = self._turned(image)
        array, properties, is_flat = self._read(turned, spacing)
        probabilities: NDArray[np.float32] = self._predict(array, properties, True)[1]
        probabilities = probabilities[:, 0] if is_flat else probabilities
        if turned is image:
            return probabilities
        return np.stack([sitk.GetArrayFromImage(_on_grid(part, turned, image)) for part in probabilities])

    def _turned(self, image: Any) -> Any:
        """Turn a SimpleITK image to the axes that the dataset's reader turns its files to, if it does."""
        axes = reoriented_by(self._predictor.plans_manager.image_reader_writer_class)
        if axes is not None and isinstance(image, sitk.Image) and image.GetDimension() == 3:
            return sitk.DICOMOrient(image, axes)
        return image

    def predict_file(self, image: str | Path | Sequence[str | Path], output: str | Path) -> None:
        """Segment a file and write the segmentation, whole or not at all.

        Args:
            image: as ``predict``, but for arrays and SimpleITK images.
            output: file to write, with the ending of the dataset's files, or .dcm for DICOM.

        Raises:
            ValueError: as ``predict``, or if the output has another ending.
            FileNotFoundError, PermissionError: if the output's folder is missing or cannot be written to.
            ModuleNotFoundError: if the image is DICOM and the extra ``[dicom]`` is missing.
        """
        output, ending = Path(output), self._predictor.dataset_json["file_ending"]
        reader = self._predictor.plans_manager.image_reader_writer_class()
        with self._files(image) as (files, source), TemporaryDirectory() as folder:
            expected = ending if source is None else source.target("", output).name
            if not output.name.endswith(expected):
                raise ValueError(f"{output} does not end with {expected}, as the segmentation of such an image does")
            if source is not None:
                source.check(source.names[0])
            check_place(output)
            check_axes(files)
            segmentation = Path(folder, f"labels{ending}")
            array, properties, _ = self._read(files, None)
            reader.write_seg(self._predict(array, properties, False)[0], str(segmentation), properties)
            if source is not None:
                source.write(source.names[0], segmentation, output)
                return
            copy_segmentation(segmentation, output, ending)

    @contextmanager
    def _files(self, image: str | Path | Sequence[str | Path]) -> Iterator[tuple[list[Path], Source | None]]:
        """Give the files of an image in the format of the dataset, and what they come from if they are converted."""
        paths = [Path(path) for path in ([image] if isinstance(image, (str, Path)) else image)]
        if not any(path.is_dir() for path in paths):
            yield paths, None
            return
        if len(paths) > 1:
            raise ValueError(
                f"{paths[0]} and {len(paths) - 1} more, of which one is a folder: give files of channels, or one "
                "folder of DICOM (of several channels: with CASE_0000, CASE_0001 ... in it)"
            )
        from ..formats.dicom_folder import DicomFolder

        source = DicomFolder(paths[0], self._predictor.dataset_json)
        if len(source.names) != 1:
            raise ValueError(
                f"{image} has {len(source.names)} series, {', '.join(source.names)}; name the folder of one"
            )
        with source.files(source.names[0]) as files:
            yield files, source

    def _read(self, image: Any, spacing: Sequence[float] | None) -> tuple[NDArray[Any], dict[str, Any], bool]:
        """Return (channels, z, y, x), nnU-Net's properties, and whether the first spatial axis is not the image's."""
        paths, bad = [image] if isinstance(image, (str, Path)) else image, 0
        if isinstance(paths, (list, tuple)) and paths and all(isinstance(path, (str, Path)) for path in paths):
            reader = self._predictor.plans_manager.image_reader_writer_class()
            with self._files(image) as (files, _):
                check_size(files)
                check_axes(files, 4)  # no file of the labels is written
                for file in files:
                    with reading(file, "an image"):
                        check_complete(file)
                        bad += count_non_finite(file)
                array, properties = read_channels(reader, [str(path) for path in files])
            is_flat = False
        else:
            if isinstance(image, sitk.Image):
                array, spacing = sitk.GetArrayFromImage(image), image.GetSpacing()[::-1]
                array = np.moveaxis(array, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else array
            else:
                array = np.asarray(image)
            if spacing is None:
                raise ValueError("spacing is missing: mm per voxel along each axis of the array")
            is_flat = len(spacing) == 2
            array = array[None] if array.ndim == len(spacing) else array
            if array.ndim != len(spacing) + 1 or len(spacing) not in (2, 3) or min(spacing) <= 0:
                raise ValueError(f"an array of shape {array.shape} does not have a spacing of {tuple(spacing)} mm")
            array = array[:, None] if is_flat else array
            properties = {"spacing": [FLAT] * is_flat + [float(mm) for mm in spacing]}
        if len(array) != len(self.channels):
            names = ", ".join(self.channels)
            raise ValueError(f"{len(array)} channels, the model takes {len(self.channels)} ({names})")
        size = "x".join(map(str, array.shape[1:]))
        if not array.size:
            raise ValueError(f"the image is empty: {size} voxels")
        is_3d = any(len(stage.predictor.configuration_manager.patch_size) == 3 for stage in self._stages)
        if is_flat and is_3d:
            raise ValueError("the image has two axes, the model three; give a volume, with a spacing of three numbers")
        if array.shape[1] == 1 and is_3d:
            raise ValueError(f"a 2D image ({size} voxels), the model takes 3D images")
        # SimpleITK reads those of a file as 0
        if bad := bad or int(array.size - np.isfinite(array).sum()):
            raise ValueError(f"NaN or infinity in {bad} voxels; replace them by the background's value")
        return array, properties, is_flat

    def _predict(
        self, array: NDArray[Any], properties: Mapping[str, Any], with_probabilities: bool
    ) -> tuple[NDArray[Any], Any]:
        with self._lock, redirect_stdout(StringIO()):
            if len(self._stages) == 1:
                return _predict_stage(self._stages[0], array, properties, with_probabilities)
            # as nnUNetv2_ensemble
            total: Any = None
            for stage in self._stages:
                one = _predict_stage(stage, array, properties, True)[1]
                total = one if total is None else np.add(total, one, out=total)
            total /= len(self._stages)
            return np.asarray(self._predictor.label_manager.convert_probabilities_to_segmentation(total)), total


def _on_grid(values: NDArray[Any], turned: Any, image: Any) -> sitk.Image:
    """Return values on the grid of ``turned`` as an image on that of the image that was turned."""
    result = sitk.GetImageFromArray(values)
    result.CopyInformation(turned)
    if turned is image:
        return result
    code = sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines(image.GetDirection())
    result = sitk.DICOMOrient(result, code)
    result.CopyInformation(image)
    return result


def _predict_stage(
    stage: Stage, array: NDArray[Any], properties: Mapping[str, Any], with_probabilities: bool
) -> tuple[NDArray[Any], Any]:
    predictor = stage.predictor
    before = None
    if stage.previous is not None:
        before = _predict_stage(stage.previous, array, properties, False)[0][None].astype(np.float32)
    data, labels, found = predictor.configuration_manager.preprocessor_class(verbose=False).run_case_npy(
        array,
        before,
        dict(properties),
        predictor.plans_manager,
        predictor.configuration_manager,
        predictor.dataset_json,
    )
    if before is not None:
        data = stack_stage(predictor, data, labels)
    return predict_image(predictor, torch.from_numpy(data).float(), found, with_probabilities).result
