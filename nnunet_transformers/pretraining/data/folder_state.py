"""State of a folder that is being prepared: what its manifests say, and how it goes on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from filecmp import cmp
from pathlib import Path
from time import monotonic
from typing import Any

from ..._atomic import write_json
from ..._reading import reading
from .cases import ImageCase
from .image_store import ShardWriter
from .index import FORMAT, INDEX, PARTS, PreparedCase, Skipped
from .inspection import Facts
from .manifest import MANIFEST, Manifest, read_lines
from .storing import Preparation, Stored, with_place

# file in the folder by which a process holds it, where none can be made beside it
LEASE = "prepare.lease"
# seconds after which what was done is written to the disk
COMMIT_EVERY = 2.0


class FolderState:
    """Images of a prepared folder, and the writer of more.

    Args:
        output: folder, which need not exist.

    Attributes:
        settings: options of the run that began it; None for a new folder.
        source: folder that the last run read.
        facts: facts of inspected images by key.
        preparations: how the images are prepared; empty before that is known.
        stored: lines of stored images by key.
        skipped: lines of skipped images by key.

    Raises:
        FileExistsError: if the folder holds something else, or an earlier version prepared it.
        ValueError: if a manifest is damaged.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        held = {path.name for path in output.iterdir()} - {LEASE} if output.exists() else set()
        if held and MANIFEST not in held:
            if (output / INDEX).is_file():
                raise FileExistsError(
                    f"{output} was prepared by an earlier version: it can be read, but not added to; choose another "
                    "folder"
                )
            raise FileExistsError(f"{output} is not empty; remove it or choose another folder")
        self._reset()
        for part in ("", *PARTS):
            for line in read_lines(output / part):
                with reading(output / part / MANIFEST, "a manifest of prepared images", "choose another folder"):
                    self._take(line, part)

    def _reset(self) -> None:
        self.settings: dict[str, Any] | None = None
        self.source = ""
        self.facts: dict[str, Facts] = {}
        self.preparations: tuple[Preparation, ...] = ()
        self.stored: dict[str, dict[str, Any]] = {}
        self.skipped: dict[str, dict[str, Any]] = {}
        self.ignored: dict[str, str] = {}
        self._manifests: dict[str, Manifest] = {}
        self._shards: dict[str, ShardWriter] = {}
        self._committed = monotonic()

    def _take(self, line: Mapping[str, Any], part: str) -> None:
        """Take over a line of a manifest."""
        if "run" in line:
            self.settings = self.settings or line["run"]["settings"]
            self.source = line["run"]["source"]
        elif "inspected" in line:
            self.facts[line["key"]] = Facts.from_json(line)
            self.skipped.pop(line["key"], None)
        elif "preparations" in line:
            self.preparations = tuple(Preparation.from_json(p) for p in line["preparations"])
        elif "stored" in line:
            self.stored[line["key"]] = {**line, "part": part}
            self.skipped.pop(line["key"], None)
        elif "skipped" in line:
            self.skipped[line["key"]] = dict(line)
            self.stored.pop(line["key"], None)
        elif "ignored" in line:
            self.ignored[line["ignored"]] = line["reason"]

    @property
    def names(self) -> dict[str, str]:
        """Names of the known images by their keys."""
        known = {key: line["skipped"] for key, line in self.skipped.items()}
        return known | {key: line["stored"] for key, line in self.stored.items()}

    def begin(self, source: Path, settings: Mapping[str, Any], version: str) -> None:
        """Begin a run, or go on with one of the same settings.

        Raises:
            ValueError: if images were stored with other settings.
        """
        if self.settings is not None and self.settings != settings:
            other = [name for name in settings if self.settings.get(name) != settings[name]]
            if self.stored:
                raise ValueError(
                    f"{self.output} was prepared with other options ({', '.join(other)}): give the same, or choose "
                    "another folder"
                )
            (self.output / MANIFEST).unlink()
            self._reset()
        if self.settings is None or self.source != str(source):
            run = {"format": FORMAT, "source": str(source), "version": version, "settings": dict(settings)}
            self._manifest("").add({"run": run})
        self.settings = dict(settings)

    def remaining(self, cases: Iterable[ImageCase], source: Path, retry_failed: bool) -> list[ImageCase]:
        """Return the images that are neither stored nor skipped, or whose files have changed since.

        Raises:
            ValueError: if a folder that was not read before holds another image of the same name.
        """
        left = []
        if self.stored and self.source not in ("", str(source)) and os.path.isdir(self.source):
            print(f"comparing the images in {source} with those of their names in {self.source}", flush=True)
        for case in cases:
            line = self.stored.get(case.key) or (None if retry_failed else self.skipped.get(case.key))
            if line is not None and line["bytes"] == case.bytes and not self._is_another(case, source):
                continue
            if case.key in self.stored and self.source not in ("", str(source)):
                raise ValueError(
                    f"{self.output} holds an image of {case.key} in {self.source} already, {source} another one of "
                    "that name: prepare it into another folder"
                )
            left.append(case)
        return left

    def _is_another(self, case: ImageCase, source: Path) -> bool:
        """Whether the folder that was read before still holds files of the case's names with other content."""
        if case.key not in self.stored or self.source in ("", str(source)):
            return False
        resolved = (os.path.realpath(file) for file in case.files)
        pairs = [(os.path.join(self.source, os.path.relpath(file, source)), file) for file in resolved]
        return any(os.path.isfile(before) and not cmp(before, file, shallow=False) for before, file in pairs)

    def add_facts(self, case: ImageCase, facts: Facts) -> None:
        """Note what was found in an image."""
        self.facts[case.key] = facts
        self._add("", {"inspected": case.name, "key": case.key, **facts.to_json()})

    def add_preparations(self, preparations: Sequence[Preparation]) -> None:
        """Note how the images are prepared."""
        self.preparations = tuple(preparations)
        self._add("", {"preparations": [vars(p) for p in preparations]})
        self.commit()  # before any image is written: without a manifest the next run would refuse the folder

    def add_stored(self, case: ImageCase, stored: Stored) -> None:
        """Write a 2D image into a shard, and note that an image is stored."""
        if stored.content:
            if stored.part not in self._shards:
                held = [PreparedCase.from_json({**v, "name": v["stored"]}) for v in self.stored.values()]
                parts = [v["part"] for v in self.stored.values()]
                held = [entry for entry, part in zip(held, parts, strict=True) if part == stored.part]
                self._shards[stored.part] = ShardWriter(self.output / stored.part, held)
            stored = with_place(stored, self._shards[stored.part].append(case.name, stored.content))
        entry = stored.case.to_json()
        self._add(stored.part, {"stored": entry.pop("name"), "bytes": case.bytes, **entry, **stored.remarks})

    def add_skipped(self, case: ImageCase, skipped: Skipped) -> None:
        """Note that an image cannot be used."""
        part = self.stored.get(case.key, {}).get("part", "")
        line = {"skipped": case.name, "reason": skipped.reason, "key": case.key, "bytes": case.bytes}
        if part:  # its manifest says that the image is stored
            self._manifest(part).add(line)
        self._add("", line)

    def _add(self, part: str, line: dict[str, Any]) -> None:
        self._take(line, part)
        self._manifest(part).add(line)
        if monotonic() > self._committed + COMMIT_EVERY:
            self.commit()

    def _manifest(self, part: str) -> Manifest:
        return self._manifests.setdefault(part, Manifest(self.output / part))

    def commit(self) -> None:
        """Write to the disk what was done: first the images, then the lines that lead to them."""
        for shard in self._shards.values():
            shard.sync()
        for manifest in self._manifests.values():
            manifest.commit()
        self._committed = monotonic()

    def close(self) -> None:
        """Write to the disk what was done, and end the shards."""
        for shard in self._shards.values():
            shard.close()
        self.commit()

    def finish(self, ignored: Mapping[str, str]) -> None:
        """Note the ignored files, and write the index, by which the folder can be read."""
        for path, reason in ignored.items():
            if self.ignored.get(path) != reason:
                self._add("", {"ignored": path, "reason": reason})
        self.close()
        used = {line["part"] for line in self.stored.values()}
        for preparation in self.preparations:
            if preparation.part in used:
                write_json({"format": FORMAT, **preparation.head()}, self.output / preparation.part / INDEX)
        if used != {""}:
            write_json({"format": FORMAT, "parts": sorted(used)}, self.output / INDEX)
