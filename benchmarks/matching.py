"""Matchers on phantoms with a known map, easy and with a large shift of the field of view.

    PYTHONPATH=. python benchmarks/matching.py --steps 150 --seed 0

Trains the embedding on sixteen phantoms, then prints, for points of six pairs that the other volume shows, the median
error in mm, the share within 9 mm (three voxels), the share that the matcher calls valid, and seconds for a pair.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from nnunet_transformers.pretraining.data.prepare import prepare
from nnunet_transformers.pretraining.fit import fit
from nnunet_transformers.pretraining.matching import AffineMatcher, EmbeddingMatcher, HybridMatcher, IdentityMatcher
from nnunet_transformers.pretraining.matching.matcher import random_points
from tests.pretraining.phantoms import make_volume, random_map, true_match, write_volumes

SUBJECTS, PAIRS, POINTS, NEAR = 16, 6, 100, 9.0
SHIFTS = {"easy": 6, "hard": 25}


def train(folder: Path, steps: int, seed: int) -> str:
    """Train the embedding; returns its file."""
    prepare(write_volumes(folder / "raw", SUBJECTS, shift=10), folder / "prepared", patch_size=(24, 24, 24))
    settings = {
        "data.init_args.folder": folder / "prepared",
        "data.init_args.num_workers": 0,
        "data.init_args.patch_size": "[24,24,24]",
        "data.init_args.samples_per_epoch": 80,
        "model.init_args.channels": "[16,32,64]",
        "model.init_args.dim": 32,
        "model.init_args.lr": 0.05,
        "data.init_args.seed": seed,
        "seed_everything": seed,
        "trainer.max_steps": steps,
        "trainer.accelerator": "cpu",
        "trainer.default_root_dir": folder,
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "trainer.logger": "false",
    }
    fit("matcher", [f"--{name}={value}" for name, value in settings.items()])
    return str(folder / "matcher.pth")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0, help="seed of the training")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        weights = train(Path(folder), options.steps, options.seed)
        print(f"trained {options.steps} steps in {time.perf_counter() - start:.0f} s")
        matchers = {
            "identity": IdentityMatcher(),
            "affine": AffineMatcher(),
            "embedding": EmbeddingMatcher(weights),
            "hybrid": HybridMatcher(weights),
        }
        print("| pairs | matcher | median error, mm | within 9 mm | valid | s per pair |\n|---|---|---|---|---|---|")
        for kind, shift in SHIFTS.items():
            for name, matcher in matchers.items():
                rng, seconds = np.random.default_rng(5), 0.0
                errors: list[float] = []
                valid: list[bool] = []
                for pair in range(PAIRS):
                    maps = random_map(rng, shift), random_map(rng, shift)
                    query, key = (
                        make_volume(f"{kind}_{pair}_{side}", m, 100 + 2 * pair + side) for side, m in enumerate(maps)
                    )
                    points = random_points(query.extent.tolist(), POINTS, rng, 0.15)
                    true = true_match(*maps, points)
                    shown = ((true >= 0) & (true <= key.extent)).all(axis=1)
                    begin = time.perf_counter()
                    match = matcher.match(matcher.prepare(query), matcher.prepare(key), points)
                    seconds += time.perf_counter() - begin
                    errors.extend(np.linalg.norm(match.points - true, axis=1)[shown])
                    valid.extend(match.valid[shown])
                near = np.mean(np.array(errors) <= NEAR)
                row = f"| {kind} | {name} | {np.median(errors):.1f} | {near:.0%} | {np.mean(valid):.0%} "
                print(f"{row}| {seconds / PAIRS:.2f} |", flush=True)


if __name__ == "__main__":
    main()
