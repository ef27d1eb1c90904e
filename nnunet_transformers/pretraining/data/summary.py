"""What a preparation has made of the files of its source: every file counts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .index import PreparedCase, Skipped
from .manifest import MANIFEST
from .reading import REORIENTED

if TYPE_CHECKING:
    from .cases import ImageCase, Source
    from .folder_state import FolderState

# names of files that a line lists, and lines of skipped images
NAMED, LISTED = 3, 20


@dataclass(frozen=True)
class Summary:
    """Result of a preparation.

    Attributes:
        output: the prepared folder.
        stored, skipped: all images of the folder, sorted by name.
        added: number of images that this run has stored.
        left_out: number of images left out for validation.
        files: number of files of the source that stored, skipped and left out images consist of.
        ignored: reason by path of the other files.
        orientations: number of volumes by the axes that they are stored with.
        few_values: names of images with so few values that they may be label maps.
        parts: subfolders of 2D images and of volumes, with the number of their images; empty unless both are there.
    """

    output: Path
    stored: Sequence[PreparedCase]
    skipped: Sequence[Skipped]
    added: int
    left_out: int
    files: Mapping[str, int]
    ignored: Mapping[str, str]
    orientations: Mapping[str, int]
    few_values: Sequence[str]
    parts: Mapping[str, int]
    reoriented: bool

    @classmethod
    def of(cls, state: FolderState, cases: Sequence[ImageCase], found: Source, added: int) -> Summary:
        """Count the images of a folder and the files of its source."""
        stored = sorted(state.stored.values(), key=lambda line: line["stored"])
        skipped = sorted(state.skipped.values(), key=lambda line: line["skipped"])
        files = Counter({"stored": 0, "skipped": 0, "left out": 0})
        kept = {case.key for case in cases}
        for case in found.cases:
            group = "left out" if case.key not in kept else "stored" if case.key in state.stored else "skipped"
            files[group] += len(case.files)
        parts = Counter(line["part"] for line in stored)
        return cls(
            state.output,
            [PreparedCase.from_json({**line, "name": line["stored"]}) for line in stored],
            [Skipped(line["skipped"], line["reason"]) for line in skipped],
            added,
            len(found.cases) - len(cases),
            files,
            found.ignored,
            Counter(line["orientation"] for line in stored if "orientation" in line),
            [line["stored"] for line in stored if "few_values" in line],
            {} if set(parts) == {""} else parts,
            bool(state.settings and state.settings["reorient"]),
        )

    def lines(self) -> Iterator[str]:
        """Yield the lines of the summary."""
        for case in self.skipped[:LISTED]:
            yield f"skipped {case.name}: {case.reason}"
        if len(self.skipped) > LISTED:
            yield f"... and {len(self.skipped) - LISTED} more; {self.output / MANIFEST} names all"
        for reason, paths in _by_reason(self.ignored.items()).items():
            yield f"ignored {len(paths)} files, {reason}: {', '.join(paths[:NAMED])}{' ...' * (len(paths) > NAMED)}"
        if len(self.orientations) > 1 and not self.reoriented:
            counts = ", ".join(f"{code} {number}" for code, number in sorted(self.orientations.items()))
            yield f"note: volumes lie in several orientations ({counts}); --reorient brings all to {REORIENTED}"
        if self.few_values:
            names = ", ".join(self.few_values[:NAMED])
            yield f"note: {len(self.few_values)} images hold so few values that they may be label maps: {names}"
        total = sum(self.files.values()) + len(self.ignored)
        counts = ", ".join(
            f"{number} {group}" for group, number in {**self.files, "ignored": len(self.ignored)}.items()
        )
        yield f"{total} files in the source: {counts}"
        for part, number in self.parts.items():
            yield f"{self.output / part}: {number} images"
        added = f" ({self.added} added)" if self.added != len(self.stored) else ""
        yield (
            f"{self.output}: {len(self.stored)} images{added}, {len(self.skipped)} skipped, {self.left_out} left out "
            "for validation"
        )


def _by_reason(ignored: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = defaultdict(list)
    for path, reason in ignored:
        grouped[reason].append(path)
    return dict(sorted(grouped.items()))
