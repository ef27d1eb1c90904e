"""Encoder checkpoints of registered networks: written by pretraining, initial weights for every trainer.

A checkpoint is one file of tensors and plain types. It is also an nnssl checkpoint (``network_weights`` and
``nnssl_adaptation_plan``); its entry ``encoder`` describes the network and holds the content hash.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, cast

from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim
from torch import Tensor, nn

from .._meta import without_data
from ..architectures import SegmentationNetwork, class_path, create_network, get_network, get_timm_family
from ..architectures._network import BRANCH_IN_PROJ
from ..architectures.layers import RelativePositionBias
from ..architectures.mednext import MedNeXt
from ..architectures.stock_unet import LAYERS, STOCK, StockUNet
from .adapters import bias_tables, convolution_kernels, enlarged_kernels, first_layers, position_embeddings
from .described import build_described
from .heads import check_heads
from .load_report import LoadReport
from .pretrained import PretrainedWeights
from .sealed import load
from .timm_encoder import TimmCheckpoint, create_timm
from .transfer import Adapter, by_first_names, tensors_of, transfer

# a checkpoint holds the whole encoder; a description of more would make networks that do not fit into memory
MAX_CLAIMED = 4


@dataclass(frozen=True)
class EncoderCheckpoint(PretrainedWeights):
    """Weights of a registered network's stem and encoder, and their description.

    Attributes:
        overrides: arguments that differ from the registered ones.
    """

    kind: ClassVar[str] = "encoder"
    format: ClassVar[int] = 2
    earlier: ClassVar[tuple[int, ...]] = (1,)
    overrides: dict[str, Any] = field(default_factory=dict)

    def build_network(self) -> SegmentationNetwork:
        """Build the network that the weights belong to on the meta device, for its token grids and windows.

        Raises:
            ValueError: if there is no such network, or its encoder has far more weights than the checkpoint.
        """
        network = self._described()
        claimed, held = (sum(v.numel() for v in w.values()) for w in (_encoder_state(network), self.weights))
        if claimed > MAX_CLAIMED * held:
            raise ValueError(
                f"an encoder checkpoint describes a {self.name} of {claimed} weights in stem and encoder, but holds "
                f"{held}; get it again from its source"
            )
        return network

    def _described(self) -> SegmentationNetwork:
        return build_described(
            lambda: create_network(self.name, self.input_channels, 2, self.patch_size, **self.overrides),
            "an encoder checkpoint",
        )

    def load_into(
        self, network: nn.Module, patch_size: Sequence[int] | None = None, labels: Sequence[str] | None = None
    ) -> LoadReport:
        """Load the weights into a network, in place, see ``load_encoder_weights``."""
        if not isinstance(network, (SegmentationNetwork, *STOCK)):
            raise ValueError(f"the weights are of {self.name}, the network is {type(network).__name__}")
        return load_encoder_weights(network, self)

    def _other_entries(self) -> dict[str, Any]:
        return {"nnssl_adaptation_plan": _adaptation_plan(self)}

    @classmethod
    def from_timm(cls, checkpoint: TimmCheckpoint) -> EncoderCheckpoint:
        """Translate the weights of a timm network for the registered network whose stem and encoder it is.

        Raises:
            ValueError: if there is no such registered network; the message names the timm families that have one.
        """
        with without_data():
            network = create_timm(checkpoint.name, checkpoint.input_channels, checkpoint.patch_size)
        family = get_timm_family(network, checkpoint.name)
        overrides = family.overrides(network, checkpoint.name)
        # timm's networks ignore the remainder of an image after the last whole cell; registered networks refuse it
        cell = cast(list[dict[str, Any]], network.feature_info)[-1]["reduction"]
        strides = overrides.get("patch_embed_stride", [cell, cell])
        changed = {
            "name": family.network,
            "overrides": overrides,
            "patch_size": tuple(max(p // cell, 1) * s for p, s in zip(checkpoint.patch_size, strides, strict=True)),
            "weights": family.checkpoint_filter(checkpoint.weights, network),
        }
        encoder = cls(**{f.name: getattr(checkpoint, f.name) for f in fields(checkpoint)} | changed)
        shapes = {name: tuple(value.shape) for name, value in _encoder_state(encoder.build_network()).items()}
        differing = shapes.items() ^ {(name, tuple(value.shape)) for name, value in encoder.weights.items()}
        if differing:
            raise ValueError(
                f"timm's {checkpoint.name} differs from the encoder of {family.network}, which is like "
                f"{family.example}, in {', '.join(sorted({name for name, _ in differing})[:4])}"
            )
        return encoder


def encoder_weights(network: SegmentationNetwork | Primus) -> dict[str, Tensor]:
    """Return parameters and buffers of a network's stem and encoder by name, detached, on the CPU."""
    return {name: value.cpu().contiguous() for name, value in _encoder_state(network).items()}


def _encoder_state(network: SegmentationNetwork | Primus) -> dict[str, Tensor]:
    parts = (f"{network.key_to_stem}.", f"{network.key_to_encoder}.")
    return {name: value.detach() for name, value in network.state_dict().items() if name.startswith(parts)}


