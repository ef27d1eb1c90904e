"""ImageNet weights of timm's ConvNeXt and Swin for UNet-2022, whose blocks are made of theirs.

The paper starts its encoder from them (section 4.7, table 7: 86.46 against 84.87 Dice without); the released code
copies the same ConvNeXt blocks into the decoder stages of equal width, and so does this.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from timm.models import convnext as timm_convnext
from timm.models import swin_transformer as timm_swin
from torch import Tensor, nn

from ..architectures.layers import resize_bias_table
from ..architectures.unet2022 import UNet2022
from .file import load_state_dict
from .load_report import LoadReport

# channels of the first stage to timm's model of that width; the ones below 96 suit the 3D networks
CONVNEXT = {48: "convnext_femto", 64: "convnext_pico", 96: "convnext_tiny", 128: "convnext_base", 192: "convnext_large"}
SWIN = {
    96: "swin_tiny_patch4_window7_224",
    128: "swin_base_patch4_window7_224",
    192: "swin_large_patch4_window7_224",
}
HUB = "hub"


def load_imagenet(
    network: UNet2022, convnext: str | os.PathLike = HUB, swin: str | os.PathLike | None = None, spread: bool = False
) -> LoadReport:
    """Start a UNet-2022 from ImageNet weights, in place.

    In 3D, depth-wise kernels are cropped to the network's size in-plane, repeated along the depth and divided by it, so
    that an image that is constant along the depth is seen as in 2D.

    Args:
        network: in 2D or 3D.
        convnext: "hub" for timm's download of the ConvNeXt of the network's width, or a file: safetensors, or a
            checkpoint in timm's or the authors' format.
        swin: the same for the attention half; None leaves it as it is.
        spread: where a stage of the source has more blocks than ours, take them spread over it rather than the first.

    Returns:
        what was loaded, what was not and why.

    Raises:
        ValueError: if timm has no model of the network's width, the file is not one of that model, or the hub
            cannot be reached.
    """
    width = network.encoder.norms[0].normalized_shape[0]
    source = _weights("ConvNeXt", CONVNEXT, width, convnext, timm_convnext.checkpoint_filter_fn)
    report = LoadReport(f"ConvNeXt ({CONVNEXT[width]}, {convnext})")
    parameters = dict(network.named_parameters())
    used: set[str] = set()
    _copy(parameters, _block_names(network, source, "stages", "convnext", spread), source, used, report, _fit)
    report.unused += [f"convnext: {name}" for name in source if name not in used]
    if swin is not None:
        weights = _weights("Swin", SWIN, width, swin, timm_swin.checkpoint_filter_fn)
        source = {_swin_name(name): value for name, value in weights.items()}
        report.source += f" and Swin ({SWIN[width]}, {swin})"
        used = set()
        fit = _fit_swin(network)
        _copy(parameters, _block_names(network, source, "layers", "parallel", spread), source, used, report, fit)
        report.unused += [f"swin: {name}" for name in source if name not in used]
    came = {*report.loaded, *report.adapted}
    reasons = {name: reason for name, reason in report.fresh.items() if name not in came}
    report.fresh = {name: reasons.get(name, "not in the source") for name in parameters if name not in came}
    return report


def _weights(title: str, models: Mapping[int, str], width: int, source: str | os.PathLike, filter_fn) -> dict:
    if width not in models:
        known = ", ".join(f"{w} ({n})" for w, n in models.items())
        raise ValueError(f"no {title} with {width} channels in its first stage; there are {known}")
    if source == HUB:
        try:
            return timm.create_model(models[width], pretrained=True).state_dict()
        except Exception as error:  # whatever the hub's client raises without a connection
            raise ValueError(
                f"cannot download {models[width]}: {error}. Download it where there is a connection and give the file"
            ) from error
    with torch.device("meta"):
        model = timm.create_model(models[width], num_classes=0)
    weights = load_state_dict(Path(source))
    try:
        weights = filter_fn(weights, model)
    except (KeyError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{source} holds no weights of {models[width]}: {error}") from error
    expected = model.state_dict()
    right = [name for name, value in expected.items() if name in weights and weights[name].shape == value.shape]
    if len(right) < len(expected) // 2:
        raise ValueError(
            f"{source} holds no weights of {models[width]}: {len(right)} of its {len(expected)} tensors are there"
        )
    return weights


def _swin_name(name: str) -> str:
    """timm's names of a Swin block in terms of ours."""
    return name.replace(".norm1.", ".norm.").replace(".relative_position_bias_table", ".bias.table")


