"""Free main memory."""

from __future__ import annotations

from pathlib import Path

# a container's limit and use
CONTAINER = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current")


def available_bytes() -> int | None:
    """Return the free main memory in bytes, within a container's limit; None if the system does not report it."""
    free = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        if "MemAvailable" in lines:
            free.append(1024 * int(lines["MemAvailable"].split()[0]))
    limit, used = (Path(name) for name in CONTAINER)
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        free.append(int(text) - int(used.read_text()))
    return min(free, default=None)
