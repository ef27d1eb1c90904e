"""Ways to store many 2D images, measured: bytes, files, seconds to write, random crops per second.

    python benchmarks/image_stores.py --images 200      # results/image_stores.json and .md

Images are synthetic radiographs in 8 bits; each way holds the same ones. A crop is of a random image, read by worker
processes as a data loader reads it. Ways that need a package that is not installed are left out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sqlite3
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from numpy.typing import NDArray
from PIL import Image
from prepare import draw_radiograph

from nnunet_transformers.benchmarking.environment import processor_name
from nnunet_transformers.pretraining.data.image_store import ShardWriter, compress, open_image
from nnunet_transformers.pretraining.data.index import PreparedCase

CROP = 224
# bytes of a shard of other libraries
SHARD = 64 << 20
Reader = Callable[[int, int, int], NDArray[Any]]


def images(number: int, edge: int) -> Iterator[tuple[str, NDArray[Any]]]:
    for index in range(number):
        yield f"image_{index:06d}", draw_radiograph(index, (edge, edge))[None, None]


def _crop(top: int, left: int) -> tuple[Any, ...]:
    return (slice(None), slice(None), slice(top, top + CROP), slice(left, left + CROP))


class ThreeFiles:
    """nnU-Net's files: float32, its empty segmentation, its properties. What `prepare` wrote until now."""

    goes_on = True

    def write(self, folder: Path, number: int, edge: int) -> None:
        for name, image in images(number, edge):
            values = ((image - image.mean()) / image.std()).astype(np.float32)
            blocks, chunks = comp_blosc2_params(values.shape, (CROP, CROP))
            empty = np.zeros(values.shape, np.int8)
            nnUNetDatasetBlosc2.save_case(values, empty, {"spacing": (999, 1, 1)}, str(folder / name), chunks, blocks)

    def reader(self, folder: Path) -> Reader:
        def read(index: int, top: int, left: int) -> NDArray[Any]:
            image = blosc2.open(str(folder / f"image_{index:06d}.b2nd"), mode="r", mmap_mode="r")
            return np.asarray(image[_crop(top, left)])

        return read


class OneFile(ThreeFiles):
    """A blosc2 file for each image, 8 bits."""

    def write(self, folder: Path, number: int, edge: int) -> None:
        for name, image in images(number, edge):
            (folder / f"{name}.b2nd").write_bytes(compress(image, (CROP, CROP)))


class TarShards:
    """Uncompressed tar of blosc2 files, read at their offset: what `prepare` writes."""

    goes_on = True

    def write(self, folder: Path, number: int, edge: int) -> None:
        shards = ShardWriter(folder)
        places = [shards.append(name, compress(image, (CROP, CROP))) for name, image in images(number, edge)]
        shards.close()
        (folder / "places.json").write_text(json.dumps(places))

    def reader(self, folder: Path) -> Reader:
        places = json.loads((folder / "places.json").read_text())
        cases = [PreparedCase(str(number), **place) for number, place in enumerate(places)]

        def read(index: int, top: int, left: int) -> NDArray[Any]:
            return np.asarray(open_image(folder, cases[index])[_crop(top, left)])

        return read


class BloscStore:
    """blosc2's own store of several arrays in a zip, .b2z, which is written when it is closed."""

    goes_on = False

    def write(self, folder: Path, number: int, edge: int) -> None:
        with blosc2.DictStore(str(folder / "images.b2z"), mode="w") as store:
            for name, image in images(number, edge):
                store[f"/{name}"] = blosc2.ndarray_from_cframe(compress(image, (CROP, CROP)))

    def reader(self, folder: Path) -> Reader:
        store = blosc2.DictStore(str(folder / "images.b2z"), mode="r")

        def read(index: int, top: int, left: int) -> NDArray[Any]:
            return np.asarray(store[f"/image_{index:06d}"][_crop(top, left)])

        return read