def _block_names(network: UNet2022, source: Mapping[str, Tensor], stages: str, half: str, spread: bool) -> dict:
    """Prefix of each of our half-blocks to that of the source's block, decoder stages included."""
    names = {}
    levels = len(network.decoder.levels)
    for stage, blocks in enumerate(network.encoder.stages):
        start = f"{stages}.{stage}.blocks."
        available = len({name[len(start) :].split(".")[0] for name in source if name.startswith(start)})
        if not available:
            continue
        for index in range(len(blocks)):
            last = len(blocks) - 1
            position = round(index * (available - 1) / max(1, last)) if spread else min(index, available - 1)
            names[f"encoder.stages.{stage}.{index}.{half}."] = f"{start}{position}."
            if stage < levels:
                names[f"decoder.levels.{levels - 1 - stage}.blocks.{index}.{half}."] = f"{start}{position}."
    return names


def _copy(
    parameters: Mapping[str, nn.Parameter],
    blocks: Mapping[str, str],
    source: Mapping[str, Tensor],
    used: set[str],
    report: LoadReport,
    fit,
) -> None:
    for ours, theirs in blocks.items():
        for name in [n for n in parameters if n.startswith(ours)]:
            origin = theirs + name.removeprefix(ours)
            if origin not in source:
                continue
            value, how = fit(name, source[origin], parameters[name])
            if value is None:
                report.fresh[name] = how
                continue
            with torch.no_grad():
                parameters[name].copy_(value)
            used.add(origin)
            if how:
                report.adapted[name] = how
            else:
                report.loaded.append(name)


def _fit(name: str, value: Tensor, parameter: Tensor) -> tuple[Tensor | None, str]:
    """``value`` in the shape of ``parameter`` and how it was changed, or None and why it does not fit."""
    if value.shape == parameter.shape:
        return value, ""
    if value.numel() == parameter.numel():
        return value.reshape(parameter.shape), ""  # 1x1 convolutions in the place of linear layers
    is_kernel = name.endswith("conv_dw.weight") and value.dim() == 4 and parameter.shape[:2] == value.shape[:2]
    in_plane = parameter.shape[-2:]
    if is_kernel and all(n <= m for n, m in zip(in_plane, value.shape[2:], strict=True)):
        start = [(m - n) // 2 for n, m in zip(in_plane, value.shape[2:], strict=True)]
        value = value[:, :, start[0] : start[0] + in_plane[0], start[1] : start[1] + in_plane[1]]
        how = f"kernel of 7x7 to {'x'.join(map(str, parameter.shape[2:]))}"
        if parameter.dim() == 5:
            depth = parameter.shape[2]
            value = value.unsqueeze(2).expand_as(parameter) / depth
        return value, how
    return None, f"shape {tuple(value.shape)} in the source, {tuple(parameter.shape)} here"


def _fit_swin(network: UNet2022):
    def fit(name: str, value: Tensor, parameter: Tensor) -> tuple[Tensor | None, str]:
        if not name.endswith("bias.table"):
            return _fit(name, value, parameter)
        if value.shape[1] != parameter.shape[1]:
            return None, f"{value.shape[1]} heads in the source, {parameter.shape[1]} here"
        shape = network.get_submodule(name.removesuffix(".table")).table_shape
        edge = round(value.shape[0] ** 0.5)
        resized = resize_bias_table(value, (edge, edge), shape)
        how = f"offsets {edge}x{edge} to {'x'.join(map(str, shape))}" if shape != (edge, edge) else ""
        return resized, how

    return fit
