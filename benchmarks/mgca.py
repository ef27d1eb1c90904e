"""Does MGCA learn? Synthetic radiographs with reports, 500 steps of 48 pairs, minutes on a CPU.

    python benchmarks/mgca.py --work WORK

Prints one JSON line: the training loss of whole images and reports (ITA) against chance, the AUC of logistic regression
on frozen features of other images against that of random weights (mean over the shapes, five folds), and how alike the
trained text encoder finds reports whose words are the same in another order.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from synthetic_reports import SHAPES, write_dataset, write_text_encoder

from nnunet_transformers.evaluation.classification_probe import probe_classification
from nnunet_transformers.pretraining.data.radiographs import read_radiograph
from nnunet_transformers.pretraining.data.report_pairs import centre_crop
from nnunet_transformers.pretraining.data.report_table import clean_report
from nnunet_transformers.pretraining.encoders.image import ImageEncoder, create_image_encoder
from nnunet_transformers.pretraining.encoders.text import load_tokenizer, tokenize
from nnunet_transformers.pretraining.fit import fit
from nnunet_transformers.pretraining.methods.mgca import MGCA

PATCH_SIZE, IMAGE_SIZE, BATCH_SIZE, PROBE_IMAGES = (64, 64), 64, 48, 400
REPORT = "There is a small nodule in the left lung. There is a large nodule in the right lung."
SWAPPED = "There is a large nodule in the left lung. There is a small nodule in the right lung."
OTHER = "Normal chest. Both lungs clear, no finding is seen."


def pretrain(work: Path, network: str, steps: int) -> tuple[MGCA, list[float]]:
    """Run the recipe; returns the method and the ITA of its last steps, a tenth of all."""
    table = write_dataset(work / "images", images=1200, size=IMAGE_SIZE)
    settings = {
        "data.init_args.table": table,
        "data.init_args.batch_size": BATCH_SIZE,
        "data.init_args.num_workers": 0,
        "data.init_args.max_length": 48,
        "model.init_args.text_encoder": write_text_encoder(work / "bert"),
        "model.init_args.num_text_layers": 2,
        "model.init_args.network": network,
        "model.init_args.patch_size": list(PATCH_SIZE),
        "model.init_args.input_channels": 1,
        "model.init_args.pretrained": "false",
        "model.init_args.num_prototypes": 50,
        "model.init_args.lr": 5e-4,
        "trainer.max_epochs": -1,
        "trainer.max_steps": steps,
        "trainer.callbacks": "[]",  # all of the steps
        "trainer.accelerator": "cpu",
        "trainer.log_every_n_steps": 1,
        "trainer.logger": "CSVLogger",
        "trainer.logger.init_args.save_dir": work,
        "trainer.default_root_dir": work,
        "trainer.enable_progress_bar": "false",
    }
    trainer = fit("mgca", [f"--{name}={value}" for name, value in settings.items()])
    logger, method = trainer.logger, trainer.lightning_module
    assert isinstance(logger, CSVLogger) and isinstance(method, MGCA)
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        ita = [float(row["ita"]) for row in csv.DictReader(file) if row.get("ita")]
    return method.eval(), ita[-max(1, steps // 10) :]


@torch.inference_mode()
def probe_auc(encoder: ImageEncoder, table: Path) -> float:
    """Mean over the shapes of the AUC that tells whether an image has one."""
    with open(table) as file:
        rows = list(csv.DictReader(file))
    images = [centre_crop(read_radiograph(table.parent / row["image"], 1), PATCH_SIZE) for row in rows]
    features = torch.cat([encoder.eval()(torch.stack(images[i : i + 50])).instance for i in range(0, len(images), 50)])
    scores = [
        probe_classification(features.numpy(), [row[shape] for row in rows], shares=(1.0,))[0].auc for shape in SHAPES
    ]
    return float(np.mean(scores))


@torch.inference_mode()
def likeness(method: MGCA, folder: Path) -> dict[str, float]:
    """Cosines of a report's embedding and those of others."""
    words = clean_report(REPORT).split()
    shuffled = " ".join(np.random.default_rng(0).permutation(words))
    reports = [clean_report(text) for text in (REPORT, shuffled, SWAPPED, OTHER)]
    tokens = tokenize(load_tokenizer(str(folder)), reports, 48)
    embeddings = F.normalize(method.report_head(method.text_encoder(**tokens).report), dim=1)
    cosines = (embeddings[0] @ embeddings[1:].T).tolist()
    return dict(zip(("shuffled", "sides_swapped", "other_report"), (round(c, 3) for c in cosines), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for images and run")
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    start = time.perf_counter()
    method, ita = pretrain(arguments.work, arguments.network, arguments.steps)
    minutes = (time.perf_counter() - start) / 60
    probe = write_dataset(arguments.work / "probe", PROBE_IMAGES, IMAGE_SIZE, seed=1)
    torch.manual_seed(0)
    random = create_image_encoder(arguments.network, 1, PATCH_SIZE)
    summary = {
        "network": arguments.network,
        "steps": arguments.steps,
        "minutes": round(minutes, 1),
        "ita": round(float(np.mean(ita)), 2),
        "ita_chance": round(2 * math.log(BATCH_SIZE), 2),
        "auc": round(probe_auc(method.image_encoder, probe), 3),
        "auc_random": round(probe_auc(random, probe), 3),
        "report_cosines": likeness(method, arguments.work / "bert"),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