class ZipOfBlosc:
    """Uncompressed zip of blosc2 files by the standard library, whose directory is written when it is closed."""

    goes_on = False

    def write(self, folder: Path, number: int, edge: int) -> None:
        with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_STORED) as file:
            for name, image in images(number, edge):
                file.writestr(f"{name}.b2nd", compress(image, (CROP, CROP)))

    def reader(self, folder: Path) -> Reader:
        file = zipfile.ZipFile(folder / "images.zip")

        def read(index: int, top: int, left: int) -> NDArray[Any]:
            return np.asarray(blosc2.ndarray_from_cframe(file.read(f"image_{index:06d}.b2nd"))[_crop(top, left)])

        return read


class Database:
    """SQLite with a blosc2 array in each row."""

    goes_on = True

    def write(self, folder: Path, number: int, edge: int) -> None:
        with sqlite3.connect(folder / "images.sqlite") as database:
            database.execute("create table images (number integer primary key, content blob)")
            for index, (_, image) in enumerate(images(number, edge)):
                database.execute("insert into images values (?, ?)", (index, compress(image, (CROP, CROP))))

    def reader(self, folder: Path) -> Reader:
        database = sqlite3.connect(folder / "images.sqlite")

        def read(index: int, top: int, left: int) -> NDArray[Any]:
            (content,) = database.execute("select content from images where number = ?", (index,)).fetchone()
            return np.asarray(blosc2.ndarray_from_cframe(content)[_crop(top, left)])

        return read


class TarOfPictures:
    """Uncompressed tar of PNG, as webdataset's shards are: a crop decodes the whole image."""

    goes_on = True

    def write(self, folder: Path, number: int, edge: int) -> None:
        shards, places = ShardWriter(folder), []
        for name, image in images(number, edge):
            content = BytesIO()
            Image.fromarray(image[0, 0]).save(content, "PNG", compress_level=1)
            places.append(shards.append(name, content.getvalue()))
        shards.close()
        (folder / "places.json").write_text(json.dumps(places))

    def reader(self, folder: Path) -> Reader:
        places = json.loads((folder / "places.json").read_text())

        def read(index: int, top: int, left: int) -> NDArray[Any]:
            place = places[index]
            with open(folder / place["shard"], "rb") as file:
                file.seek(place["offset"])
                pixels = np.asarray(Image.open(BytesIO(file.read(place["length"]))))
            return pixels[None, None][_crop(top, left)]

        return read


class LitData:
    """litdata's chunks of blosc2 files; the index is written at the end."""

    package, goes_on = "litdata", False

    @staticmethod
    def _cache(folder: Path) -> Any:
        return importlib.import_module("litdata.streaming").Cache(str(folder), chunk_bytes=SHARD)

    def write(self, folder: Path, number: int, edge: int) -> None:
        cache = self._cache(folder)
        for index, (_, image) in enumerate(images(number, edge)):
            cache[index] = compress(image, (CROP, CROP))
        cache.done()
        cache.merge()

    def reader(self, folder: Path) -> Reader:
        cache = self._cache(folder)

        def read(index: int, top: int, left: int) -> NDArray[Any]:
            return np.asarray(blosc2.ndarray_from_cframe(cache[index])[_crop(top, left)])

        return read


class MosaicShards:
    """MosaicML streaming's shards (MDS) of blosc2 files; the index is written at the end."""

    package, goes_on = "streaming", False

    def write(self, folder: Path, number: int, edge: int) -> None:
        writer = importlib.import_module("streaming").MDSWriter
        with writer(out=str(folder / "mds"), columns={"image": "bytes"}, size_limit=SHARD) as shards:
            for _, image in images(number, edge):
                shards.write({"image": compress(image, (CROP, CROP))})

    def reader(self, folder: Path) -> Reader:
        data = importlib.import_module("streaming").LocalDataset(local=str(folder / "mds"))

        def read(index: int, top: int, left: int) -> NDArray[Any]:
            return np.asarray(blosc2.ndarray_from_cframe(data[index]["image"])[_crop(top, left)])

        return read


