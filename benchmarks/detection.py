"""Does a pretrained encoder help to detect? Drawn radiographs, MGCA's encoder against one without training, on a CPU.

    python benchmarks/detection.py --work WORK -o benchmarks/results/detection.json

Pretrains by MGCA on drawn radiographs with reports, then trains YOLOv3's head on that encoder and on one with random
weights, both frozen, on other drawn radiographs with boxes, and prints the mean average precision of unseen ones. The
same command goes on after an interruption. Needs the extras [reports,detection].
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from mgca import PATCH_SIZE, pretrain
from synthetic_reports import write_boxed

from nnunet_transformers._atomic import write_json
from nnunet_transformers.classification.predict import unseen
from nnunet_transformers.detection.boxes import read_boxes
from nnunet_transformers.detection.checkpoint import DetectorCheckpoint
from nnunet_transformers.detection.fit import fit
from nnunet_transformers.detection.predict import Predictor
from nnunet_transformers.detection.scores import mean_average_precision
from nnunet_transformers.pretraining.data import PreparedImages
from nnunet_transformers.pretraining.data.prepare import prepare
from nnunet_transformers.weights import TimmCheckpoint, create_timm

IMAGE_SIZE = 96
# MGCA's CNNs see images of 64 enlarged by 299 / 224
DETECTION_SIZE = (96, 96)


def detect(work: Path, folder: Path, table: Path, encoder: Path, epochs: int, seed: int) -> float:
    """Train a detector; returns the mAP of the test split."""
    settings = {
        "model.init_args.patch_size": list(DETECTION_SIZE),
        "model.init_args.widths": [32, 64, 128],
        "model.init_args.lr": 2e-3,
        "data.init_args.num_workers": 0,
        "seed_everything": seed,
        "trainer.max_epochs": epochs,
        "trainer.callbacks": "[]",
        "trainer.accelerator": "cpu",
        "trainer.default_root_dir": work,
        "trainer.enable_progress_bar": "false",
    }
    done, resumed = work / "done", (work / "last.ckpt").is_file()
    if not done.is_file():
        given = [f"--{name}={value}" for name, value in settings.items()]
        fit("mgca", folder, table, encoder, [*given, *["--ckpt_path=last"] * resumed])
        done.touch()
    checkpoint, images = DetectorCheckpoint.load(work / "detector.pth"), PreparedImages(folder)
    boxes = read_boxes(table, images.names, images.files)
    chosen, _ = unseen(checkpoint, boxes.images)
    # all of the curve of precision and recall
    predictor = Predictor(checkpoint, confidence=0.05)
    pairs = zip(boxes.images.names, boxes.targets(checkpoint.classes), chosen, strict=True)
    scored = [(predictor.boxes(images, name), target) for name, target, c in pairs if c]
    return mean_average_precision([s[0] for s in scored], [s[1] for s in scored], checkpoint.classes)["mAP"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for images and runs")
    parser.add_argument("--network", default="resnet10t")
    parser.add_argument("--steps", type=int, default=300, help="of pretraining")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=20, help="of detection")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    work = arguments.work
    if not (work / "pretrained" / "encoder.pth").is_file():
        pretrain(work / "pretrained", arguments.network, arguments.steps)
    table = write_boxed(work / "boxed", arguments.images, IMAGE_SIZE, seed=2)
    prepare(work / "boxed", work / "prepared", longest=IMAGE_SIZE, normalization="rescale_to_0_1")
    encoders = {"MGCA": work / "pretrained" / "encoder.pth"}
    torch.manual_seed(0)
    random = create_timm(arguments.network, 1, PATCH_SIZE)
    encoders["random weights"] = work / "random.pth"
    TimmCheckpoint(random.state_dict(), arguments.network, PATCH_SIZE, 1).save(encoders["random weights"])
    rows: dict[str, list[float]] = {}
    for name, encoder in encoders.items():
        for seed in range(arguments.seeds):
            folder = work / f"{name.split()[0]}_{seed}"
            rows.setdefault(name, []).append(detect(folder, work / "prepared", table, encoder, arguments.epochs, seed))
            print(name, seed, round(rows[name][-1], 3), flush=True)
    summary = {
        "network": arguments.network,
        "steps": arguments.steps,
        "images": arguments.images,
        "epochs": arguments.epochs,
        "mAP": {name: [round(value, 3) for value in values] for name, values in rows.items()},
    }
    print(json.dumps(summary))
    if arguments.output is not None:
        write_json(summary, arguments.output)


if __name__ == "__main__":
    main()
