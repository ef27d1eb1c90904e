"""Free main memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class _Version:
    """Names of a control group's files, by the version of the kernel's interface.

    Attributes:
        limit, usage: files of one number in bytes; the limit may be a word.
        reclaimable: entry of ``memory.stat`` for files read before that the kernel drops when memory is asked for.
    """

    limit: str
    usage: str
    reclaimable: str


VERSIONS = {
    "": _Version("memory.max", "memory.current", "inactive_file"),
    "memory": _Version("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def available_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Return the free main memory in bytes, None if the system does not report it.

    That is the least of what the system has and what the limits of this process's control groups leave, such as those
    of a container or of a job. Cached files that can be dropped count as free.

    Args:
        proc, cgroups: folders of the kernel's interfaces.
    """
    free = []
    meminfo = _read(proc / "meminfo")
    lines = dict(line.split(":", 1) for line in meminfo.splitlines() if ":" in line)
    if "MemAvailable" in lines:
        free.append(1024 * int(lines["MemAvailable"].split()[0]))
    for folder, version in _groups(proc, cgroups):
        limit, used = _read(folder / version.limit).strip(), _read(folder / version.usage).strip()
        if limit.isdigit() and used.isdigit():
            statistics = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
            free.append(int(limit) - int(used) + int(statistics.get(version.reclaimable, 0)))
    return min(free, default=None)


def _groups(proc: Path, cgroups: Path) -> Iterator[tuple[Path, _Version]]:
    """Yield the folders of this process's control groups for memory, with those that they are in."""
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        for controller in controllers.split(","):
            if controller not in VERSIONS:
                continue
            root = cgroups / controller
            # a container sees its own group as the root, whatever the name says
            path = root / name.lstrip("/")
            while path != root and root in path.parents:
                yield path, VERSIONS[controller]
                path = path.parent
            yield root, VERSIONS[controller]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
