"""Find the weights in the content of a file: however deep they are nested, and whatever wraps their names."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

# entries in which training frameworks store the state dict, in the order of preference; "" is the file itself
STATE_DICT_KEYS = ("network_weights", "state_dict", "model", "model_state_dict", "student", "")
# levels of entries below the file itself
MAX_LEVELS = 3


def find_state_dicts(content: Mapping[str, Any]) -> list[tuple[str, dict[str, Tensor]]]:
    """Find all state dicts in nested content: mappings of which most entries are tensors.

    Args:
        content: content of a file, as ``load_checkpoint`` returns it.

    Returns:
        for each, where it is ("" is the file itself, "model.student" an entry in an entry) and its tensors by name; its
        other entries, such as the number of epochs, are left out. First come those in ``STATE_DICT_KEYS``, in that
        order, then the others in the order of the file.

    Examples:
        >>> [where for where, _ in find_state_dicts({"epoch": 3, "ema": weights, "state_dict": weights})]
        ['state_dict', 'ema']
    """
    found = sorted(_mappings(content, ()), key=lambda item: [_rank(key) for key in item[0] or ("",)])
    return [(".".join(path), tensors) for path, mapping in found if (tensors := _mostly_tensors(mapping))]


def strip_prefix(weights: Mapping[str, Tensor], wanted: Collection[str]) -> tuple[dict[str, Tensor], str]:
    """Strip the prefix that wrappers and larger models have given to the names of a network's weights.

    Of all prefixes that end in a dot, such as ``module.``, ``_orig_mod.module.`` or ``img_encoder_q.model.``, it is the
    one below which most names are wanted, and of several with as many names the one with most elements, then the
    shortest, then the first in the file.

    Args:
        weights: tensors by name.
        wanted: names in the network.

    Returns:
        the weights, with the names below the prefix without it, and the prefix. Names elsewhere stay as they are, so
        that they count as unused; one that is equal to a wanted or stripped name gets a dot in front. Without any
        wanted name the weights are returned as they are, and "".
    """
    names = set(wanted)
    matched: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, value in weights.items():
        for start in _starts(name):
            if name[start:] in names:
                matched[name[:start]][0] += 1
                matched[name[:start]][1] += value.numel()
    prefix = max(matched, key=lambda p: (*matched[p], -p.count(".")), default="")
    below, elsewhere = split_prefix(weights, prefix)
    return beside(below, elsewhere, names), prefix


def split_prefix(weights: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights below a prefix, by their names without it, and those elsewhere."""
    below = {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}
    return below, {name: value for name, value in weights.items() if not name.startswith(prefix)}


def beside(
    weights: Mapping[str, Tensor], elsewhere: Mapping[str, Tensor], wanted: Collection[str] = ()
) -> dict[str, Tensor]:
    """Add the weights from elsewhere in a file, those that have the name of another or a wanted one with a dot."""
    taken = weights.keys() | set(wanted)
    return {**weights, **{f".{name}" if name in taken else name: value for name, value in elsewhere.items()}}


def common_prefixes(weights: Mapping[str, Tensor]) -> list[str]:
    """Return the prefixes, ending in a dot, that at least half of the names have: first "", then the shortest."""
    counts = Counter(name[:start] for name in weights for start in _starts(name))
    common = (prefix for prefix, count in counts.items() if 2 * count >= len(weights))
    return sorted(common, key=lambda prefix: prefix.count("."))


def tensors_in(mapping: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the tensors of a mapping that have a text as name."""
    return {name: value for name, value in mapping.items() if isinstance(name, str) and isinstance(value, Tensor)}


def place(path: str | os.PathLike[str], where: str, prefix: str = "") -> str:
    """Say in words where weights are: their file, the entry in it and the prefix of their names, as far as any."""
    return ", ".join(filter(None, (str(path), where, prefix.rstrip("."))))


def others(found: Sequence[tuple[str, Mapping[str, Tensor]]], where: str) -> dict[str, int]:
    """Return the numbers of tensors of the state dicts that ``find_state_dicts`` found elsewhere in the file."""
    return {other or "the file itself": len(tensors) for other, tensors in found if other != where}


def _mappings(content: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Yield nested mappings with their paths, outer ones first; entries without a text as name are left out."""
    if isinstance(content, Mapping) and len(path) <= MAX_LEVELS:
        yield path, content
        for key, value in content.items():
            if isinstance(key, str):
                yield from _mappings(value, (*path, key))


def _mostly_tensors(mapping: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a mapping, none if they are not most of its entries."""
    tensors = tensors_in(mapping)
    return tensors if 2 * len(tensors) > len(mapping) else {}


def _rank(key: str) -> int:
    return STATE_DICT_KEYS.index(key) if key in STATE_DICT_KEYS else len(STATE_DICT_KEYS)


def _starts(name: str) -> Iterator[int]:
    """Yield where a name begins without each of its prefixes, the empty one first."""
    yield 0
    yield from (place + 1 for place, letter in enumerate(name) if letter == ".")