def load_encoder(path: str | os.PathLike[str]) -> EncoderCheckpoint:
    """Read an encoder checkpoint of a registered network, or of a timm network that is a registered network's encoder.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is truncated, altered, of another kind, or of a timm network that no registered network
            has as its encoder.
    """
    checkpoint = load(path, (EncoderCheckpoint, TimmCheckpoint))
    return EncoderCheckpoint.from_timm(checkpoint) if isinstance(checkpoint, TimmCheckpoint) else checkpoint


def encoder_adapters(network: nn.Module, origin: SegmentationNetwork) -> Sequence[Adapter]:
    """Return the adapters for ``transfer`` between networks of one class with other patches and input channels.

    Bias tables and position embeddings are interpolated to the network's windows and token grids, the kernel of the
    patch embedding to its stride, MedNeXt's kernels to larger ones, those of nnU-Net's CNNs to the axes along which
    they convolve, and the first layer is fitted to the number of input channels.

    Args:
        network: network to load into; its tensors have the names of ``origin``'s.
        origin: network that the weights belong to.
    """

    tables = {name: m.table_shape for name, m in origin.named_modules() if isinstance(m, RelativePositionBias)}

    def table_shape(name: str, _: Tensor) -> Sequence[int]:
        return tables.get(name.rpartition(".")[0], ())

    first = [f"{key}.weight" for key in (*origin.keys_to_in_proj, BRANCH_IN_PROJ)]
    kernels: list[Adapter] = [enlarged_kernels] if isinstance(network, MedNeXt) else []
    if isinstance(origin, StockUNet):
        kernels.append(convolution_kernels(network))
    return bias_tables(network, table_shape), position_embeddings(network), first_layers(first), *kernels


def load_encoder_weights(network: nn.Module, checkpoint: EncoderCheckpoint, source: str = "") -> LoadReport:
    """Load an encoder checkpoint into a network, in place.

    Tensors that cannot be adapted (see ``encoder_adapters``) keep their initialisation.

    Args:
        network: network to load into, a registered one or one of nnU-Net's CNNs; its decoder is loaded too if the
            method pretrained one.
        checkpoint: encoder checkpoint.
        source: origin of the weights in words, for the load report.

    Returns:
        the load report.

    Raises:
        ValueError: if the weights belong to another class of networks, to 2D rather than 3D or vice versa, or to
            attention of another number of heads.
    """
    origin = checkpoint.build_network()
    if type(network) not in (type(origin), origin.stock):
        raise ValueError(
            f"the weights are of {type(origin).__name__} ({checkpoint.name}), the network is {type(network).__name__}"
        )
    if _axes(origin) != _axes(network):
        raise ValueError(f"the weights are of a {_axes(origin)}D network, this one is {_axes(network)}D")
    check_heads(origin, network)
    weights = by_first_names(network, checkpoint.weights)
    return transfer(tensors_of(network), weights, encoder_adapters(network, origin), source or checkpoint.origin)


def _axes(network: Any) -> int:
    """Number of spatial axes of a registered network or of one of nnU-Net's CNNs."""
    own = isinstance(network, SegmentationNetwork)
    return len(network.patch_size) if own else convert_conv_op_to_dim(network.encoder.conv_op)


def _adaptation_plan(checkpoint: EncoderCheckpoint) -> dict[str, Any]:
    """Describe the weights as nnssl's adaptation plan, for readers of nnssl checkpoints."""
    entry = get_network(checkpoint.name)
    network_class = entry.network_class
    ndim = len(checkpoint.patch_size)
    arguments = {**entry.all_arguments(ndim), **checkpoint.overrides, "patch_size": checkpoint.patch_size}
    # what nnU-Net's trainers read for deep supervision
    arguments["strides"] = checkpoint._described().strides
    arguments = {name: value for name, value in arguments.items() if value is not None}
    stock = network_class.stock
    if stock is not None:
        arguments = dict(checkpoint.overrides["architecture"])
    spacing = None if checkpoint.spacing is None else list(checkpoint.spacing)
    configuration = {
        "data_identifier": checkpoint.method,
        "preprocessor_name": "DefaultPreprocessor",
        "spacing_style": "median",
        "normalization_schemes": list(checkpoint.normalization),
        "use_mask_for_norm": [False] * checkpoint.input_channels,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "resampling_fn_mask": "resample_data_or_seg_to_shape",
        "resampling_fn_mask_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
        "spacing": spacing,
        "patch_size": list(checkpoint.patch_size),
    }
    plan = {
        "architecture_plans": {
            "arch_class_name": entry.class_path if stock is None else class_path(stock),
            "arch_kwargs": arguments,
            "arch_kwargs_requiring_import": [] if stock is None else list(LAYERS),
        },
        "pretrain_plan": {
            "dataset_name": "",
            "plans_name": checkpoint.method,
            "original_median_spacing_after_transp": spacing,
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": list(range(ndim)),
            "transpose_backward": list(range(ndim)),
            "experiment_planner_used": "nnunet_transformers",
            "configurations": {"pretraining": configuration},
        },
        "pretrain_num_input_channels": checkpoint.input_channels,
        "recommended_downstream_patchsize": list(checkpoint.patch_size),
        "key_to_encoder": network_class.key_to_encoder,
        "key_to_stem": network_class.key_to_stem,
        "keys_to_in_proj": list(network_class.keys_to_in_proj),
        "key_to_lpe": network_class.key_to_lpe,
    }
    plain: dict[str, Any] = json.loads(json.dumps(plan))  # tuples become lists
    return plain
