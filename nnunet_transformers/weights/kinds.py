"""The kinds of weight files that networks can start from, each recognised by its content.

A kind is a function that takes a file's path and content and returns its weights, or None if it is not of the kind. To
add one, write the function and list it in ``KINDS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .._meta import without_data
from .._reading import read_json, reading
from ..architectures import SegmentationNetwork, create_network, list_released_families
from ..architectures.swin_unetr import from_monai, is_monais
from ..plans.planned import PlannedConfiguration
from .described import build_described
from .encoder import EncoderCheckpoint
from .layout import beside, common_prefixes, find_state_dicts, others, place, split_prefix, strip_prefix, tensors_in
from .load_report import LoadReport
from .network_weights import NetworkWeights
from .nnunet_checkpoint import NEEDED
from .primus import PrimusCheckpoint
from .releases import Identity, from_reference, identify, identify_encoder
from .sealed import SealedCheckpoint, kind_of, restore
from .timm_encoder import TimmCheckpoint
from .timm_weights import timm_file

ADAPTATION_PLAN = "adaptation_plan.json"
ENCODERS = (EncoderCheckpoint, TimmCheckpoint, PrimusCheckpoint)


# takes the file's path and content
Kind = Callable[[Path, Mapping[str, Any]], Any]


def sealed(path: Path, content: Mapping[str, Any]) -> SealedCheckpoint | None:
    """Checkpoints of this package; encoders of timm networks become those of the registered networks."""
    if kind_of(content, [c.kind for c in ENCODERS]) is None:
        return None
    checkpoint = restore(path, content, ENCODERS)
    return EncoderCheckpoint.from_timm(checkpoint) if isinstance(checkpoint, TimmCheckpoint) else checkpoint


def nnssl(path: Path, content: Mapping[str, Any]) -> NetworkWeights | None:
    """Encoders of nnssl, which state their adaptation plan inside or in ``adaptation_plan.json`` beside them."""
    beside = path.parent / ADAPTATION_PLAN
    plan = content.get("nnssl_adaptation_plan") or (read_json(beside, "an adaptation plan") if beside.is_file() else {})
    if not isinstance(plan, Mapping) or "architecture_plans" not in plan or "network_weights" not in content:
        return None
    with reading(path, "an nnssl checkpoint"):
        patch_size = plan.get("recommended_downstream_patchsize")
        trained = [c.get("patch_size") for c in plan.get("pretrain_plan", {}).get("configurations", {}).values()]
        name = plan["architecture_plans"]["arch_class_name"]
        return NetworkWeights(
            tensors_in(content["network_weights"]),
            f"nnssl's {name.rpartition('.')[2]}",
            patch_size=next(filter(None, [*trained, patch_size]), None),
            citations=citations(content.get("citations") or plan.get("citations") or ()),
        )


def nnunet(path: Path, content: Mapping[str, Any]) -> NetworkWeights | None:
    """Checkpoints of nnU-Net's trainers, ours among them; they hold the plan of their network."""
    if not set(NEEDED) <= content.keys():
        return None
    with reading(path, "a checkpoint of nnU-Net's trainer"):
        arguments = content["init_args"]
        planned = PlannedConfiguration(arguments["plans"], arguments["dataset_json"], arguments["configuration"])
        return _planned(content["network_weights"], planned, f"{path}, {content['trainer_name']}")


def packaged(path: Path, content: Mapping[str, Any]) -> NetworkWeights | None:
    """Folds of a package of this package, which lie beside their plan."""
    beside = [path.parent / name for name in ("plans.json", "dataset.json")]
    if path.suffix != ".safetensors" or not all(file.is_file() for file in beside):
        return None
    plans, dataset_json = (read_json(file, "a file of nnU-Net's") for file in beside)
    with reading(beside[0], "a plan of nnU-Net's"):
        planned = PlannedConfiguration(plans, dataset_json, path.parent.name.rpartition("__")[2])
        return _planned(content, planned, str(path))


def _planned(weights: Mapping[str, Tensor], planned: PlannedConfiguration, origin: str) -> NetworkWeights:
    """Weights of a network of a plan."""
    network = None
    # a network of another version or of a fork may take other arguments; its weights still have names
    with suppress(ValueError, ImportError, TypeError, KeyError, AttributeError), without_data():
        network = planned.build_network()
    origin = f"{origin} on {planned.plans['dataset_name']}, {planned.name}"
    return NetworkWeights(tensors_in(weights), origin, network, planned.patch_size, label_names(planned.dataset_json))


def converted(path: Path, content: Mapping[str, Any]) -> NetworkWeights | None:
    """Translated releases, as ``nnunet-transformers convert`` writes them."""
    description = content.get("network")
    if "network_weights" not in content or not isinstance(description, Mapping) or "name" not in description:
        return None
    with reading(path, "a translated release"):
        identity = Identity(**{"patch_size": None, **description})
        return _described(tensors_in(content["network_weights"]), identity, str(path))


def released(path: Path, content: Mapping[str, Any]) -> NetworkWeights | ReleasedEncoder | None:
    """The papers' releases, under the names that their authors gave, possibly with the prefix of a wrapper."""
    found = find_state_dicts(content)
    for where, weights in found:
        for prefix, family in product(common_prefixes(weights), list_released_families()):
            below, elsewhere = split_prefix(weights, prefix)
            # names of others can be the same; what is of no published network is left to the other kinds
            with suppress(ValueError), reading(path, f"a release of {family}"):
                translated = from_reference(family, below)
                return _released(family, translated, elsewhere, place(path, where, prefix), others(found, where))
    return None


