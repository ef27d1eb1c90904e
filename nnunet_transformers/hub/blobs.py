"""Compare files of huggingface_hub's cache with their hashes; the client compares their sizes only."""

from __future__ import annotations

import hashlib
from pathlib import Path

CHUNK = 1 << 20
SHA1_DIGITS, SHA256_DIGITS = 40, 64


def check_blob(path: Path) -> None:
    """Compare a file with the hash by which the hub names its content, and remove it where it differs.

    The cache keeps contents under the names that the server gave them: the SHA-256 of large files, and git's SHA-1 of
    others (https://huggingface.co/docs/huggingface_hub/guides/manage-cache). Without links, as on Windows, and from
    servers with other names nothing can be compared.

    Args:
        path: a file in the cache's folder of a commit.

    Raises:
        ValueError: if the content is another one.
    """
    if not path.is_symlink():
        return
    blob = path.parent / path.readlink()
    if len(blob.name) not in (SHA1_DIGITS, SHA256_DIGITS):
        return
    digest = hashlib.sha256()
    if len(blob.name) == SHA1_DIGITS:
        digest = hashlib.sha1(f"blob {blob.stat().st_size}\0".encode(), usedforsecurity=False)
    with blob.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != blob.name:
        # the content may in turn be a link into a store for all repositories
        for place in (blob.resolve(), blob, path):
            place.unlink(missing_ok=True)
        raise ValueError(f"{path} was damaged on its way or since, and is removed from the cache; download it again")
