"""Memory of a process that predicts images of random sizes one after another, with and without giving memory back.

    python benchmarks/prediction_memory.py     # results/prediction_memory.json

The largest image comes first. The resident memory after each later image must not rise above that after the first.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from pathlib import Path

import numpy as np

PATCH = (32, 64, 64)
LARGEST = (64, 128, 128)


def resident() -> float:
    """Return the resident memory of this process in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def predict(images: int, gives_back: bool) -> list[float]:
    """Predict images in this process; return its resident memory after each of them in MB."""
    import torch
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_transformers.architectures import create_network
    from nnunet_transformers.inference import predictor as module

    torch.set_num_threads(1)
    if not gives_back:
        module.release_freed_memory = lambda: None
    architecture = {"network_class_name": "", "arch_kwargs": {}, "_kw_requires_import": []}
    configuration = {"patch_size": PATCH, "spacing": [1, 1, 1], "architecture": architecture}
    plans = PlansManager({"plans_name": "", "dataset_name": "", "configurations": {"3d": configuration}})
    dataset = {"labels": {"background": 0, "organ": 1}, "channel_names": {"0": "CT"}}
    predictor = module.BatchedPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False)
    network = create_network("qt_unet_tiny", 1, 2, PATCH).eval()
    predictor.manual_initialization(
        network, plans, plans.get_configuration("3d"), [network.state_dict()], dataset, "", None
    )
    predictor._label_manager = LabelManager(dataset["labels"], None)
    rng, memory = np.random.default_rng(0), []
    for number in range(images):
        size = [int(n if number == 0 else rng.integers(p, n + 1)) for p, n in zip(PATCH, LARGEST, strict=True)]
        predictor.predict_logits_from_preprocessed_data(torch.zeros(1, *size))
        memory.append(round(resident(), 1))
    return memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "prediction_memory.json")
    arguments = parser.parse_args()
    results = {}
    for name, gives_back in (("kept", False), ("given back", True)):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            memory = pool.apply(predict, (arguments.images, gives_back))
        results[name] = {"after_the_first": memory[0], "largest_after_it": max(memory[1:]), "last": memory[-1]}
        print(name, results[name], flush=True)
    arguments.output.write_text(json.dumps({"images": arguments.images, "MB": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
