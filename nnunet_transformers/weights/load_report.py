"""The report of what became of every tensor when one network starts from another's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class LoadReport:
    """Names of a network's tensors by what happened to them.

    Attributes:
        source: origin of the weights, for people.
        loaded: unchanged.
        adapted: changed in shape; the value describes the change.
        fresh: left at their initialisation; the value gives the reason.
        unused: tensors of the source that have no place in the network.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    fresh: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    def coverage(self, parameters: Mapping[str, Tensor], prefix: str = "") -> float:
        """Share of the parameters under ``prefix`` that came from the source."""
        sizes = {name: value.numel() for name, value in parameters.items() if name.startswith(prefix)}
        covered = sum(sizes.get(name, 0) for name in (*self.loaded, *self.adapted))
        return covered / max(1, sum(sizes.values()))

    def __str__(self) -> str:
        lines = [f"weights from {self.source}"]
        lines += self._lines("loaded", dict.fromkeys(self.loaded, ""))
        lines += self._lines("adapted", self.adapted)
        lines += self._lines("fresh", self.fresh)
        lines += self._lines("unused", dict.fromkeys(self.unused, ""))
        return "\n".join(lines)

    @staticmethod
    def _lines(title: str, names: Mapping[str, str]) -> list[str]:
        """One line for each group of names with the same beginning and the same reason."""
        groups: dict[tuple[str, str], int] = {}
        for name, reason in names.items():
            key = ".".join(name.split(".")[:3]), reason
            groups[key] = groups.get(key, 0) + 1
        lines = [f"  {title}: {len(names)} tensors"]
        for (start, reason), count in groups.items():
            lines.append(f"    {start} ({count})" + (f": {reason}" if reason else ""))
        return lines
