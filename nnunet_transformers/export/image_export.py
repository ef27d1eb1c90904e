"""Export of a prediction in bounded memory: nnU-Net's files, from logits that arrive plane by plane."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from functools import cached_property
from math import prod
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from numpy.typing import NDArray
from torch import Tensor

from .._atomic import replacing
from .._reading import read_json
from .label_map import begin_label_map


class ImageExport:
    """Takes the logits of an image plane by plane; at the end there are its labels, and the probabilities if asked for.

    Where the plan's resampling cannot be done slab by slab, the logits are kept and nnU-Net's own export does the rest.

    Args:
        plans, configuration, labels: of the model.
        properties: what nnU-Net's preprocessing notes of the image.
        logits_shape: voxels per axis of the logits.
        with_probabilities: compute the probabilities as well.
        folder: folder for a temporary file of the probabilities; without one they are kept in memory.

    Raises:
        OSError: if the folder's disk has no room for the probabilities.
    """

    def __init__(
        self,
        plans: PlansManager,
        configuration: ConfigurationManager,
        labels: LabelManager,
        properties: Mapping[str, Any],
        logits_shape: Sequence[int],
        with_probabilities: bool = False,
        folder: Path | None = None,
    ) -> None:
        self._model = (plans, configuration, labels)
        self._properties = properties
        self._with_probabilities = with_probabilities
        self._temporary: IO[bytes] | None = None
        self._kept: list[Tensor] = []
        self._map = begin_label_map(plans, configuration, labels, properties, logits_shape)
        if self._map is not None and with_probabilities:
            before = properties["shape_before_cropping"]
            shape = (labels.num_segmentation_heads, *(int(before[i]) for i in plans.transpose_backward))
            self._probabilities = self._empty(shape, folder)
            # in the order of axes of the preprocessed image
            turned = self._probabilities.transpose(0, *(axis + 1 for axis in plans.transpose_forward))
            self._map = begin_label_map(plans, configuration, labels, properties, logits_shape, turned)

    def _empty(self, shape: tuple[int, ...], folder: Path | None) -> NDArray[np.float32]:
        if folder is None:
            return np.empty(shape, np.float32)
        # it has no name, so that the system removes it with this process, however that ends
        self._temporary = file = TemporaryFile(prefix=".probabilities_", dir=folder)  # noqa: SIM115  (`close` does it)
        size = np.dtype(np.float32).itemsize * prod(shape)
        try:
            # a full disk is an error here; a map of a file with holes would end the process by SIGBUS
            os.posix_fallocate(file.fileno(), 0, size) if hasattr(os, "posix_fallocate") else file.truncate(size)
        except OSError:
            file.close()
            raise
        return np.memmap(file, np.float32, "r+", shape=shape)

    def restart(self) -> None:
        """Expect the first plane again."""
        self._kept.clear()
        if self._map is not None:
            self._map.restart()

    def add(self, logits: Tensor) -> None:
        """Take the next planes, (classes, planes, rows, columns), on any device."""
        if self._map is None:
            self._kept.append(logits.cpu())
        else:
            self._map.add(logits)

    @cached_property
    def result(self) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """Labels of the image as it was read, and its probabilities, (classes, *image), or None."""
        plans, configuration, labels = self._model
        if self._map is not None:
            turned = self._map.array().transpose(plans.transpose_backward)
            return turned, self._probabilities if self._with_probabilities else None
        logits = torch.cat(self._kept, 1) if len(self._kept) > 1 else self._kept[0]
        self._kept.clear()
        found = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, plans, configuration, labels, self._properties, self._with_probabilities, torch.get_num_threads()
        )
        return found if self._with_probabilities else (found, None)

    def write(self, truncated: str, file_ending: str) -> None:
        """Write nnU-Net's files: the segmentation, and with probabilities CASE.npz and CASE.pkl.

        Args:
            truncated: path of the segmentation without its ending.
            file_ending: ending of the dataset's files.
        """
        labels, probabilities = self.result
        if probabilities is not None:
            with replacing(Path(f"{truncated}.npz")) as partial, partial.open("wb") as file:
                np.savez_compressed(file, probabilities=probabilities)
            with replacing(Path(f"{truncated}.pkl")) as partial:
                partial.write_bytes(pickle.dumps(self._properties))
        self._model[0].image_reader_writer_class().write_seg(labels, f"{truncated}{file_ending}", self._properties)

    def close(self) -> None:
        """Let go of the temporary file, and of the result that is in it."""
        if self._temporary is not None:
            # the disk has its room back when nothing maps the file
            self._map, self._probabilities = None, np.empty(0, np.float32)
            vars(self).pop("result", None)
            self._temporary.close()
            self._temporary = None


def export_prediction_from_logits(
    predicted_array_or_file: NDArray[Any] | Tensor,
    properties_dict: dict[str, Any],
    configuration_manager: ConfigurationManager,
    plans_manager: PlansManager,
    dataset_json_dict_or_file: dict[str, Any] | str,
    output_file_truncated: str,
    save_probabilities: bool = False,
    num_threads_torch: int = 1,
) -> None:
    """Export logits as nnU-Net's function of this name does, whose arguments it takes, in bounded memory."""
    dataset = dataset_json_dict_or_file
    dataset = read_json(Path(dataset)) if isinstance(dataset, str) else dataset
    logits = torch.as_tensor(predicted_array_or_file)
    labels = plans_manager.get_label_manager(dataset)
    threads = torch.get_num_threads()
    torch.set_num_threads(num_threads_torch)
    export = ImageExport(
        plans_manager,
        configuration_manager,
        labels,
        properties_dict,
        logits.shape[1:],
        save_probabilities,
        Path(output_file_truncated).parent,
    )
    try:
        export.add(logits)
        export.write(output_file_truncated, dataset["file_ending"])
    finally:
        export.close()
        torch.set_num_threads(threads)
