"""The files of a compared case, read as index maps of its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..results import Evaluation
from ..segmentations import (
    common_file_ending,
    dataset_json_of,
    find_reader,
    load_dataset_json,
    read_described,
    read_segmentation,
)
from ..targets import Targets
from .cards import DrawnCase
from .figures import index_of_part, mask_ignored
from .files import check_size_of, images_in, segmentation_in
from .orientation import View


@dataclass(frozen=True)
class Sources:
    """Where the segmentations and images of the compared cases are.

    Attributes:
        evaluations: by the model's name.
        folders: of a model a folder to look in before the paths that its evaluation states.
        labels: folder of the references; None takes those that the evaluations state.
        images: folder of the images; None draws none.
    """

    evaluations: Mapping[str, Evaluation]
    folders: Mapping[str, Path]
    labels: Path | None
    images: Path | None


def read_case(case: str, models: Sequence[str], sources: Sources, parts: Sequence[Sequence[int]]) -> DrawnCase | str:
    """Read a case; a sentence instead if a segmentation is not on this machine.

    Raises:
        FileNotFoundError: if the image is missing.
        ValueError: if a file cannot be read, or sizes differ.
    """
    stated = [sources.evaluations[model].files[case] for model in models]
    paths = [
        segmentation_in([folder] if (folder := sources.folders.get(model)) else [], files[0])
        for model, files in zip(models, stated, strict=True)
    ]
    reference = segmentation_in([sources.labels] if sources.labels else [], stated[0][1])
    if reference is None or None in paths:
        which = "Its label" if reference is None else f"The prediction of {models[paths.index(None)]}"
        return f"{which} is not on this machine."
    found = [path for path in paths if path is not None]
    described = next((path for f in found if (path := dataset_json_of(f.parent))), None)
    dataset = load_dataset_json(described) if described else None
    ending = dataset["file_ending"] if dataset else common_file_ending(reference.parent)
    reader = find_reader(dataset, ending, reference)
    truth, properties = read_described(reader, reference)
    predictions = [read_segmentation(reader, path)[0] for path in found]
    ignore = Targets.from_dataset_json(dataset).ignore if dataset else None
    for path, prediction in zip(found, predictions, strict=True):
        check_size_of(path, prediction, reference, truth)
        mask_ignored(prediction, truth, ignore)
    image = None
    if sources.images is not None:
        files = images_in(sources.images, case, ending)
        if not files:
            raise FileNotFoundError(f"no image of case {case} ({case}_0000{ending}) in {sources.images}")
        image = reader.read_images(files)[0][0]
        check_size_of(files[0], image, reference, truth)
    view = View.of(properties, truth.shape)
    truth, *predictions = (view.apply(index_of_part(voxels, parts)) for voxels in (truth, *predictions))
    return DrawnCase(truth, predictions, None if image is None else view.apply(image), view)
