"""Names from files as paths inside a folder."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath


def inside(folder: Path, name: str) -> Path:
    """Return the path of a name that a file states, such as a case of an index or a member of a zip.

    Args:
        folder: folder that the path must stay in.
        name: relative path with forward slashes. The same names are taken on every system.

    Raises:
        ValueError: if it is absolute, leads outside, is empty, or holds backslashes or unprintable characters.

    Examples:
        >>> inside(Path("prepared"), "../../.bashrc")
        Traceback (most recent call last):
        ValueError: '../../.bashrc' leads out of its folder, prepared; refused
    """
    path, on_windows = PurePosixPath(name), PureWindowsPath(name)
    if not path.parts or ".." in path.parts or path.is_absolute() or on_windows.drive or on_windows.root:
        raise ValueError(f"{name!r} leads out of its folder, {folder}; refused")
    if "\\" in name or not name.isprintable():
        raise ValueError(f"{name!r} is no name of a file in {folder}: it holds a backslash or an unprintable character")
    return folder / path
