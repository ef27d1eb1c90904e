"""Images one after another: preprocessing of the next, passes with export slab by slab, files of the last."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from numpy.typing import NDArray
from torch import Tensor

from ..cpu import release_freed_memory
from ..export import ImageExport
from .uncertainty import UncertaintyMaps

if TYPE_CHECKING:
    from .predictor import BatchedPredictor

# what nnU-Net's iterators yield: data, data_properties and ofile, the output without its ending
Item = dict[str, Any]


def preprocess(
    predictor: BatchedPredictor,
    cases: Sequence[Sequence[str]],
    previous: Sequence[str | None] | None,
    outputs: Sequence[str | None] | None,
) -> Iterator[Item]:
    """Preprocess images in this process as nnU-Net's workers do, for a GPU one ahead in a thread.

    Args:
        predictor: predictor with a model.
        cases: files of each image, one per channel.
        previous: segmentation of the previous stage of a cascade for each image.
        outputs: path of each segmentation without its ending.
    """
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=predictor.verbose_preprocessing)
    count = len(cases)

    def one(number: int) -> Item:
        stage = None if previous is None else previous[number]
        data, labels, properties = preprocessor.run_case(
            cases[number], stage, predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
        )
        if stage is not None:
            data = stack_stage(predictor, data, labels)
        data = torch.from_numpy(data).to(torch.float32, memory_format=torch.contiguous_format)
        if predictor.device.type == "cpu":
            release_freed_memory()
        return {"data": data, "data_properties": properties, "ofile": None if outputs is None else outputs[number]}

    if predictor.device.type == "cpu" or count == 1:  # another image at a time would only need memory
        yield from map(one, range(count))
        return
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(one, 0)
        for number in range(count):
            item = waiting.result()
            if number + 1 < count:
                waiting = executor.submit(one, number + 1)
            yield item


def stack_stage(predictor: BatchedPredictor, data: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
    """Return a preprocessed image, (channels, *spatial), with a channel for each label of the stage before."""
    foreground = predictor.label_manager.foreground_labels
    return np.vstack((data, convert_labelmap_to_one_hot(labels[0], foreground, data.dtype)))


def predict_image(
    predictor: BatchedPredictor,
    data: Tensor,
    properties: dict[str, Any],
    with_probabilities: bool = False,
    folder: Path | None = None,
    maps: UncertaintyMaps | None = None,
) -> ImageExport:
    """Predict a preprocessed image; the result has its labels, and its probabilities if they are asked for.

    Args:
        predictor: predictor with a model.
        data: (channels, *spatial).
        properties: what nnU-Net's preprocessing notes of the image.
        with_probabilities: compute the probabilities as well.
        folder: folder for a temporary file of the probabilities; without one they are kept in memory.
        maps: collect these as well.

    Raises:
        ValueError: if the image has other channels than the model.
    """
    export = ImageExport(
        predictor.plans_manager,
        predictor.configuration_manager,
        predictor.label_manager,
        properties,
        data.shape[1:],
        with_probabilities,
        folder,
    )

    def take(first: int, folds: list[Tensor]) -> None:
        if first == 0:
            export.restart()
            if maps is not None:
                maps.restart()
        if predictor.temperature != 1:
            for logits in folds:
                logits /= predictor.temperature
        if maps is not None:
            maps.add(folds)
        export.add(mean(folds))

    try:
        predictor.predict_slabs(data, take)
    except BaseException:
        export.close()
        raise
    return export


def mean(folds: list[Tensor]) -> Tensor:
    """Return the mean logits of the folds in the first one's memory, summed in the order and type of nnU-Net."""
    result = folds[0]
    for logits in folds[1:]:
        result += logits
    if len(folds) > 1:  # by a tensor, since CUDA multiplies by the reciprocal of a number
        result /= torch.tensor(float(len(folds)), dtype=result.dtype, device=result.device)
    return result


def predict_images(predictor: BatchedPredictor, items: Iterator[Item], with_probabilities: bool) -> list[Any]:
    """Predict preprocessed images; files are written in a thread while the next image is predicted.

    Returns:
        for each image None if its files are written, otherwise its labels, or labels and probabilities.
    """
    results: list[Any] = []
    ending = predictor.dataset_json["file_ending"]
    writing: Future[None] | None = None
    with ThreadPoolExecutor(1) as writer:
        for item in items:
            data, output = item["data"], item["ofile"]
            if isinstance(data, str):  # nnU-Net's iterators of arrays leave a file
                path = Path(data)
                data = torch.from_numpy(np.load(path))
                path.unlink()
            print(f"Predicting {'image of shape ' + str(tuple(data.shape)) if output is None else Path(output).name}")
            folder = None if output is None else Path(os.path.dirname(output) or os.curdir)
            properties = item["data_properties"]
            with_maps = predictor.save_uncertainty and output is not None
            maps = UncertaintyMaps(predictor.label_manager.has_regions) if with_maps else None
            export = predict_image(predictor, data, properties, with_probabilities, folder, maps)
            del item, data
            if writing is not None:
                writing.result()  # so that no more than two label maps are in memory
            if output is None:
                results.append(export.result if with_probabilities else export.result[0])
            else:
                if maps is not None:
                    # the segmentation last, by which a later run knows that the case is done
                    maps.write(predictor, properties, Path(output))
                writing = writer.submit(_write, export, output, ending)
                results.append(None)
        if writing is not None:
            writing.result()
    return results


def _write(export: ImageExport, output: str, ending: str) -> None:
    try:
        export.write(output, ending)
    finally:
        export.close()
