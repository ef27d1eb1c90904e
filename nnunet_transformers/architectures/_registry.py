"""The registry of networks, and of the released and timm weights that fit them."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from itertools import accumulate
from typing import Any, TypeVar

from torch import Tensor, nn

from .._plugins import LOAD_ERRORS, Declaration, declared, reason
from ._network import TOKEN_ARGUMENTS, SegmentationNetwork

# pattern and replacement for names of released weights
RenamingRule = tuple[str, str | Callable[[re.Match[str]], str]]

T = TypeVar("T")

_networks: dict[str, NetworkEntry] = {}
_released: dict[str, ReleasedFamily] = {}
_timm: list[TimmFamily] = []
# networks of installed packages that do not load, and why
_broken: dict[str, str] = {}


@dataclass(frozen=True)
class NetworkEntry:
    """A registered network.

    Attributes:
        name: registered name.
        network_class: its class.
        arguments: those that differ from the class's defaults.
        arguments_3d: further or other ones in 3D.
    """

    name: str
    network_class: type[SegmentationNetwork]
    arguments: dict[str, Any]
    arguments_3d: dict[str, Any]

    def arguments_for(self, ndim: int) -> dict[str, Any]:
        """Registered arguments of the 2D or 3D form."""
        return {**self.arguments, **self.arguments_3d} if ndim == 3 else self.arguments

    @property
    def class_path(self) -> str:
        """Import path of the class for nnU-Net's plans, see ``class_path``."""
        return class_path(self.network_class)

    @property
    def dimensions(self) -> tuple[int, ...]:
        """Numbers of spatial axes that it supports."""
        return self.network_class.dimensions

    @property
    def missing_extra(self) -> str | None:
        """The extra of this package that the network needs, if what it installs is missing."""
        extra = self.network_class.extra
        return extra if extra is not None and find_spec(extra) is None else None

    @property
    def override_names(self) -> list[str]:
        """Names of the overrides that ``create_network`` takes."""
        own = set(inspect.signature(create_network).parameters)
        return [n for n in inspect.signature(self.network_class).parameters if n not in own]

    def all_arguments(self, ndim: int) -> dict[str, Any]:
        """Every override with its default value in this network's 2D or 3D form."""
        parameters = inspect.signature(self.network_class).parameters
        own = self.arguments_for(ndim)
        return {name: own.get(name, parameters[name].default) for name in self.override_names}

    def build(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: Sequence[int],
        deep_supervision: bool = False,
        **arguments: Any,
    ) -> SegmentationNetwork:
        """Build the class from these arguments alone, without the registered ones.

        Raises:
            ValueError: as the class.
        """
        # the declared type, SegmentationNetwork, takes the patch alone
        constructor: Callable[..., SegmentationNetwork] = self.network_class
        return constructor(
            input_channels=input_channels,
            num_classes=num_classes,
            patch_size=patch_size,
            deep_supervision=deep_supervision,
            **arguments,
        )

    def plan_arguments(self, network: SegmentationNetwork, **given: Any) -> dict[str, Any]:
        """Complete arguments of a built network, for ``arch_kwargs`` of a plan: a plan outlives a change of defaults.

        Args:
            network: built by ``create_network`` with this entry's name.
            given: overrides that it was built with, and other arguments to state; they replace the class's values.

        Returns:
            all arguments that have a value, except channels, classes and ``deep_supervision``, which nnU-Net passes.
        """
        arguments = {
            **self.all_arguments(len(network.patch_size)),
            **network.resolved_arguments,
            **given,
            "patch_size": network.patch_size,
            "strides": network.strides,
        }
        return {name: value for name, value in arguments.items() if value is not None}

    def check_overrides(self, overrides: Iterable[str]) -> None:
        """Check the names of overrides.

        Raises:
            ValueError: if the class does not take one of them; lists those that it takes.
        """
        unknown = [name for name in overrides if name not in self.override_names]
        if unknown:
            raise ValueError(f"{self.name} has no {', '.join(unknown)}; overrides: {', '.join(self.override_names)}")


@dataclass(frozen=True)
class ReleasedFamily:
    """Released weights of a paper for a family of networks.

    Attributes:
        checkpoint_filter: translates its weights to the names used here.
        head: name of a tensor whose first axis has the classes.
        variants: overrides that its networks were released with, besides those with a registered name.
        patch_sizes: patch sizes of the published weights, in voxels; None where weights do not depend on the size.
    """

    checkpoint_filter: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    head: str
    variants: tuple[dict[str, Any], ...]
    patch_sizes: tuple[tuple[int, ...], ...] | None


