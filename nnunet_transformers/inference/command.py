"""Command ``predict``: the options of nnU-Net's two prediction commands, run by ``BatchedPredictor``.

nnU-Net builds its parsers inside its entry points, so the options are declared again here; a test compares them with
nnU-Net's.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.file_path_utilities import get_output_folder

from .._device import AUTO, find_device, no_gpu
from .._processes import available_cores
from ..plans.plan_files import dataset_name
from ..weights.nnunet_checkpoint import FINAL
from .predictor import BatchedPredictor
from .sources import holds_dicom, open_source, predict_source

PROGRAM = "nnunet-transformers predict"
DEVICES = (AUTO, "cpu", "mps", "cuda")
FOLDS = (0, 1, 2, 3, 4)
PROCESSES = 3
CITATION = (
    "When you use nnU-Net, please cite: Isensee, Jaeger, Kohl, Petersen, Maier-Hein. nnU-Net: a self-configuring "
    "method for deep learning-based biomedical image segmentation. Nature Methods 18, 203-211 (2021)."
)


class _Parser(argparse.ArgumentParser):
    """Argument parser that raises ValueError where argparse prints the usage and exits."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see `{PROGRAM} --help`")


def predict(
    arguments: Sequence[str],
    batch_size: int | None = None,
    use_compile: bool = False,
    trust: bool = False,
    save_uncertainty: bool = False,
    calibrated: bool = False,
) -> None:
    """Predict a folder as nnUNetv2_predict does, or with -m as nnUNetv2_predict_from_modelfolder does.

    Args:
        arguments: arguments of that command; -h prints its help.
        batch_size, use_compile, trust: see ``BatchedPredictor``.
        save_uncertainty: write maps of entropy and disagreement, see ``UncertaintyMaps``.
        calibrated: divide logits by the temperature that ``calibrate`` stored with the model.

    Raises:
        ValueError: if an argument is unknown or out of range, or the device is not available.
        FileNotFoundError: if the model or its checkpoint is missing.
        RuntimeError: if nnU-Net refuses the model or the images.
    """
    options = build_parser(_is_model_folder_given(arguments)).parse_args(arguments)
    print(CITATION)
    try:
        _predict(options, batch_size, use_compile, trust, save_uncertainty, calibrated)
    except (AssertionError, RuntimeError) as error:  # nnU-Net's checks, whose messages span several lines
        if not str(error):
            raise
        raise RuntimeError(" ".join(str(error).split())) from error


def build_parser(from_model_folder: bool) -> argparse.ArgumentParser:
    """Build a parser of nnU-Net's options.

    Args:
        from_model_folder: whether the model is given by its folder (-m), as in nnUNetv2_predict_from_modelfolder,
            rather than by dataset, plan, trainer and configuration, as in nnUNetv2_predict.
    """
    parser = _Parser(prog=PROGRAM, description="Options of nnU-Net's command.")
    add = parser.add_argument
    add("-i", required=True, type=str, help="Folder of images, CASE_0000.ending and so on, as in training.")
    add("-o", required=True, type=str, help="Folder for the segmentations, created if it is missing.")
    if from_model_folder:
        add("-m", required=True, type=str, help="Folder of the trained model, with subfolders fold_X.")
    else:
        add("-d", required=True, type=str, help="Number or name of the dataset that the model was trained on.")
        add("-p", default="nnUNetPlans", type=str, help="Name of the plan. Default: %(default)s.")
        add("-tr", default="nnUNetTrainer", type=str, help="Class of the trainer. Default: %(default)s.")
        add("-c", required=True, type=str, help="Configuration of the plan.")
    add("-f", nargs="+", default=FOLDS, type=str, help="Folds whose models to average. Default: 0 1 2 3 4.")
    add("-step_size", default=0.5, type=float, help="Step of the sliding window, in patches. Default: %(default)s.")
    add("--disable_tta", action="store_true", help="Predict without flips: faster, less accurate.")
    add("--verbose", action="store_true", help="Print each step.")
    add("--save_probabilities", action="store_true", help="Write CASE.npz as well, for ensembles.")
    aliases = ("--continue_prediction", "--c") if from_model_folder else ("--continue_prediction",)
    add(*aliases, action="store_true", help="Keep existing segmentations.")
    add("-chk", default=FINAL, type=str, help="Name of the checkpoint. Default: %(default)s.")
    for name, purpose in (("npp", "preprocessing"), ("nps", "segmentation export")):
        default = PROCESSES if from_model_folder else _processes(f"nnUNet_{name}")
        add(f"-{name}", default=default, type=int, help=f"Processes for {purpose}. Default: %(default)s.")
    add("-prev_stage_predictions", type=str, help="Folder of the previous stage's segmentations, for a cascade.")
    if not from_model_folder:
        add("-num_parts", default=1, type=int, help="Number of commands that share the images. Default: %(default)s.")
        add("-part_id", default=0, type=int, help="Index of this command, 0 to num_parts - 1. Default: %(default)s.")
    add("-device", default=AUTO, type=str, help="cuda, cpu or mps; by default the GPU if there is one.")
    add("--disable_progress_bar", action="store_true", help="Show no progress bar.")
    add("--not_on_device", action="store_true", help="Keep images and logits in main memory, for large images.")
    return parser


