"""A wheel of this package as it is installed, for packages of models: no registry need have this version."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.version import Version

PLUGIN, IMPORTED = "nnunet-transformers", "nnunet_transformers"
HOOK = f"{IMPORTED}_hook.pth"
# what describes the distribution; records of its installation stay behind
DESCRIBING = ("METADATA", "entry_points.txt", "top_level.txt")
WHEEL = "Wheel-Version: 1.0\nGenerator: nnunet-transformers\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
# the first time that a zip can state: equal files give equal wheels
TIME = (1980, 1, 1, 0, 0, 0)


def write_own_wheel(folder: Path) -> Path:
    """Write a wheel of the installed package, or of its sources if it is installed as editable.

    Args:
        folder: folder for the wheel, created if it is missing.

    Returns:
        the wheel.

    Raises:
        RuntimeError: if the package is not installed or its files are not found.
    """
    found = distribution(PLUGIN)
    version = Version(found.version).public
    folder.mkdir(exist_ok=True)
    target = folder / f"{IMPORTED}-{version}-py3-none-any.whl"
    information = f"{IMPORTED}-{version}.dist-info"
    contents = {**_modules(), **_description(found, information), f"{information}/WHEEL": WHEEL.encode()}
    record = "".join(f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in contents.items())
    contents[f"{information}/RECORD"] = f"{record}{information}/RECORD,,\n".encode()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name, TIME)
            entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return target


def _modules() -> dict[str, bytes]:
    """Return the files of the package, and the hook that stands beside it, by their names in a wheel."""
    package = Path(__file__).parents[1]
    hook = package.parent / HOOK
    if not hook.is_file():
        raise RuntimeError(
            f"{hook} is missing, so no wheel can be made; install nnunet-transformers again, or give one with --wheel"
        )
    paths = [path for path in sorted(package.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(package.parent).as_posix(): path.read_bytes() for path in [*paths, hook]}


def _description(found: Distribution, information: str) -> dict[str, bytes]:
    texts = {name: found.read_text(name) for name in DESCRIBING}
    licences = {
        f"{information}/licenses/{path.name}": path.read_binary()
        for path in found.files or ()
        if path.parent.name == "licenses"
    }
    return {f"{information}/{name}": text.encode() for name, text in texts.items() if text} | licences


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