class ZarrShards:
    """zarr v3, one sharded array of images of one size (others would be padded), zstd."""

    package, goes_on = "zarr", True

    def write(self, folder: Path, number: int, edge: int) -> None:
        whole = -(-edge // CROP) * CROP
        array = importlib.import_module("zarr").create_array(
            store=str(folder / "images.zarr"),
            shape=(number, edge, edge),
            chunks=(1, CROP, CROP),
            shards=(1, whole, whole),
            dtype="uint8",
        )
        for index, (_, image) in enumerate(images(number, edge)):
            array[index] = image[0, 0]

    def reader(self, folder: Path) -> Reader:
        array = importlib.import_module("zarr").open_array(str(folder / "images.zarr"), mode="r")

        def read(index: int, top: int, left: int) -> NDArray[Any]:
            return np.asarray(array[index, top : top + CROP, left : left + CROP])[None, None]

        return read


WAYS: tuple[Any, ...] = (
    *(ThreeFiles, OneFile, TarShards, BloscStore, ZipOfBlosc, Database, TarOfPictures),
    *(LitData, MosaicShards, ZarrShards),
)


def _read_many(way: str, folder: Path, number: int, edge: int, crops: int, seed: int) -> float:
    """Read crops in this process; return the seconds."""
    blosc2.set_nthreads(1)
    read = next(w for w in WAYS if w.__name__ == way)().reader(folder)
    rng = np.random.default_rng(seed)
    read(0, 0, 0)
    start = time.perf_counter()
    for _ in range(crops):
        index, top, left = int(rng.integers(number)), *(int(v) for v in rng.integers(edge - CROP, size=2))
        read(index, top, left)
    return time.perf_counter() - start


def measure(way: Any, number: int, edge: int, crops: int, workers: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        blosc2.set_nthreads(1)
        start = time.perf_counter()
        way().write(folder, number, edge)
        written = time.perf_counter() - start
        files = [path for path in folder.rglob("*") if path.is_file()]
        row: dict[str, Any] = {
            "way": way.__name__,
            "what": (way.__doc__ or "").strip(),
            "files": len(files),
            "bytes_per_image": round(sum(512 * path.stat().st_blocks for path in files) / number),
            "write_s": round(written, 2),
            "goes_on_after_a_kill": way.goes_on,
        }
        for count in (1, workers):
            with get_context("fork").Pool(count) as pool:  # as a data loader does
                jobs = [(way.__name__, folder, number, edge, crops, seed) for seed in range(count)]
                seconds = pool.starmap(_read_many, jobs)
            row[f"crops_per_s_{count}"] = round(sum(crops / s for s in seconds))
        return row


def as_markdown(result: dict[str, Any], workers: int) -> str:
    lines = [
        f"{result['images']} synthetic radiographs of {result['edge']}^2 in 8 bits, crops of {CROP}^2 from the page "
        f"cache, {result['machine']}, {os.cpu_count()} cores shared with other work. Drawing the images, the same "
        "for all, is part of the seconds to write.",
        "",
        f"| | files | kB per image | write, s | crops/s, 1 worker | {workers} workers | goes on after a kill |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        goes_on = "yes" if row["goes_on_after_a_kill"] else "no"
        lines.append(
            f"| {row['what']} | {row['files']} | {row['bytes_per_image'] / 1000:.0f} | {row['write_s']:.1f} | "
            f"{row['crops_per_s_1']} | {row[f'crops_per_s_{workers}']} | {goes_on} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--edge", type=int, default=1024)
    parser.add_argument("--crops", type=int, default=500)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "image_stores")
    options = parser.parse_args()
    rows = []
    for way in WAYS:
        if find_spec(getattr(way, "package", "blosc2")) is None:
            print(f"{way.__name__} is left out: {way.package} is not installed")
            continue
        rows.append(measure(way, options.images, options.edge, options.crops, options.workers))
        print(rows[-1], flush=True)
    result = {"images": options.images, "edge": options.edge, "machine": processor_name(), "rows": rows}
    options.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    options.output.with_suffix(".md").write_text(as_markdown(result, options.workers))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
