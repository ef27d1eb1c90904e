"""The gate for plans: nnU-Net imports and calls what a plan names, so a plan may name only parts of segmentation.

Everything that builds from a plan which somebody else may have written asks here first. ``nnUNetv2_train`` and its
trainers do not: they run the plan that the user made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from .._declared import find_class
from .._reading import RefusedError
from ..architectures import get_network, list_networks
from ..architectures._arguments import MAX_BLOCKS

# packages whose networks a plan may name
NETWORKS = ("dynamic_network_architectures.architectures", "nnunet_transformers.architectures")
LAYERS = re.compile(
    r"torch\.nn\.(modules\.\w+\.)?(Conv[123]d|(Instance|Batch)Norm[123]d|(Alpha|Feature)?Dropout[123]?d?"
    r"|(Leaky|P|R)?ReLU|ReLU6|GELU|SiLU|ELU|Mish)"
)
# names that nnU-Net looks up in its own folders, where they could also be other functions
OF_PLAN = {"image_reader_writer": r"\w+IO(WithReorient)?", "label_manager": r"\w*LabelManager\w*"}
OF_CONFIGURATION = {
    "preprocessor_name": r"DefaultPreprocessor",
    **dict.fromkeys(
        ("resampling_fn_data", "resampling_fn_seg", "resampling_fn_probabilities"),
        r"resample_\w+|no_resampling(_hack)?|fast_resample_\w+",
    ),
}
# numbers of blocks in the networks of dynamic_network_architectures; those of this package check theirs themselves
DEPTHS = ("n_stages", "n_blocks_per_stage", "n_conv_per_stage", "n_conv_per_stage_decoder", "eva_depth")
NORMALISATION = r"\w+Normalization"
TRUST = "give --trust only if you know who made it"


def check_plan(plans: Mapping[str, Any], source: str, remedy: str = TRUST) -> None:
    """Refuse a plan that makes nnU-Net import or call anything but parts of segmentation.

    Args:
        plans: content of the plan file.
        source: name of the plan, for the message.
        remedy: what to do, for the message.

    Raises:
        ValueError: if an entry names other code (the message names the entry), or this is no plan.
    """
    check_preparation(plans, source, remedy)
    for configuration in plans["configurations"].values():
        check_network(configuration, source, remedy)


def check_preparation(plans: Mapping[str, Any], source: str, remedy: str = TRUST) -> None:
    """Refuse a plan as ``check_plan`` does, by what reads, prepares and stores images; its networks may be any.

    Raises:
        ValueError: as ``check_plan``.
    """
    try:
        configurations = list(plans["configurations"].values())
        for entry, pattern in OF_PLAN.items():
            if entry in plans:
                _check_name(entry, plans[entry], pattern, source, remedy)
        for configuration in configurations:
            for entry, pattern in OF_CONFIGURATION.items():
                if entry in configuration:
                    _check_name(entry, configuration[entry], pattern, source, remedy)
            for name in configuration.get("normalization_schemes", ()):
                _check_name("normalization_schemes", name, NORMALISATION, source, remedy)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{source} is no plan of nnU-Net's ({error!r})") from error


def check_network(configuration: Mapping[str, Any], source: str, remedy: str = TRUST) -> None:
    """Refuse a configuration whose network or layers are other code, as ``check_plan`` does.

    Allowed are networks of this package, of dynamic_network_architectures, those that ``register_network`` knows, and
    those of modules that installed packages declare; of layers those of torch.

    Args:
        configuration: configuration of a plan. One without an architecture inherits it, or is of nnU-Net's first
            format, which names networks of dynamic_network_architectures only.
        source, remedy: as for ``check_plan``.

    Raises:
        ValueError: as ``check_plan``.
    """
    try:
        if (architecture := configuration.get("architecture")) is None:
            return
        name = architecture["network_class_name"]
        if not _is_network(name):
            _refuse("network", name, source, remedy)
        for key in architecture["_kw_requires_import"]:
            if (layer := architecture["arch_kwargs"].get(key)) is not None:
                _check_name(key, layer, LAYERS, source, remedy)
        stages = architecture["arch_kwargs"].get("n_stages", 1)
        for key in DEPTHS:
            blocks = architecture["arch_kwargs"].get(key, 0)
            if isinstance(blocks, (list, tuple)):
                fewest, number = min(blocks, default=0), sum(blocks)
            else:
                fewest, number = blocks, blocks * (stages if "per_stage" in key else 1)
            if fewest < 0 or number > MAX_BLOCKS:
                raise RefusedError(
                    f"{source} describes a network with {key} of {number} in all; at most {MAX_BLOCKS}, none negative"
                )
    except RefusedError:
        raise
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{source} describes no network that can be built here ({error!r})") from error


def _is_network(name: Any) -> bool:
    if any(get_network(known).class_path == name for known in list_networks()):
        return True
    found = find_class(name, NETWORKS)
    return found is not None and issubclass(found, nn.Module)


def _check_name(entry: str, name: Any, pattern: str | re.Pattern[str], source: str, remedy: str) -> None:
    if not isinstance(name, str) or re.fullmatch(pattern, name) is None:
        _refuse(entry, name, source, remedy)


def _refuse(entry: str, name: Any, source: str, remedy: str) -> None:
    raise ValueError(
        f"{source} names {name!r} as {entry}, which is part of neither nnU-Net nor an installed plugin; {remedy}"
    )
