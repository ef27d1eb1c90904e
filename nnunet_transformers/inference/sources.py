"""Cases to predict, whatever format they are in: nnU-Net's files, DICOM series, sockets of grand-challenge.org."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from .._atomic import replacing
from ..formats import Source
from ..formats.sockets import Interface, Sockets, holds_sockets
from .cases import find_cases
from .whole_files import ARGUMENTS

if TYPE_CHECKING:
    from .predictor import BatchedPredictor


class Files:
    """Cases of a folder by nnU-Net's file names, as they are.

    Raises:
        FileNotFoundError, ValueError: as ``find_cases``.
    """

    def __init__(self, folder: Path, file_ending: str) -> None:
        self._found, self._ending = find_cases(folder, file_ending), file_ending

    @property
    def names(self) -> Sequence[str]:
        """Names of the cases."""
        return list(self._found.cases)

    @property
    def problems(self) -> Mapping[str, str]:
        """Files that belong to no case, with the reason."""
        return self._found.problems

    def check(self, name: str) -> None:
        """Do nothing: every segmentation can be written."""

    @contextmanager
    def files(self, name: str) -> Iterator[list[Path]]:
        """Give the files of a case."""
        yield self._found.cases[name]

    def target(self, name: str, output: Path) -> Path:
        """Return the file of a segmentation."""
        return output / f"{name}{self._ending}"

    def write(self, name: str, segmentation: Path, target: Path) -> None:
        """Copy a segmentation."""
        copy_segmentation(segmentation, target, self._ending)


def copy_segmentation(segmentation: Path, target: Path, file_ending: str) -> None:
    """Copy a file that nnU-Net's readers write, with the one of the spacing that they write beside a TIFF."""
    beside = [path.with_name(f"{path.name.removesuffix(file_ending)}.json") for path in (segmentation, target)]
    for source, copied in ([beside] if beside[0].is_file() else []) + [[segmentation, target]]:
        with replacing(copied) as partial:
            shutil.copyfile(source, partial)


def open_source(folder: Path, dataset_json: Mapping[str, Any], interfaces: Sequence[Interface] = ()) -> Source:
    """Find the cases of a folder: DICOM if it has no file with the dataset's ending and some DICOM below it.

    Args:
        folder: the images.
        dataset_json: that of the model.
        interfaces: those of an algorithm; the folder may then be the input of a run.

    Raises:
        FileNotFoundError, ValueError: if there is no folder, or no image in it.
        ModuleNotFoundError: if it is DICOM and the extra ``[dicom]`` is missing.
    """
    if interfaces and holds_sockets(folder):
        return Sockets(folder, interfaces, dataset_json)
    if holds_dicom(folder, dataset_json["file_ending"]):
        from ..formats.dicom_folder import DicomFolder

        source = DicomFolder(folder, dataset_json)
        if source.skipped:
            print(f"note: DICOM files of {folder}: {source.notes()}")
        return source
    return Files(folder, dataset_json["file_ending"])


def holds_dicom(folder: Path, file_ending: str) -> bool:
    """Whether a folder has no file with an ending and, itself or in its subfolders, a DICOM file."""
    if not folder.is_dir() or any(path.name.endswith(file_ending) for path in folder.iterdir()):
        return False
    from ..formats.dicom_folder import dicom_files

    return next(dicom_files(folder), None) is not None


def predict_source(
    predictor: BatchedPredictor,
    source: Source,
    output: Path,
    overwrite: bool = True,
    previous: str | None = None,
    save_probabilities: bool = False,
) -> None:
    """Predict the cases of a source one after another; one that cannot be predicted stops no other.

    Args:
        predictor: predictor with a model.
        source: the cases.
        output: folder of the segmentations, and of what else prediction writes.
        overwrite: whether to predict cases anew whose files are all there.
        previous: folder of the previous stage's segmentations, for a cascade.
        save_probabilities: write CASE.npz as well.

    Raises:
        FileNotFoundError: if the previous stage has no segmentation of a case in the format of the dataset.
        ValueError: at the end, if cases were not predicted; it names the first, and a line was printed for each.
    """
    ending = predictor.dataset_json["file_ending"]
    names = [
        name
        for name in source.names
        if overwrite or not predictor.is_predicted(source.target(name, output), output / name, save_probabilities)
    ]
    if previous is not None:
        _check_stage(Path(previous), names, ending)
    failed: dict[str, str] = {}
    for name in names:
        try:
            source.check(name)
            with source.files(name) as files, TemporaryDirectory() as folder:
                predictor.predict_from_files_sequential(
                    [[str(path) for path in files]],
                    [str(Path(folder, name))],
                    save_probabilities=save_probabilities,
                    folder_with_segs_from_prev_stage=previous,
                )
                # the segmentation last, by which a later run knows that the case is done
                _copy_others(Path(folder), output, {f"{name}{ending}", ARGUMENTS})
                source.write(name, Path(folder, f"{name}{ending}"), source.target(name, output))
        except Exception as error:  # whatever nnU-Net raises, the other cases are predicted
            failed[name] = " ".join(str(error).split()) or type(error).__name__
            print(f"{name}: not predicted: {failed[name]}")
    if failed:
        name, first = next(iter(failed.items()))
        raise ValueError(f"{len(failed)} of {len(names)} cases were not predicted, the first {name}: {first}")


def _check_stage(folder: Path, names: Iterable[str], file_ending: str) -> None:
    """Raise FileNotFoundError unless the previous stage's segmentations are in the format of the dataset."""
    for name in names:
        if not (path := folder / f"{name}{file_ending}").is_file():
            raise FileNotFoundError(
                f"there is no {path}; predict the stage before first. From images of another format, `predict` writes "
                "other files than the next stage reads: make a package of the cascade (`nnunet-transformers package "
                "make`)"
            )


def _copy_others(folder: Path, output: Path, written: Collection[str]) -> None:
    """Copy what else prediction has written: plans, probabilities, maps of uncertainty in folders of their own."""
    for path in sorted(folder.rglob("*")):
        # maps are called as the segmentation
        if path.is_file() and not (path.parent == folder and path.name in written):
            copied = output / path.relative_to(folder)
            copied.parent.mkdir(exist_ok=True)
            with replacing(copied) as partial:
                shutil.copyfile(path, partial)