def _released(
    family: str,
    translated: dict[str, Tensor],
    elsewhere: Mapping[str, Tensor],
    origin: str,
    unused: Mapping[str, int],
) -> NetworkWeights | ReleasedEncoder:
    """Identify a release, beside what else is in its state dict and file; ValueError if it is no published network."""
    with suppress(ValueError):
        whole = _described(translated, identify(family, translated), origin)
        return replace(whole, weights=beside(whole.weights, elsewhere), others=unused)
    origin = f"{origin}, released encoder of {family}"
    forms = {}
    for ndim in (2, 3):
        form = f"form_{ndim}d."
        own = {n.removeprefix(form): v for n, v in translated.items() if n.startswith(form)} or translated
        with suppress(ValueError):
            network = identify_encoder(family, own, ndim)
            weights = beside(_unflattened(own, network), elsewhere)
            forms[ndim] = NetworkWeights(weights, origin, network, network.patch_size, others=unused)
    if not forms:
        raise ValueError(f"{origin} is of no published network")
    return ReleasedEncoder(family, beside(translated, elsewhere), origin, forms)


@dataclass(frozen=True)
class ReleasedEncoder:
    """Translated weights of an encoder, or of a pair of a 2D and a 3D encoder, of which the network takes its own.

    Attributes:
        family: name of the family.
        weights: translated weights.
        origin: file and family in words.
        forms: what a network of 2 or 3 axes takes of them; of a single encoder there is one.
    """

    family: str
    weights: Mapping[str, Tensor]
    origin: str
    forms: Mapping[int, NetworkWeights]

    def load_into(self, network: nn.Module, **target: Any) -> LoadReport:
        """Load the weights, see ``NetworkWeights.load_into``."""
        if not isinstance(network, SegmentationNetwork):
            raise ValueError(f"the weights are of {self.family}, the network is {type(network).__name__}")
        form = self.forms.get(len(network.patch_size), next(iter(self.forms.values())))
        return form.load_into(network, **target)


def _described(weights: dict[str, Tensor], identity: Identity, origin: str) -> NetworkWeights:
    patch_size = identity.patch_size or (128,) * identity.ndim

    def build() -> nn.Module:
        return create_network(
            identity.name, identity.input_channels, identity.num_classes, patch_size, **identity.overrides
        )

    network = build_described(build, origin)
    return NetworkWeights(_unflattened(weights, network), f"{origin}, released {identity.name}", network, patch_size)


def _unflattened(weights: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The weights in the network's shapes: releases flatten position embeddings."""
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    return {
        name: value.reshape(shapes[name]) if name in shapes and value.numel() == shapes[name].numel() else value
        for name, value in weights.items()
    }


def swin_unetr(path: Path, content: Mapping[str, Any]) -> NetworkWeights | None:
    """SwinUNETR's weights by MONAI's names, as VoCo and MONAI release them, those of pretraining included."""
    found = find_state_dicts(content)
    for where, weights in found:
        if is_monais(weights):
            origin = f"{path}, SwinUNETR" + (f" in {where}" if where else "")
            return NetworkWeights(from_monai(weights), origin, others=others(found, where))
    return None


@dataclass(frozen=True)
class SomeOf:
    """Several state dicts of one file. A network takes the one that has most of its names.

    Attributes:
        found: weights, in the order of preference.
    """

    found: Sequence[NetworkWeights]

    @property
    def weights(self) -> dict[str, Tensor]:
        """All tensors; numbers before their names tell the state dicts apart."""
        return {f"{i}.{name}": value for i, one in enumerate(self.found) for name, value in one.weights.items()}

    @property
    def origin(self) -> str:
        """That of the preferred ones."""
        return self.found[0].origin

    def load_into(self, network: nn.Module, **target: Any) -> LoadReport:
        """Load the weights into a network, see ``NetworkWeights.load_into``."""
        names = network.state_dict().keys()
        chosen = max(self.found, key=lambda one: len(names & strip_prefix(one.weights, names)[0].keys()))
        return chosen.load_into(network, **target)


def plain(path: Path, content: Mapping[str, Any]) -> NetworkWeights | SomeOf | None:
    """Anything else that holds tensors by name: the names of the network to load into decide."""
    found = find_state_dicts(content)
    some = [NetworkWeights(weights, place(path, where), others=others(found, where)) for where, weights in found]
    return SomeOf(some) if len(some) > 1 else next(iter(some), None)


def label_names(dataset_json: Mapping[str, Any]) -> list[str]:
    """Names of the labels of ``dataset.json`` in the order of the heads, regions by their names."""
    labels = {str(name): value for name, value in dataset_json["labels"].items() if name != "ignore"}
    if all(isinstance(value, int) for value in labels.values()):
        return sorted(labels, key=labels.__getitem__)
    return list(labels)


def citations(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The references of an nnssl checkpoint, one text each."""
    texts = []
    for entry in entries:
        for key in ("apa_citations", "bibtex_citations"):
            if entry.get(key):
                texts += [str(text) for text in entry[key]]
                break
    return texts


KINDS: tuple[Kind, ...] = (sealed, nnssl, nnunet, packaged, converted, released, timm_file, swin_unetr, plain)


def recognise(path: Path, content: Mapping[str, Any]) -> Any:
    """Recognise the weights of a file by its content.

    Args:
        path: the file.
        content: its content, as ``load_checkpoint`` reads it.

    Returns:
        an encoder checkpoint of this package, or weights with ``load_into``.

    Raises:
        ValueError: if it holds no weights. Weights with NaN are refused when they are loaded into a network: a file
            may have others that are not used.
    """
    for kind in KINDS:
        weights: Any = kind(path, content)
        if weights is not None:
            return weights
    raise ValueError(f"{path} holds no weights: it has {', '.join(map(str, list(content)[:8]))}")
