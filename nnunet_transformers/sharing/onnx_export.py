"""Networks of a package as ONNX files, with a description of all else that prediction needs, and a reference runner."""

from __future__ import annotations

import json
import shutil
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.sliding_window_prediction import compute_gaussian

from .._atomic import new_folder
from ..plans.planned import channel_names
from .contents import TEMPLATES
from .load import LoadedModel

OPSET = 18
NEEDED = ("onnx", "onnxruntime", "onnxscript")
NORMALISATIONS = ("CTNormalization", "ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization")
RUNNER, DESCRIPTION, WINDOW = "run.py", "model.json", "window.npy"


def export_onnx(models: list[LoadedModel], output: Path, half: bool = False) -> list[Path]:
    """Write a model's folds as ONNX, model.json, the weights of the sliding window and a runner that needs NumPy only.

    Args:
        models: result of ``load_package``, of one model on the CPU.
        output: folder to write, whole or not at all.
        half: convert weights and computation to float16; images and logits stay float32.

    Returns:
        the networks.

    Raises:
        ModuleNotFoundError: if onnx is not installed.
        FileExistsError: if ``output`` exists.
        ValueError: if the package is an ensemble or a cascade, or the model normalises in a way that the runner lacks.
    """
    if any(find_spec(name) is None for name in NEEDED):
        raise ModuleNotFoundError("onnx is not installed; pip install 'nnunet-transformers[onnx]'")
    if output.exists():
        raise FileExistsError(f"{output} exists; remove it or choose another name")
    if len(models) != 1 or models[0].previous is not None:
        raise ValueError("an ensemble or a cascade is several networks; make a package of one model and export that")
    predictor = models[0].predictor
    description = describe(models[0])
    patch = torch.zeros(1, len(description["channels"]), *description["patch_size"])
    paths = []
    with new_folder(output) as partial, torch.no_grad(), redirect_stdout(StringIO()):
        for weights, name in zip(predictor.list_of_parameters, description["networks"], strict=True):
            predictor.network.load_state_dict(weights)
            program = torch.onnx.export(
                predictor.network.eval(),
                (patch,),
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                input_names=["image"],
            )
            assert program is not None
            program.save(partial / name)
            if half:
                convert_to_half(partial / name)
            paths.append(output / name)
        window = compute_gaussian(tuple(description["patch_size"]), value_scaling_factor=10, device=torch.device("cpu"))
        np.save(partial / WINDOW, window.numpy())
        description["precision"] = "float16" if half else "float32"
        (partial / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
        shutil.copyfile(str(TEMPLATES / "run_onnx.py"), partial / RUNNER)
    return paths


def convert_to_half(path: Path) -> None:
    """Convert a network in place to float16 between a float32 input and output, by ONNX Runtime's converter.

    On a CPU, ONNX Runtime computes in float32 what has no kernel for float16.
    """
    import onnx
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = OnnxModel(onnx.load(path))
    model.convert_float_to_float16(keep_io_types=True, use_symbolic_shape_infer=False)
    # the converter appends the casts of input and output behind the nodes that need them
    model.topological_sort()
    onnx.save(model.model, path)
    onnx.checker.check_model(path, full_check=True)


def describe(model: LoadedModel) -> dict[str, Any]:
    """Return what a runner needs besides the networks.

    The spacing has the order of axes of the images that it takes, and null for the axis of the slices of a 2D network.
    All else is in the order of the preprocessed image.

    Raises:
        ValueError: if the model normalises in a way that the runner lacks.
    """
    predictor, plan = model.predictor, model.predictor.configuration_manager
    labels = predictor.label_manager
    for scheme, in_mask in zip(plan.normalization_schemes, plan.use_mask_for_norm, strict=True):
        if scheme not in NORMALISATIONS or in_mask:
            where = " inside of the non-zero mask" if in_mask else ""
            raise ValueError(f"the runner has no {scheme}{where}; it has {', '.join(NORMALISATIONS)} of whole images")
    spacing = [None] * (3 - len(plan.spacing)) + [float(mm) for mm in plan.spacing]
    mirroring = predictor.allowed_mirroring_axes if predictor.use_mirroring else None
    return {
        "networks": [f"fold_{number}.onnx" for number in range(len(predictor.list_of_parameters))],
        "opset": OPSET,
        "input": "image, (1, channels, *patch_size), float32",
        "output": "logits, (1, classes, *patch_size), float32",
        "channels": list(channel_names(predictor.dataset_json)),
        "labels": predictor.dataset_json["labels"],
        "regions_class_order": labels.regions_class_order if labels.has_regions else None,
        "patch_size": [int(n) for n in plan.patch_size],
        "spacing": [spacing[axis] for axis in predictor.plans_manager.transpose_backward],
        "transpose_forward": list(predictor.plans_manager.transpose_forward),
        "normalisation": [
            {"scheme": scheme, **predictor.plans_manager.foreground_intensity_properties_per_channel[str(number)]}
            for number, scheme in enumerate(plan.normalization_schemes)
        ],
        "step_size": predictor.tile_step_size,
        "mirroring_axes": [int(axis) for axis in mirroring or ()],
        "window": WINDOW,
    }
