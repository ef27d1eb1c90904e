"""Names of weights that lie in several files, called shards, as the hub's libraries write them.

An index, ``model.safetensors.index.json``, states which of the shards ``model-00001-of-00002.safetensors`` and
``model-00002-of-00002.safetensors`` holds which tensor.
"""

from __future__ import annotations

import re
from collections.abc import Collection

# of shards; a folder may hold the same weights in both formats, of which the first says more that can be checked
ENDINGS = (".safetensors", ".bin")
INDEX = ".index.json"
# libraries write five digits and more; a model of fold 1-of-5 is whole
SHARD = re.compile(r"(.+)-(\d{5,6})-of-(\d{5,6})(\.safetensors|\.bin)", flags=re.ASCII)


def ending_of_shards(name: str) -> str | None:
    """Return the ending of the shards of an index; None if the name is not that of an index."""
    return next((ending for ending in ENDINGS if name.endswith(f"{ending}{INDEX}")), None)


def index_of(name: str) -> str | None:
    """Return the name of the index that may list a file; None if the name is not one of libraries for shards.

    Args:
        name: name or path of a file, which may be the only shard: then it is whole, with an index or without.

    Examples:
        >>> index_of("model-00001-of-00001.safetensors")
        'model.safetensors.index.json'
    """
    match = SHARD.fullmatch(name)
    return None if match is None else f"{match[1]}{match[4]}{INDEX}"


def index_of_shard(name: str) -> str | None:
    """Return the name of the index that a shard belongs to; None if the name is not that of a shard.

    Args:
        name: name or path of a file. The only shard of one is whole.

    Examples:
        >>> index_of_shard("model-00001-of-00002.safetensors")
        'model.safetensors.index.json'
        >>> index_of_shard("model.safetensors")
    """
    match = SHARD.fullmatch(name)
    return None if match is None or int(match[3]) < 2 else index_of(name)


def missing_beside(shard: str, names: Collection[str]) -> list[str]:
    """Return the names of the other shards of the same weights that are not among names.

    Args:
        shard: name or path of a shard, which states how many there are.
        names: those of the files that are there.

    Examples:
        >>> missing_beside("model-00001-of-00003.safetensors", ["model-00003-of-00003.safetensors"])
        ['model-00002-of-00003.safetensors']
    """
    match = SHARD.fullmatch(shard)
    if match is None:
        return []
    stem, number, count, ending = match.groups()
    others = (f"{stem}-{i:0{len(number)}}-of-{count}{ending}" for i in range(1, int(count) + 1))
    there = {shard, *names}
    return [name for name in others if name not in there]