def _processes(variable: str) -> int:
    """Return the number of processes that an environment variable specifies, nnU-Net's default without it."""
    try:
        return int(os.environ.get(variable, PROCESSES))
    except ValueError:
        return PROCESSES


def _is_model_folder_given(arguments: Sequence[str]) -> bool:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-m")
    return parser.parse_known_args(arguments)[0].m is not None


def _predict(
    options: argparse.Namespace,
    batch_size: int | None,
    use_compile: bool,
    trust: bool,
    save_uncertainty: bool,
    calibrated: bool,
) -> None:
    parts, part = getattr(options, "num_parts", 1), getattr(options, "part_id", 0)
    if not 0 <= part < parts:
        raise ValueError(f"-part_id {part} must be from 0 to below -num_parts {parts}; see `{PROGRAM} --help`")
    if not 0 < options.step_size <= 1:
        raise ValueError(f"-step_size {options.step_size:g} must be above 0 and at most 1; see `{PROGRAM} --help`")
    if options.device not in DEVICES:
        raise ValueError(f"-device must be either cpu, mps or cuda, got {options.device}")
    device = find_device(options.device, "-device")
    if line := no_gpu(options.device, device):
        print(line)
    folds = tuple(fold if fold == "all" else _fold_number(fold) for fold in options.f)
    model = getattr(options, "m", None) or _model_folder(options)
    predictor = BatchedPredictor(
        batch_size=batch_size,
        use_compile=use_compile,
        trust=trust,
        tile_step_size=options.step_size,
        use_mirroring=not options.disable_tta,
        perform_everything_on_device=not options.not_on_device,
        device=device,
        verbose=options.verbose,
        verbose_preprocessing=options.verbose,
        allow_tqdm=not options.disable_progress_bar,
    )
    predictor.save_uncertainty = save_uncertainty
    if calibrated:
        predictor.calibrate(Path(model))
    _set_threads(device.type)
    predictor.initialize_from_trained_model_folder(model, folds, options.chk)
    Path(options.o).mkdir(parents=True, exist_ok=True)
    if holds_dicom(Path(options.i), predictor.dataset_json["file_ending"]):
        if parts > 1:
            raise ValueError("-num_parts divides files, not DICOM series; give each command its own folder")
        source, overwrite = open_source(Path(options.i), predictor.dataset_json), not options.continue_prediction
        stage = options.prev_stage_predictions
        predict_source(predictor, source, Path(options.o), overwrite, stage, options.save_probabilities)
        return
    predictor.predict_from_files(
        options.i,
        options.o,
        save_probabilities=options.save_probabilities,
        overwrite=not options.continue_prediction,
        num_processes_preprocessing=options.npp,
        num_processes_segmentation_export=options.nps,
        folder_with_segs_from_prev_stage=options.prev_stage_predictions,
        num_parts=parts,
        part_id=part,
    )


def _model_folder(options: argparse.Namespace) -> str:
    if not nnUNet_results.get():
        raise ValueError("nnUNet_results is not set; export it, or give the model's folder with -m")
    folder: str = get_output_folder(dataset_name(options.d), options.tr, options.p, options.c)
    return folder


def _fold_number(fold: str | int) -> int:
    try:
        return int(fold)
    except ValueError as error:
        raise ValueError(f"-f {fold!r} is neither a number nor 'all'; see `{PROGRAM} --help`") from error


def _set_threads(device: str) -> None:
    """Use all available cores for a CPU and one for a GPU, as nnU-Net's commands do."""
    if device == "cpu":
        torch.set_num_threads(available_cores())
    elif device == "cuda":
        torch.set_num_threads(1)
        torch.set_num_interop_threads(1)
