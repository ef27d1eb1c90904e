"""Read weights that lie in several files, shards, by the index that states which tensor is in which of them.

They are read whole or not at all: a part of a network's weights would load without an error, and the rest of the
network would keep its initialisation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .._paths import inside
from .._reading import RefusedError, read_json, reading
from .._text import printable
from ..hub.shards import ENDINGS, INDEX, ending_of_shards, index_of, index_of_shard, missing_beside

WHAT, ADVICE = "an index of shards", "get it again from its source"
AGAIN = "get index and shards again, all from one source"
# names in a message, and letters of each
SHOWN_NAMES, SHOWN_LETTERS = 3, 80


def find_index(path: Path) -> Path | None:
    """Find the index of the shards that a path means.

    Args:
        path: an index, a folder with one, or a shard beside its index. A file is a shard if an index beside it lists it
            or its name says so.

    Returns:
        the index; None if the path is a whole file, a folder without shards, or does not exist.

    Raises:
        FileNotFoundError: if there are shards without their index; names it, and the shards that are missing too.
        ValueError: if a folder has several indices, or the index that a shard belongs to by its name cannot be read or
            is of other shards.
    """
    if path.is_dir():
        return _index_in(path)
    if not path.is_file() or ending_of_shards(path.name):
        return path if path.is_file() else None
    if path.suffix not in ENDINGS:
        return None
    for index in sorted(path.parent.glob(f"*{path.suffix}{INDEX}")):
        if _lists(index, path.name):
            return index
    _check_is_whole(path)
    return None


def read_index(path: Path) -> dict[str, str]:
    """Read an index of shards.

    Args:
        path: JSON file whose entry ``weight_map`` maps the names of tensors to those of files beside it.

    Returns:
        that mapping.

    Raises:
        OSError: if it cannot be opened.
        ValueError: if it is truncated, no index, leaves out a shard, or names a file elsewhere or of another format.
    """
    weight_map = read_json(path, WHAT, ADVICE).get("weight_map")
    with reading(path, WHAT, ADVICE):
        if not isinstance(weight_map, dict) or not weight_map:
            raise TypeError("it has no weight_map, which names the file of each tensor")
        if not all(isinstance(shard, str) for shard in weight_map.values()):
            raise TypeError("its weight_map holds other values than names of files")
    ending, shards = ending_of_shards(path.name) or "", list(dict.fromkeys(weight_map.values()))
    for shard in shards:
        if not _is_beside(shard, ending):
            raise RefusedError(
                f"{path} names the shard {shard[:SHOWN_LETTERS]!r}, which is no {ending} file in its folder; refused. "
                "Get the index again from its source"
            )
    if left_out := missing_beside(shards[0], shards):
        raise RefusedError(f"{path} names {_shown(shards[:1])}, but leaves out {_shown(left_out)}; {ADVICE}")
    return weight_map


def read_shards(index: Path, read: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    """Read all tensors of the shards of an index, one file after the other.

    Args:
        index: the index.
        read: reads a whole file: its tensors by name.

    Returns:
        all tensors by name.

    Raises:
        FileNotFoundError: if a shard is missing; names it.
        OSError, ValueError: as ``read_index`` and ``read``; ValueError also if a shard holds other tensors than the
            index states, or other things than tensors.
    """
    expected: dict[str, set[str]] = defaultdict(set)
    for name, shard in read_index(index).items():
        expected[shard].add(name)
    missing = [shard for shard in expected if not (index.parent / shard).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{index} names {_shown(missing)}, which {_are(missing)} missing; put "
            f"{'it' if len(missing) == 1 else 'them'} beside the index"
        )
    weights: dict[str, Any] = {}
    for shard, names in expected.items():
        content = read(index.parent / shard)
        _check_content(index.parent / shard, content, names, index.name)
        weights.update(content)
    return weights


def _index_in(folder: Path) -> Path | None:
    """The only index in a folder, that of safetensors files if there is one; errors as for ``find_index``."""
    for ending in ENDINGS:
        found = sorted(folder.glob(f"*{ending}{INDEX}"))
        if len(found) > 1:
            raise ValueError(f"{folder} holds several indices of shards; give one of {_shown(p.name for p in found)}")
        if found:
            return found[0]
    for path in sorted(folder.glob("*-of-*")):
        _check_is_whole(path)
    return None


def _lists(index: Path, name: str) -> bool:
    """Whether an index lists a file; one of other weights, which cannot be read, does not keep the file from it."""
    if index.name == index_of(name):
        return name in read_index(index).values()
    try:
        weight_map = read_json(index, WHAT, ADVICE).get("weight_map")
    except (OSError, ValueError):
        return False
    return isinstance(weight_map, dict) and name in weight_map.values()


def _check_is_whole(path: Path) -> None:
    """Check that a file, which no index lists, is no shard by its name; errors as for ``find_index``."""
    index = index_of_shard(path.name)
    if index is None:
        return
    if (path.parent / index).is_file():
        raise ValueError(f"{path} is a part of the weights, but {index} beside it does not list it; {AGAIN}")
    missing = [index, *missing_beside(path.name, [other.name for other in path.parent.iterdir()])]
    raise FileNotFoundError(
        f"{path} is a part of the weights; {_shown(missing)} {_are(missing)} missing. Put "
        f"{'it' if len(missing) == 1 else 'them'} beside it"
    )


def _is_beside(name: str, ending: str) -> bool:
    """Whether a name that an index states is that of a file in its folder, with an ending."""
    try:
        inside(Path(), name)
    except ValueError:
        return False
    return "/" not in name and name.endswith(ending)


def _check_content(path: Path, content: Mapping[str, Any], names: set[str], index: str) -> None:
    """Check that a shard holds the tensors that its index states, and nothing else.

    A tensor that the index has elsewhere, or not at all, means that the two are of different weights.

    Raises:
        RefusedError: names the file and some of the tensors.
    """
    lacking, more = sorted(names - content.keys()), [name for name in content if name not in names]
    others = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if lacking:
        reason = f"lacks {_shown(lacking)}, which {index} has in it"
    elif more:
        reason = f"holds {_shown(map(str, more))}, which {index} does not have in it"
    elif others:
        reason = f"holds no tensor as {_shown(others)}"
    else:
        return
    raise RefusedError(f"{path} {reason}; {AGAIN}")


def _shown(names: Iterable[str]) -> str:
    listed = [printable(name)[:SHOWN_LETTERS] for name in names]
    more = f" and {len(listed) - SHOWN_NAMES} more" if len(listed) > SHOWN_NAMES else ""
    return ", ".join(listed[:SHOWN_NAMES]) + more


def _are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
