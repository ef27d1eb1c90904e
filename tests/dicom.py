"""Tiny DICOM files: explicit little endian, one frame of 16 bits."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LONG = (b"OB", b"OW", b"SQ", b"UN", b"UT")


def element(tag: int, kind: str, value: bytes | str | int) -> bytes:
    content = struct.pack("<H", value) if isinstance(value, int) else value
    content = content.encode() if isinstance(content, str) else content
    content += (b"\0" if kind in ("UI", "OB", "OW") else b" ") * (len(content) % 2)
    code = kind.encode()
    length = struct.pack("<2xI", len(content)) if code in LONG else struct.pack("<H", len(content))
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + code + length + content


def write_dicom(path: Path, pixels: NDArray | None, modality: str = "CT", **tags: str) -> None:
    """Write a slice or a radiograph.

    Args:
        path: file to write; its folder is made.
        pixels: (rows, columns), whole numbers from 0 to 65535; None for an object without pixels.
        modality: such as CT or DX.
        tags: ``series``, ``position``, ``directions``, ``spacing``, ``slope``, ``intercept`` and ``photometric``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unique = f"1.2.{abs(hash(str(path))) % 10**12}"
    storage = "1.2.840.10008.5.1.4.1.1.2" if modality == "CT" else "1.2.840.10008.5.1.4.1.1.1.1"
    meta = element(0x00020001, "OB", b"\0\1") + element(0x00020002, "UI", storage)
    meta += element(0x00020003, "UI", unique) + element(0x00020010, "UI", "1.2.840.10008.1.2.1")
    meta += element(0x00020012, "UI", "1.2.3.4")
    body = element(0x00080016, "UI", storage) + element(0x00080018, "UI", unique) + element(0x00080060, "CS", modality)
    body += element(0x0020000D, "UI", "1.9") + element(0x0020000E, "UI", tags.get("series", "1.2.3"))
    for name, tag in (("position", 0x00200032), ("directions", 0x00200037)):
        body += element(tag, "DS", tags[name]) if name in tags else b""
    if pixels is not None:
        body += element(0x00280002, "US", 1) + element(0x00280004, "CS", tags.get("photometric", "MONOCHROME2"))
        body += element(0x00280010, "US", pixels.shape[0]) + element(0x00280011, "US", pixels.shape[1])
        body += element(0x00280030, "DS", tags.get("spacing", "1\\1"))
        for tag, value in ((0x00280100, 16), (0x00280101, 16), (0x00280102, 15), (0x00280103, 0)):
            body += element(tag, "US", value)
        for name, tag in (("intercept", 0x00281052), ("slope", 0x00281053)):
            body += element(tag, "DS", tags[name]) if name in tags else b""
        body += element(0x7FE00010, "OW", pixels.astype("<u2").tobytes())
    length = struct.pack("<I", len(meta))
    path.write_bytes(bytes(128) + b"DICM" + element(0x00020000, "UL", length) + meta + body)


def write_series(
    folder: Path,
    voxels: NDArray,
    series: str = "1.2.3",
    names: list[str] | None = None,
    places: list[float] | None = None,
) -> None:
    """Write the slices of a CT, (slices, rows, columns) in HU, 2.5 mm apart with pixels of 0.8 mm."""
    for number, plane in enumerate(voxels):
        place = 2.5 * number if places is None else places[number]
        write_dicom(
            folder / (names[number] if names else f"{number:03d}.dcm"),
            np.asarray(plane, dtype=np.int64) + 1024,
            series=series,
            position=f"0\\0\\{place}",
            directions="1\\0\\0\\0\\1\\0",
            spacing="0.8\\0.8",
            intercept="-1024",
            slope="1",
        )