@dataclass(frozen=True)
class TimmFamily:
    """A class of timm's networks that a registered network has as stem and encoder.

    Attributes:
        timm_class: timm's class.
        network: registered name.
        example: timm's name of one such network.
        overrides: maps timm's network and its name to the registered network's arguments that give it this encoder;
            raises ValueError where there are none.
        checkpoint_filter: translates weights to the names used here, given timm's network.
    """

    timm_class: type[nn.Module]
    network: str
    example: str
    overrides: Callable[[Any, str], dict[str, Any]]
    checkpoint_filter: Callable[[Mapping[str, Tensor], Any], dict[str, Tensor]]


def class_path(network_class: type) -> str:
    """Import path of a class from the outermost package that exports it.

    Plans with this path remain valid when the class moves inside that package.

    Examples:
        >>> from nnunet_transformers.architectures import class_path, get_network
        >>> class_path(get_network("mit_7").network_class)  # defined in mit/segmentation.py
        'nnunet_transformers.architectures.mit.MiT'
    """
    name = network_class.__name__
    packages = accumulate(network_class.__module__.split("."), "{}.{}".format)
    exporting = (package for package in packages if getattr(sys.modules.get(package), name, None) is network_class)
    return f"{next(exporting, network_class.__module__)}.{network_class.__qualname__}"


def register_network(
    name: str, network_class: type[SegmentationNetwork], arguments_3d: dict[str, Any] | None = None, **arguments: Any
) -> None:
    """Register a network under ``name``.

    Args:
        name: its name for ``create_network``.
        network_class: its class.
        arguments_3d: further or other arguments in 3D.
        arguments: those that differ from the class's defaults.

    Raises:
        ValueError: if the class states ``token_arguments`` that a planner does not know or its constructor does not
            take, or a network of another package has the name.
    """
    known = _networks.get(name)
    if known is not None and _package(known.network_class) != _package(network_class):
        raise ValueError(
            f"the network {name} of {_package(network_class)} has the name of one of {_package(known.network_class)}; "
            "register it under another name"
        )
    taken = inspect.signature(network_class).parameters
    unknown = [a for a in network_class.token_arguments if a not in TOKEN_ARGUMENTS]
    missing = [a for a in network_class.token_arguments if a not in taken]
    if unknown:
        raise ValueError(
            f"{network_class.__name__} states the token arguments {', '.join(unknown)}, but a planner sets only "
            f"{', '.join(TOKEN_ARGUMENTS)}"
        )
    if missing:
        raise ValueError(
            f"{network_class.__name__} states the token arguments {', '.join(missing)}, which its constructor does not "
            "take"
        )
    _networks[name] = NetworkEntry(name, network_class, arguments, arguments_3d or {})


def _package(network_class: type) -> str:
    """The outermost package that defines a class."""
    return network_class.__module__.partition(".")[0]


def register_released_family(
    family: str,
    checkpoint_filter: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    head: str,
    variants: Sequence[dict[str, Any]] = ({},),
    patch_sizes: Sequence[Sequence[int]] | None = None,
) -> None:
    """Register the translation of a paper's released weights for a family of networks, see ``ReleasedFamily``."""
    patch_sizes = None if patch_sizes is None else tuple(tuple(p) for p in patch_sizes)
    _released[family] = ReleasedFamily(checkpoint_filter, head, tuple(variants), patch_sizes)


def register_timm_family(
    timm_class: type[nn.Module],
    network: str,
    example: str,
    overrides: Callable[[Any, str], dict[str, Any]],
    checkpoint_filter: Callable[[Mapping[str, Tensor], Any], dict[str, Tensor]],
) -> None:
    """Register the translation of timm's weights for a class of its networks, see ``TimmFamily``."""
    _timm.append(TimmFamily(timm_class, network, example, overrides, checkpoint_filter))


def _look_up(kind: str, name: str, table: Mapping[str, T]) -> T:
    if name not in table:
        close = get_close_matches(name, table, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(sorted(table))}"
        raise ValueError(f"unknown {kind} {name!r}; {hint}")
    return table[name]


def get_network(name: str) -> NetworkEntry:
    """Look up the entry of a network.

    Raises:
        ValueError: if there is no such network (names the closest ones), or one that an installed package declares
            does not load.
    """
    if name in _networks:
        return _networks[name]
    if name in (installed := declared("networks")):
        _load(installed[name])
        return _networks[name]
    known: dict[str, Any] = {**dict.fromkeys(installed), **_networks}
    entry: NetworkEntry = _look_up("network", name, known)
    return entry


