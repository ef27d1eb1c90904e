"""What the matchers cost on volumes of the size of a CT, and on a folder of 2,000 volumes whose maps are known.

    PYTHONPATH=. python benchmarks/matching_cost.py      # results/matching_cost.json and .md

Each step runs in a process of its own, whose memory is measured: the features of an image, the map of a pair, and the
lookup of known pairs. The embedding has the size of the recipe ``matcher`` and random weights, which cost the same as
trained ones. The 2,000 volumes are virtual: entries of an index with eight maps each, as a run leaves them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from prepare import draw_ct

from nnunet_transformers.benchmarking.environment import processor_name
from nnunet_transformers.pretraining.data import CachedMatcher, PreparedCase, PreparedImages, PreparedIndex
from nnunet_transformers.pretraining.data.image_store import compress
from nnunet_transformers.pretraining.matching.embedding import MatcherCheckpoint
from nnunet_transformers.pretraining.matching.embedding_network import AnatomyEmbedding
from nnunet_transformers.pretraining.matching.matcher import write_array

SHAPE, SPACING = (160, 512, 512), (2.0, 0.8, 0.8)
VIRTUAL, PARTNERS, LOOKUPS = 2000, 8, 2000
SETTINGS = {"channels": [32, 64, 128], "dim": 128}
MATCHERS = ("affine", "embedding", "hybrid")
POINT = np.array([[150.0, 200.0, 200.0]])


def write_images(folder: Path, number: int, virtual: bool) -> None:
    """Write a prepared folder; of virtual volumes its index only."""
    folder.mkdir()
    names = [f"ct_{i:04d}" for i in range(number)]
    for i, name in enumerate(names if not virtual else []):
        voxels = sitk.GetArrayFromImage(draw_ct(i, SHAPE)).astype(np.float32)[None]
        content = compress((voxels - voxels.mean()) / voxels.std(), (64, 192, 192))
        (folder / f"{name}.b2nd").write_bytes(content)
    cases = tuple(PreparedCase(name, (1, *SHAPE)) for name in names)
    PreparedIndex(cases, (), ("CT",), SPACING, ("ZScoreNormalization",)).save(folder / "index.json")


def open_matcher(work: Path, images: str, matcher: str) -> CachedMatcher:
    arguments = {} if matcher == "affine" else {"weights": str(work / "matcher.pth")}
    return CachedMatcher(PreparedImages(work / images), matcher, arguments, work / f"{images}_cache")


def step(work: Path, matcher: str, what: str) -> dict[str, Any]:
    """Run a step in this process; return its seconds and memory."""
    images = "virtual" if what == "lookup" else "real"
    opened = open_matcher(work, images, matcher)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins here
    before = _memory("VmRSS")
    start, used = time.perf_counter(), time.process_time()
    number = 1
    if what == "features":
        opened.features("ct_0000")
    elif what == "match":
        opened.match("ct_0000", "ct_0001", POINT)
    else:
        rng, number = np.random.default_rng(0), LOOKUPS
        for _ in range(number):
            query = int(rng.integers(VIRTUAL))
            key = (query + 1 + int(rng.integers(PARTNERS))) % VIRTUAL
            opened.match(f"ct_{query:04d}", f"ct_{key:04d}", POINT)
    seconds, cpu = time.perf_counter() - start, time.process_time() - used
    return {"seconds": seconds / number, "cpu_seconds": cpu / number, "added_bytes": _memory("VmHWM") - before}


def _memory(entry: str) -> int:
    """Return an entry of this process's status, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{entry}:"))


def run(work: Path, matcher: str, what: str) -> dict[str, Any]:
    words = [sys.executable, __file__, "--step", what, "--matcher", matcher, "--work", str(work)]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def measure(work: Path) -> dict[str, Any]:
    write_images(work / "real", 2, virtual=False)
    write_images(work / "virtual", VIRTUAL, virtual=True)
    network = AnatomyEmbedding(**SETTINGS)  # type: ignore[arg-type]
    MatcherCheckpoint(network.state_dict(), SETTINGS, (2.0, 2.0, 2.0)).save(work / "matcher.pth")
    result = {}
    for matcher in MATCHERS:
        row = {"features": run(work, matcher, "features")}
        open_matcher(work, "real", matcher).features("ct_0001")
        row["match"] = run(work, matcher, "match")
        (folder,) = (work / "real_cache").glob(f"{matcher}_*")
        row["bytes"] = {
            "features": sum(f.stat().st_size for f in (folder / "features" / "ct_0000").iterdir()),
            "map": sum(f.stat().st_size for f in folder.glob("maps/*/*")),
        }
        if matcher != "embedding":
            maps = open_matcher(work, "virtual", matcher).folder / "maps"
            for query in range(VIRTUAL):
                (maps / f"ct_{query:04d}").mkdir(parents=True)
                for partner in range(1, PARTNERS + 1):
                    key = (query + partner) % VIRTUAL
                    write_array(np.vstack([np.eye(4), np.ones((1, 4))]), maps / f"ct_{query:04d}" / f"ct_{key:04d}.npy")
            row["known"] = run(work, matcher, "lookup")
        print(matcher, row, flush=True)
        result[matcher] = row
    return result


def as_markdown(result: dict[str, Any]) -> str:
    shape = "x".join(map(str, SHAPE))
    lines = [
        f"Volumes of {shape} voxels at {' x '.join(map(str, SPACING))} mm, which the matchers see at 2 mm; one thread, "
        f"{result['machine']}, shared with other work. Memory is what a process takes beside its libraries.",
        "",
        "| matcher | features of an image: CPU s | GB | MB on disk | a new pair: CPU s | GB | a known pair: ms "
        f"| GB of {LOOKUPS} of them |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for matcher, row in result["matchers"].items():
        cells = [f"{row['features']['cpu_seconds']:.1f}", f"{row['features']['added_bytes'] / 1e9:.2f}"]
        cells += [f"{row['bytes']['features'] / 1e6:.1f}", f"{row['match']['cpu_seconds']:.2f}"]
        cells.append(f"{row['match']['added_bytes'] / 1e9:.2f}")
        known = row.get("known")
        if known:
            cells += [f"{1000 * known['seconds']:.2f}", f"{known['added_bytes'] / 1e9:.3f}"]
        lines.append(f"| {matcher} | " + " | ".join([*cells, *(["as a new one", ""] if not known else [])]) + " |")
    lines += ["", f"Computed for {VIRTUAL} such volumes with {PARTNERS} partners each:", ""]
    lines += ["| matcher | features, GB | maps, MB | CPU hours until all maps are known |", "|---|---|---|---|"]
    for matcher, row in result["matchers"].items():
        pairs = VIRTUAL * PARTNERS
        hours = (VIRTUAL * row["features"]["cpu_seconds"] + pairs * row["match"]["cpu_seconds"]) / 3600
        maps = f"{pairs * row['bytes']['map'] / 1e6:.1f}" if row["bytes"]["map"] else "none"
        features = VIRTUAL * row["bytes"]["features"] / 1e9
        lines.append(f"| {matcher} | {features:.1f} | {maps} | {f'{hours:.1f}' if row['bytes']['map'] else ''} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", help="for the processes that this starts")
    parser.add_argument("--matcher")
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(step(options.work, options.matcher, options.step)))
        return
    with tempfile.TemporaryDirectory() as folder:
        result = {"machine": processor_name(), "matchers": measure(Path(folder))}
    output = Path(__file__).parent / "results" / "matching_cost"
    output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    output.with_suffix(".md").write_text(as_markdown(result))
    print(as_markdown(result))


if __name__ == "__main__":
    main()
