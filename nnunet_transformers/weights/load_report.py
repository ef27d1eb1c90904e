"""Load report: the outcome for every tensor when weights are loaded into a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class LoadReport:
    """Outcome for each tensor of a network and of the source, by name; ``str`` formats it for people.

    Attributes:
        source: origin of the weights in words.
        loaded: tensors that were loaded unchanged.
        adapted: tensors that were loaded with a change of shape; the value describes the change.
        fresh: tensors that keep their initialisation; the value gives the reason.
        unused: tensors of the source that the network does not have.
        others: numbers of tensors of the file's other state dicts, of which nothing was loaded, by their place.
        notes: where the images of the plan are prepared differently from those of the weights.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    fresh: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    others: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def coverage(self, parameters: Mapping[str, Tensor], prefix: str = "") -> float:
        """Compute the share of the parameters whose name starts with ``prefix`` that were loaded, from 0 to 1.

        Args:
            parameters: parameters of the network by name.
            prefix: start of the names.
        """
        sizes = {name: value.numel() for name, value in parameters.items() if name.startswith(prefix)}
        covered = sum(sizes.get(name, 0) for name in (*self.loaded, *self.adapted))
        return covered / max(1, sum(sizes.values()))

    def __str__(self) -> str:
        lines = [f"weights from {self.source}"]
        lines += self._lines("loaded", dict.fromkeys(self.loaded, ""))
        lines += self._lines("adapted", self.adapted)
        lines += self._lines("fresh", self.fresh)
        lines += self._lines("unused", dict.fromkeys(self.unused, ""))
        lines += [f"  unused: {count} tensors in {other}" for other, count in self.others.items()]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    @staticmethod
    def _lines(title: str, names: Mapping[str, str]) -> list[str]:
        """Format one line per group of names with the same first three parts and the same reason."""
        groups: dict[tuple[str, str], int] = {}
        for name, reason in names.items():
            key = ".".join(name.split(".")[:3]), reason
            groups[key] = groups.get(key, 0) + 1
        lines = [f"  {title}: {len(names)} tensors"]
        for (start, reason), count in groups.items():
            lines.append(f"    {start} ({count})" + (f": {reason}" if reason else ""))
        return lines
