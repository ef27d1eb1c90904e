"""Segmentations, and what nnU-Net writes beside them, whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray

from .._atomic import replacing, write_text

# of a prediction, in its folder
ARGUMENTS = "predict_from_raw_data_args.json"


class WholeFilePlans(PlansManager):
    """Plan whose segmentations are written to a temporary folder and moved, as image libraries write in place.

    A prediction that is killed otherwise leaves a truncated segmentation, which ``--continue_prediction`` keeps.
    """

    @property
    def image_reader_writer_class(self) -> type[BaseReaderWriter]:
        """nnU-Net's class for the files of the dataset, with a ``write_seg`` that moves."""
        base: Any = super().image_reader_writer_class

        class WholeFiles(base):
            def write_seg(self, seg: NDArray, output_fname: str, properties: dict) -> None:
                target = Path(output_fname)
                with TemporaryDirectory() as folder:
                    super().write_seg(seg, str(Path(folder) / target.name), properties)
                    # what stands beside the segmentation, such as the spacing of a TIFF, comes before it
                    for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == target.name):
                        with replacing(target.parent / file.name) as partial:
                            shutil.copyfile(file, partial)

        return WholeFiles


@contextmanager
def whole_json_files() -> Iterator[None]:
    """Let nnU-Net's predictor write plans.json and dataset.json, which it leaves truncated on a full disk, whole."""
    original = predict_from_raw_data.save_json
    predict_from_raw_data.save_json = _save_json
    try:
        yield
    finally:
        predict_from_raw_data.save_json = original


def _save_json(content: Any, path: str, indent: int = 4, sort_keys: bool = True) -> None:
    write_text(json.dumps(content, indent=indent, sort_keys=sort_keys), Path(path))


def record(predictor: nnUNetPredictor, arguments: Mapping[str, Any], folder: Path) -> None:
    """Write the arguments of a prediction, plan and dataset.json into its folder, as nnU-Net does."""
    said = deepcopy(dict(arguments))
    recursive_fix_for_json_export(said)
    _save_json(said, str(folder / ARGUMENTS))
    _save_json(predictor.dataset_json, str(folder / "dataset.json"), sort_keys=False)
    _save_json(predictor.plans_manager.plans, str(folder / "plans.json"), sort_keys=False)
