"""The networks to measure, as the planner plans them, and the rows of each step."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from nnunet_transformers.architectures import create_network, get_network
from nnunet_transformers.benchmarking.networks import build_network, is_ours
from nnunet_transformers.discovery import PLANNERS
from nnunet_transformers.plans.planner import TransformerPlanner
from nnunet_transformers.plans.tiling import choose_patch_embed_stride, plan_tokens

# one size of each network; nnU-Net's CNNs to compare with
NETWORKS_3D: tuple[str, ...] = (
    "PlainConvUNet",
    "ResEnc-L",
    "primus_v3_s",
    "qt_unet_tiny",
    "unet2022_tiny",
    "mit_7",
    "mit_22",
)
NETWORKS_2D: tuple[str, ...] = ("PlainConvUNet", "ResEnc-L", "qt_unet_tiny", "unet2022_tiny", "mit_7", "mit_22")
NETWORKS_2D += ("setr_pup", "setr_pup_dinov3_small", "resnet50_unet")
# families whose attention has a position bias
BIASED = ("qt_unet", "vt_unet", "unet2022")
# compared in training where their package is installed
PACKAGES = {"SwinUNETR": "monai"}
TRAINED = ("eager", "compile")
PREDICTED = ("PlainConvUNet", "qt_unet_tiny", "unet2022_tiny", "mit_7")
# patch, batch and input channels of the forms
PATCHES = {3: ((128, 128, 128), 2), 2: ((512, 512), 8)}
# where launching kernels takes longer than they do
SMALL_PATCH = ((48, 64, 48), 4)
TINY_PATCHES = {3: ((32, 32, 32), 1), 2: ((64, 64), 1)}
NUM_CLASSES = 14
# plans whose memory is estimated and measured, besides those of the steps' networks
OTHER_PLANS: tuple[tuple[str, tuple[int, ...], int, dict[str, Any]], ...] = (
    ("qt_unet_base", (96, 96, 96), 2, {}),
    ("qt_unet_tiny", (128, 128, 128), 2, {"activation_checkpointing": True}),
    ("mit_7", (64, 192, 160), 4, {}),
    ("unet2022_base", (320, 320), 8, {}),
)


@dataclass(frozen=True)
class Row:
    """A measurement.

    Attributes:
        step: the step it belongs to.
        network: registered name or name of a peer.
        patch_size: voxels per axis, near which the planner chooses.
        batch_size: samples.
        precision: float32, float16 or bfloat16, the latter two by autocast.
        device: cpu or cuda.
        tiny: whether it is a dry run, with few repetitions.
        overrides: arguments of the network besides the planned ones.
        variant: what else tells the row from others.
    """

    step: str
    network: str = ""
    patch_size: tuple[int, ...] = ()
    batch_size: int = 1
    precision: str = "float32"
    device: str = "cuda"
    tiny: bool = False
    overrides: tuple[tuple[str, Any], ...] = ()
    variant: str = ""

    @property
    def key(self) -> str:
        """Unique name of the row in a file of results."""
        size = "x".join(map(str, self.patch_size))
        options = ",".join(f"{name}={value}" for name, value in self.overrides)
        return " ".join(filter(None, (self.step, self.network, size, self.precision, options, self.variant)))

    def described(self) -> dict[str, Any]:
        """What identifies it, for the file of results."""
        return {**asdict(self), "overrides": dict(self.overrides)}


@cache
def planner_of(name: str) -> TransformerPlanner | None:
    """The planner of a registered network's class, as far as it needs no dataset; None for a peer."""
    if not is_ours(name):
        return None
    for planner_name, module in PLANNERS.items():
        planner_class = getattr(import_module(module), planner_name)
        if get_network(planner_class.network_name).network_class is get_network(name).network_class:
            planner: TransformerPlanner = object.__new__(planner_class)
            planner.network_name = name
            return planner
    return None


@cache
def arguments_of(row: Row) -> dict[str, Any]:
    """What the planner plans for isotropic images: the complete arguments of the network, with its patch."""
    planner = planner_of(row.network)
    if planner is None:
        return {"patch_size": row.patch_size, **dict(row.overrides)}
    spacing = (1.0,) * len(row.patch_size)
    stem = choose_patch_embed_stride(row.patch_size, spacing, planner.token_rules)
    tokens = plan_tokens(row.patch_size, spacing, planner.token_rules, stem)
    return planner.network_arguments(tokens, **dict(row.overrides))


def set_supervision(network: nn.Module, active: bool) -> None:
    """Switch deep supervision, which nnU-Net's CNNs have in the decoder and its Primus has not."""
    for module in (network, getattr(network, "decoder", None)):
        if module is not None and hasattr(module, "deep_supervision"):
            module.deep_supervision = active  # type: ignore[assignment]  # no buffer


def build(row: Row) -> tuple[nn.Module, tuple[int, ...]]:
    """Build a row's network with deep supervision, where it has that, and its patch, on the row's device."""
    arguments = dict(arguments_of(row))
    patch_size = tuple(arguments.pop("patch_size"))
    torch.manual_seed(0)
    network: nn.Module
    with torch.device(row.device):
        if is_ours(row.network):
            network = create_network(row.network, 1, NUM_CLASSES, patch_size, deep_supervision=True, **arguments)
        else:
            network = build_network(row.network, patch_size, 1, NUM_CLASSES)
    set_supervision(network, True)
    return network.to(row.device), patch_size


def is_installed(name: str) -> bool:
    """Whether the package of a network is there."""
    return name not in PACKAGES or find_spec(PACKAGES[name]) is not None


def rows_of(step: str, device: str, tiny: bool, networks: tuple[str, ...], precisions: tuple[str, ...]) -> list[Row]:
    """Rows of a step.

    Args:
        step: its name.
        device: cpu or cuda.
        tiny: small patches, for a dry run.
        networks: names; empty for the default ones.
        precisions: types of the training steps.
    """
    if step == "facts":
        return [Row(step, device=device, tiny=tiny)]
    patches = TINY_PATCHES if tiny else PATCHES
    rows = []
    for ndim, defaults in ((3, NETWORKS_3D), (2, NETWORKS_2D)):
        patch_size, batch_size = patches[ndim]
        for name in networks or (*defaults, *PACKAGES):
            if name in PACKAGES and not (step in TRAINED and is_installed(name)):
                continue
            if not is_ours(name) or ndim in get_network(name).dimensions:
                rows.append(Row(step, name, patch_size, batch_size, precisions[0], device, tiny))
    ours = [row for row in rows if is_ours(row.network)]
    if step == "kernels":
        return [row for row in rows if row.network not in ("PlainConvUNet", "ResEnc-L", "resnet50_unet")]
    if step == "flex":
        return [row for row in ours if row.network.startswith(BIASED)]
    if step == "memory":
        others = [
            Row(step, name, size, batch, precisions[0], device, tiny, tuple(overrides.items()))
            for name, size, batch, overrides in OTHER_PLANS
            if not networks and not tiny
        ]
        return ours + others
    if step == "graphs" and not tiny:
        size, batch = SMALL_PATCH
        return [replace(row, patch_size=size, batch_size=batch) for row in rows if len(row.patch_size) == 3] + rows
    if step == "prediction":
        chosen = [row for row in rows if len(row.patch_size) == 3 and row.network in (networks or PREDICTED)]
        return [replace(row, batch_size=1, variant=who) for row in chosen for who in ("nnU-Net", "ours")]
    if step in ("eager", "compile"):
        return [replace(row, precision=precision) for precision in precisions for row in rows]
    return rows
