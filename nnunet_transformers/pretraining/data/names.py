"""Names of prepared images: unique, of bounded length, and the same in every later run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping

from .formats import strip_ending

# bytes: file systems allow 255, of which .b2nd, the mark of a partial file and caches of others take some
LONGEST = 160


def assign_names(wanted: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
    """Give each image of a source a name; the manifest, which holds key and name, leads back.

    An image is called as is wanted wherever possible. A name that is taken, too long, empty or not printable gets a
    part of the hash of the image's key.

    Args:
        wanted: wanted name of each image, by the image's key: the path of its first file in the source.
        known: names by keys that images have had in earlier runs, which they keep.

    Returns:
        names by keys, in the order of ``wanted``.

    Examples:
        >>> assign_names({"a/x.png": "a__x", "a__x.png": "a__x"}, {})
        {'a/x.png': 'a__x', 'a__x.png': 'a__x-2f10f7d5'}
    """
    names, taken = {}, set(known.values())
    for key, name in wanted.items():
        if key in known:
            names[key] = known[key]
            continue
        plain = _plain(name)
        if plain != name or plain in taken:
            plain = _with_hash(plain, key)
        names[key] = plain
        taken.add(plain)
    return names


def known_name(file: str, known: Collection[str], files: Mapping[str, str | None]) -> str | None:
    """Return the prepared name of a file that a table names; None if it was not prepared.

    Args:
        file: name of the image, or its path, with or without folder, ending and nnU-Net's number of the channel.
        known: names of the prepared images.
        files: names of the prepared images by their files in the source; None for files that could not be used, whose
            short name may be another image's.
    """
    if (exact := file.replace("\\", "/")) in files:
        return files[exact]
    path = strip_ending(file.replace("\\", "/"))
    short = path.rpartition("/")[2]
    candidates = (file, path.replace("/", "__"), short, short.removesuffix("_0000"))
    return next((name for name in candidates if name in known), None)


def split_named(word: str) -> str:
    """Return the split that a word of a table means: MIMIC-CXR's ``validate`` is ``val``.

    >>> split_named("Validate")
    'val'
    """
    word = word.strip().lower()
    return "val" if word in ("validate", "validation", "valid") else word


def _plain(name: str) -> str:
    """Replace what a path inside a folder may not hold, and cut what is too long."""
    text = "".join("_" if not c.isprintable() or c in '\\/:*?"<>|' else c for c in name).lstrip(".")
    return os.fsencode(text)[:LONGEST].decode(errors="ignore") or "image"


def _with_hash(name: str, key: str) -> str:
    return f"{name}-{hashlib.sha256(os.fsencode(key)).hexdigest()[:8]}"