def _load(declaration: Declaration) -> None:
    """Import a network that an installed package declares: a class, or a module that registers it.

    Raises:
        ValueError: if that fails; the networks are those of before.
    """
    name, before = declaration.name, dict(_networks)
    if name not in _broken:
        try:
            found = declaration.load()
            if isinstance(found, type) and name not in _networks:
                register_network(name, found)
            if name not in _networks:
                raise ValueError(f"{declaration.value} registers no network {name}")
        except LOAD_ERRORS as error:
            _networks.clear()
            _networks.update(before)
            _broken[name] = reason(error)
    if name in _broken:
        raise ValueError(f"{declaration} does not load: {_broken[name]}; see `nnunet-transformers doctor`")


def get_released_family(family: str) -> ReleasedFamily:
    """Look up the released weights of a family.

    Raises:
        ValueError: if there is no such family.
    """
    return _look_up("family of networks", family, _released)


def list_released_families() -> list[str]:
    """Names of the families with released weights."""
    return sorted(_released)


def get_timm_family(network: nn.Module, name: str) -> TimmFamily:
    """Look up the family of timm's network.

    Args:
        network: timm's network.
        name: its name in timm.

    Raises:
        ValueError: if no registered network has it as encoder; lists timm's classes that some network has.
    """
    for family in _timm:
        if isinstance(network, family.timm_class):
            return family
    known = " and ".join(f"{f.timm_class.__name__} (such as {f.example}: {f.network})" for f in _timm)
    raise ValueError(
        f"timm's {name} ({type(network).__name__}) is the encoder of no segmentation network here; take one of {known}"
    )


def list_networks(ndim: int | None = None) -> list[str]:
    """Sorted names of all networks, or of those that support ``ndim`` spatial axes (2 or 3).

    Those that installed packages declare are imported, and left out if that fails. Some of this package may need an
    extra of it, see ``NetworkEntry.missing_extra``. nnU-Net's own networks are left out: they exist for their plans.
    """
    for name, declaration in declared("networks").items():
        if name not in _networks:
            with suppress(ValueError):
                _load(declaration)
    own = {name: entry for name, entry in _networks.items() if entry.network_class.stock is None}
    return sorted(name for name, entry in own.items() if ndim is None or ndim in entry.dimensions)


def is_registered(name: str) -> bool:
    """Tell whether ``create_network`` takes a name: one of ``list_networks()``, or of nnU-Net's own networks."""
    return name in _networks or name in list_networks()


def find_stock(path: str) -> str | None:
    """Registered name of one of nnU-Net's own networks by the import path of its class; None for other paths."""
    stock = {name: entry.network_class.stock for name, entry in _networks.items()}
    return next((name for name, found in stock.items() if found is not None and class_path(found) == path), None)


def create_network(
    name: str,
    input_channels: int,
    num_classes: int,
    patch_size: Sequence[int],
    deep_supervision: bool = False,
    pretrained: str | None = None,
    **overrides: Any,
) -> SegmentationNetwork:
    """Build a network by name; 2D or 3D follows from the length of ``patch_size``.

    Args:
        name: one of ``list_networks()``.
        input_channels: image channels.
        num_classes: output channels; the output holds raw logits.
        patch_size: edge lengths in voxels; the network takes images of exactly this size.
        deep_supervision: return a list of logits, full resolution first.
        pretrained: weights to start from, of any kind that ``weights.load`` takes: a file, a folder or ``timm:NAME``.
        overrides: arguments of the network's class that replace those of the published configuration.

    Raises:
        ValueError: on an unknown name or override, and as the class, such as on a patch size that it cannot take; if
            the weights cover less than half of the encoder.
        FileNotFoundError: if there are no such weights.

    Examples:
        >>> import torch
        >>> from nnunet_transformers.architectures import create_network
        >>> network = create_network("qt_unet_tiny", 1, 3, (64, 64))
        >>> network(torch.zeros(1, 1, 64, 64)).shape
        torch.Size([1, 3, 64, 64])
        >>> create_network("unet2022_tyni", 1, 3, (64, 64))
        Traceback (most recent call last):
        ValueError: unknown network 'unet2022_tyni'; did you mean unet2022_tiny, unet2022_base, unet2022_large?
    """
    entry = get_network(name)
    entry.check_overrides(overrides)
    arguments = {**entry.arguments_for(len(patch_size)), **overrides}
    network = entry.build(input_channels, num_classes, patch_size, deep_supervision, **arguments)
    if pretrained is not None:
        # what reads weights builds on the networks, so it is imported only here
        import_module("nnunet_transformers.weights").load_enough(pretrained, network)
    return network
