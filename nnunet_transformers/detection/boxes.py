"""Tables of images and the boxes in them: CSV, or COCO's JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._reading import RefusedError, read_json, reading
from ..classification.labels import SPLITS, LabelledImages, plain, read_rows
from ..pretraining.data.names import known_name, split_named

BOX = ("x", "y", "width", "height")
SIZE = ("image_width", "image_height")
COLUMNS = ("image", *BOX, *SIZE)
# class of the boxes of a table that names none
ONLY = "object"


@dataclass(frozen=True)
class BoxedImages:
    """Boxes of prepared images.

    Attributes:
        images: names and splits; the label of an image says whether it has a box that is no crowd, 1 or 0.
        boxes: of each image, (boxes, 4): left, top, right, bottom, as fractions of the image's width and height.
        labels: class of each of these boxes.
        crowds: whether each of these boxes is around a group of objects, COCO's ``iscrowd``.
        sizes: width and height of each image in pixels, as the table states them.
    """

    images: LabelledImages
    boxes: list[NDArray]
    labels: list[list[str]]
    crowds: list[NDArray]
    sizes: list[tuple[int, int]]

    def classes(self) -> list[str]:
        """Return the sorted classes of all boxes."""
        return sorted({label for labels in self.labels for label in labels})

    def presence(self) -> NDArray:
        """Whether each image has no box and whether it has one, (images, 2), 0 or 1."""
        return self.images.targets(("0", "1"))

    def targets(self, classes: Sequence[str], crowds: bool = False) -> list[NDArray]:
        """Encode the boxes as targets.

        Args:
            classes: names of the classes.
            crowds: those of groups of objects, instead of those of single objects.

        Returns:
            of each image (boxes, 5), float32: number of the class, then the box.

        Raises:
            ValueError: if a class is not among ``classes``.
        """
        wanted = [plain(c) for c in classes]  # earlier detectors have classes such as 1.0
        if strange := sorted(set(self.classes()) - set(wanted)):
            raise ValueError(f"label {strange[0]!r} is none of the classes {', '.join(classes)}")
        return [
            np.column_stack([np.array([wanted.index(label) for label in labels]), boxes]).astype(np.float32)[
                crowd == crowds
            ]
            for labels, boxes, crowd in zip(self.labels, self.boxes, self.crowds, strict=True)
        ]

    def check_shapes(self, shapes: Mapping[str, Sequence[int]], is_shrunk: bool) -> None:
        """Check that images were prepared whole, so that fractions of the original are fractions of what is stored.

        Args:
            shapes: (channels, depth, height, width) of each image by its name.
            is_shrunk: whether the images were prepared with --longest.

        Raises:
            ValueError: if an image is a volume, or has another size than its original; of shrunk ones, other
                proportions.
        """
        for name, (width, height) in zip(self.images.names, self.sizes, strict=True):
            _, depth, rows, columns = shapes[name]
            if depth != 1:
                raise ValueError(f"{name} is a volume of {depth} slices; boxes are of 2D images")
            is_whole = (rows, columns) == (height, width)
            if is_shrunk:  # up to rounding
                is_whole = abs(rows - columns * height / width) <= 1 or abs(columns - rows * width / height) <= 1
            if not is_whole:
                found = f"{name} was prepared as {rows}x{columns} pixels, the table has {height}x{width}"
                raise ValueError(
                    f"{found}, which has other proportions; are width and height those of this image?"
                    if is_shrunk
                    else f"{found}: it may have been cropped, so that its boxes are displaced; prepare the images with "
                    "--longest, which neither crops nor stretches them"
                )


def read_boxes(table: Path, known: Collection[str], files: Mapping[str, str | None] | None = None) -> BoxedImages:
    """Read boxes from a CSV file, or from COCO's JSON if the name ends with ``.json``.

    A CSV file has a row for each box, with the columns ``image``, ``x`` and ``y`` of the top left corner, ``width``,
    ``height``, ``image_width`` and ``image_height``, all in pixels of the original image, and optionally ``label`` and
    ``split``. An image without a box has one row with an empty ``x``. COCO's images may have an entry ``split``, its
    boxes ``iscrowd``. Boxes are clipped to the image. Labels such as 1.0 are read as 1.

    Args:
        table: the file. It names an image as the prepared folder does, or by its file.
        known: names of the prepared images.
        files: names of the prepared images by their files in the source, see ``PreparedImages``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, lacks a column, contradicts itself or has an impossible box, or no image of it was
            prepared.
    """
    rows = list(_coco_rows(table) if table.suffix.lower() == ".json" else _csv_rows(table))
    labelled = {bool(row.get("label")): where for where, row in reversed(rows) if row["x"] != ""}
    if len(labelled) > 1:
        raise ValueError(
            f"{table}, {labelled[False]} has a box without a label, others have one; complete the labels, or remove all"
        )
    images: dict[str, _Image] = {}
    for where, row in rows:
        _add(images, row, f"{table}, {where}")
    known, found, unknown = frozenset(known), {}, []
    for name, image in images.items():
        prepared = known_name(name, known, files or {})
        if prepared is None:
            unknown.append(name)
        elif prepared in found:
            raise ValueError(f"{table} names {prepared} by several names, one of them {name}")
        else:
            found[prepared] = image
    if not found:
        raise ValueError(
            f"none of the {len(images)} images in {table} is in the prepared folder: the table's first is "
            f"{next(iter(images), 'missing')}, the folder's {min(known, default='missing')}"
        )
    split = np.array([image.split for image in found.values()]) if any(i.split for i in images.values()) else None
    if split is not None and (split == "").any():
        raise ValueError(f"{table} states the split of some images only; complete or remove it")
    if all(all(image.crowds) for image in images.values()) and any(image.boxes for image in images.values()):
        raise ValueError(
            f"all boxes of {table} have iscrowd, COCO's mark of groups of objects, which are neither trained on nor "
            "counted: set it to 0 where it is one object"
        )
    presence: list[tuple[str, ...]] = [("0" if all(image.crowds) else "1",) for image in found.values()]
    return BoxedImages(
        LabelledImages(list(found), presence, ("box",), split, unknown),
        [np.array(image.boxes, float).reshape(-1, 4) for image in found.values()],
        [image.labels for image in found.values()],
        [np.array(image.crowds, bool) for image in found.values()],
        [image.size for image in found.values()],
    )


@dataclass
class _Image:
    size: tuple[int, int]
    split: str
    boxes: list[list[float]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    crowds: list[bool] = field(default_factory=list)
    rows: int = 0


def _csv_rows(table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    rows, found = read_rows(table, "a table of boxes", (*COLUMNS, "label", "split"))
    if missing := [column for column in COLUMNS if column not in found]:
        raise ValueError(f"{table} has no column {', '.join(missing)}; it has {', '.join(found) or 'none'}")
    for number, row in rows:
        yield f"line {number}", {key: (value or "").strip() for key, value in row.items() if key is not None}


def _coco_rows(table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    content = read_json(table, "COCO's JSON")
    with reading(table, "COCO's JSON", "it has images, annotations and categories"):
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        rows = [
            (
                f"image {image['id']}",
                {
                    "image": str(image["file_name"]),
                    **dict(zip(SIZE, (image["width"], image["height"]), strict=True)),
                    "split": str(image.get("split") or ""),
                },
            )
            for image in content["images"]
        ]
        for kind in ("images", "categories"):
            if twice := [key for key, n in Counter(entry["id"] for entry in content[kind]).items() if n > 1]:
                raise RefusedError(f"{table}: {kind} has the id {twice[0]} more than once; were two files merged?")
        by_id = {image["id"]: row for image, (_, row) in zip(content["images"], rows, strict=True)}
        boxes: dict[Any, list[dict[str, Any]]] = {}
        for number, annotation in enumerate(content["annotations"]):
            if len(annotation["bbox"]) != len(BOX):
                raise RefusedError(f"{table}: annotation {number} has the bbox {annotation['bbox']}, not x, y, w, h")
            if annotation["category_id"] not in names:
                raise RefusedError(
                    f"{table}: annotations are of category {annotation['category_id']}, which is not in categories"
                )
            box = dict(zip(BOX, annotation["bbox"], strict=True))
            label = names[annotation["category_id"]]
            box |= {"label": label, "number": number, "crowd": bool(annotation.get("iscrowd"))}
            boxes.setdefault(annotation["image_id"], []).append(box)
        if strange := boxes.keys() - by_id.keys():
            raise ValueError(f"annotations are of image {sorted(map(str, strange))[0]}, which is not in images")
    for key, row in by_id.items():
        for box in boxes.get(key, [{"x": ""}]):
            yield f"annotation {box.get('number', '')} of {row['image']}", {**row, **box}


def _add(images: dict[str, _Image], row: Mapping[str, Any], where: str) -> None:
    """Add a row to the image that it names.

    Raises:
        ValueError: if it has no image, an impossible size, split or box, or contradicts an earlier row.
    """
    if not row["image"]:
        raise ValueError(f"{where} has no image")
    width, height = (_number(row[column], column, where) for column in SIZE)
    if width < 1 or height < 1:
        raise ValueError(f"{where} has an image of {width:g}x{height:g} pixels")
    split = split_named(row.get("split") or "")
    if split and split not in SPLITS:
        raise ValueError(f"split must be {', '.join(SPLITS)}, got {split!r} in {where}")
    size = int(width), int(height)
    image = images.setdefault(row["image"], _Image(size, split))
    if (image.size, image.split) != (size, split):
        raise ValueError(f"{where} has another size or split of {row['image']} than an earlier row")
    image.rows += 1
    is_empty = row["x"] == ""
    if image.rows > 1 and (is_empty or not image.boxes):
        raise ValueError(f"{where} says that {row['image']} has no box, and another row that it has one, or the same")
    if is_empty:
        return
    x, y, w, h = (_number(row[column], column, where) for column in BOX)
    corners = np.clip(np.array([x / width, y / height, (x + w) / width, (y + h) / height]), 0, 1)
    if not (corners[2] > corners[0] and corners[3] > corners[1]):
        raise ValueError(f"{where} has a box without an area inside of the image: {x:g}, {y:g}, {w:g}, {h:g}")
    image.boxes.append(corners.tolist())
    image.crowds.append(row.get("crowd") is True)
    image.labels.append(plain(str(row.get("label") or ONLY)))


def _number(value: Any, column: str, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number):
        raise ValueError(f"column {column} must hold numbers, got {value!r} in {where}")
    return number
