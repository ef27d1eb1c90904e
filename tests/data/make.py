"""Make the stored files that every later version must read: one of each kind of checkpoint, a package, plans.

The files of a format are made once, by the version that wrote it, and never again. ``format_1`` is of commit e7bda09,
whose module names this script has::

    git worktree add ../then e7bda09
    cd ../then && PYTHONPATH=$PWD python HERE/tests/data/make.py HERE/tests/data/format_1

A later format gets a folder of its own, and this script that version's names.

Weights are tiny, or repeat 509 random numbers so that xz makes little of them; ``expected.json`` has what each network
returns for ``fixed_input``. ``tests/test_stored_files.py`` reads them.
"""

# ruff: noqa: I001  (imports modules of the version that it is run with)
from __future__ import annotations

import json
import lzma
import math
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures import primus
from nnunet_transformers.classification.network import BackboneDescription, ImageClassifier
from nnunet_transformers.classification.views import ImageViews
from nnunet_transformers.pretraining.matching.network import AnatomyEmbedding
from nnunet_transformers.pretraining.prepare import prepare as prepare_images
from nnunet_transformers.pretraining.text import load_tokenizer, tokenize
from outputs import RECIPE, REPORTS, SPACING, TinyPrimus, digest, fixed_input, network_digest

from benchmarks.synthetic_reports import write_text_encoder
from nnunet_transformers.architectures import create_network
from nnunet_transformers.checkpoints import (
    EncoderCheckpoint,
    PrimusCheckpoint,
    TimmCheckpoint,
    create_primus,
    create_timm,
    encoder_weights,
    primus_weights,
)
from nnunet_transformers.classification.checkpoint import ClassifierCheckpoint
from nnunet_transformers.discovery import PLANNERS
from nnunet_transformers.plans.qt_unet import nnUNetPlannerQTUNetT
from nnunet_transformers.pretraining.data import PreparedImages
from nnunet_transformers.pretraining.matching.embedding import MatcherCheckpoint
from nnunet_transformers.pretraining.methods.mgca import MGCA
from nnunet_transformers.pretraining.methods.unimiss import UniMiSS
from nnunet_transformers.sharing.load import load_package
from tests import conftest
from tests.conftest import write_dataset
from tests.plans.test_planner import CLASSES, plan
from tests.sharing import conftest as sharing
from tests.trainers import conftest as training

PERIOD = 509  # a prime: no row of a matrix is like the next
COMPRESSED_FROM = 60_000  # bytes

# name of a file: registered network, patch, overrides
ENCODERS = {
    "encoder_qt_unet": (
        "qt_unet_tiny",
        (16, 16, 16),
        {"embed_dim": 6, "num_heads": 1, "num_stages": 2, "window_sizes": 4, "patch_embed_stride": 2},
    ),
    "encoder_unet2022": ("unet2022_tiny", (32, 32), {"embed_dim": 8, "num_heads": 2, "num_stages": 2}),
    "encoder_setr_pup": ("setr_pup", (32, 48), {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    "encoder_resnet_unet": ("resnet50_unet", (32, 32), {"timm_name": "resnet18"}),
}
MIT = {"embed_dims": (8, 16, 32, 64), "num_heads": (1, 1, 2, 2), "decoder_num_heads": (2, 2, 1)}


def randomise(network: torch.nn.Module) -> torch.nn.Module:
    """Weights that differ from every initialisation, and are easily compressed."""
    generator = torch.Generator().manual_seed(7)
    for name, value in network.state_dict().items():
        if not value.is_floating_point():
            continue
        numbers = torch.rand(PERIOD, generator=generator) - 0.5
        numbers = numbers.repeat(-(-value.numel() // PERIOD))[: value.numel()].view(value.shape)
        if value.dim() > 1:
            value.copy_(numbers * 3 / math.sqrt(value[0].numel()))
        elif name.endswith(("bias", "running_mean")):
            value.copy_(0.2 * numbers)
        else:
            value.copy_(1 + 0.4 * numbers)
    return network.eval()


def repeat_numbers(path: Path) -> None:
    """Make a trained checkpoint easily compressed: each tensor repeats its first numbers."""

    def repeated(value: object) -> object:
        if isinstance(value, dict):
            return type(value)((name, repeated(entry)) for name, entry in value.items())
        if isinstance(value, torch.Tensor) and value.numel() > PERIOD:
            first = value.flatten()[:PERIOD]
            return first.repeat(-(-value.numel() // PERIOD))[: value.numel()].view(value.shape).clone()
        return value

    content = torch.load(path, map_location="cpu", weights_only=False)
    torch.save({name: repeated(value) for name, value in content.items()}, path)


def compress(folder: Path) -> None:
    """Replace large files of weights by their ``.xz``."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".pth", ".safetensors") and path.stat().st_size > COMPRESSED_FROM:
            path.with_name(f"{path.name}.xz").write_bytes(lzma.compress(path.read_bytes(), preset=9))
            path.unlink()


def known(name: str, patch_size: tuple[int, ...], channels: int = 1) -> dict:
    """What encoder checkpoints of every kind state."""
    return {
        "name": name,
        "patch_size": patch_size,
        "input_channels": channels,
        "spacing": SPACING[-len(patch_size) :],
        "normalization": ("ZScoreNormalization",) * channels,
        "method": "stored",
        "recipe": RECIPE,
        "num_cases": 12,
    }


@torch.no_grad()
def make_encoders(folder: Path) -> dict[str, list]:
    """Encoders of the registered networks, of timm's, and Primus."""
    expected = {}
    for file, (name, patch_size, overrides) in ENCODERS.items():
        network = randomise(create_network(name, 1, 2, patch_size, **overrides))
        weights = encoder_weights(network)
        EncoderCheckpoint(weights, overrides=overrides, **known(name, patch_size)).save(folder / f"{file}.pth")
        expected[file] = [digest(f) for f in network.encode(fixed_input(1, 1, *patch_size))]

    # with token and decoder, as UniMiSS writes it
    method = UniMiSS("mit_7", (32, 64), (16, 32, 64), 1, network_overrides=MIT, output_dim=16)
    randomise(method)
    index = {"cases": [0] * 12, "spacing": SPACING, "normalization": ["ZScoreNormalization"]}
    for file, checkpoint in method.checkpoints(index, RECIPE).items():
        file = file.replace("encoder", "encoder_mit")
        checkpoint.save(folder / file)
        network = create_network("mit_7", 1, 2, checkpoint.patch_size, **checkpoint.overrides).eval()
        network.load_state_dict(checkpoint.weights, strict=False)
        expected[Path(file).stem] = [digest(f) for f in network.encode(fixed_input(1, 1, *checkpoint.patch_size))]

    for name in ("test_vit", "test_resnet"):
        size = (32, 48)
        network = randomise(create_timm(name, 3, size))
        TimmCheckpoint(network.state_dict(), **known(name, size, 3)).save(folder / f"timm_{name}.pth")
        expected[f"timm_{name}"] = [digest(network(fixed_input(2, 3, *size)))]

    size = (16, 24, 16)
    network = randomise(create_primus("primus_s", 1, size))
    PrimusCheckpoint(primus_weights(network), **known("primus_s", size)).save(folder / "primus.pth")
    tokens = network.down_projection(fixed_input(1, 1, *size)).flatten(2).transpose(1, 2)
    expected["primus"] = [digest(tokens), digest(network.eva(tokens)[0])]
    return expected


@torch.no_grad()
def make_others(folder: Path, scratch: Path) -> dict[str, list]:
    """Matcher, alignment and classifier."""
    expected = {}
    settings = {"channels": [4, 8, 8], "dim": 8}
    embedding = randomise(AnatomyEmbedding(**settings))
    MatcherCheckpoint(embedding.state_dict(), settings, SPACING, RECIPE).save(folder / "matcher.pth")
    expected["matcher"] = [digest(grid) for grid in embedding(fixed_input(1, 1, 20, 16, 24))]

    bert = str(write_text_encoder(scratch / "bert", dim=16))
    arguments = {"patch_size": [32, 32], "input_channels": 1, "num_text_layers": 1, "num_prototypes": 8}
    with torch.enable_grad():  # MGCA looks for parameters without a gradient
        method = MGCA(bert, "test_vit", **arguments)
    randomise(method)
    method.hparams.text_encoder = "bert"
    index = {"cases": [0] * 12, "normalization": ["RescaleTo01Normalization"], "max_length": 24}
    method.checkpoints(index, RECIPE)["alignment.pth"].save(folder / "alignment.pth")
    batch = {"image": fixed_input(2, 1, 32, 32), **tokenize(load_tokenizer(bert), REPORTS, 24)}
    losses, features = method.losses(batch)
    expected["alignment"] = [digest(features), [round(float(losses[name]), 6) for name in ("ita", "cta", "cpa")]]

    name, patch_size, overrides = ENCODERS["encoder_qt_unet"]
    description = BackboneDescription(name, patch_size, 1, overrides)
    classifier = randomise(ImageClassifier(description.build(), 3))
    ClassifierCheckpoint(
        classifier.state_dict(),
        backbone=description,
        columns=("shape",),
        classes=("ball", "cube", "none"),
        multi_label=False,
        views=ImageViews(patch_size, canvas=(20, 20, 20), intensity_range=(-100.0, 200.0)),
        spacing=SPACING,
        normalization=("NoNormalization",),
        channels=("MRI",),
        scores={"val_auc": 0.75},
        encoder="stored",
        recipe=RECIPE,
        num_cases=12,
    ).save(folder / "classifier.pth")
    expected["classifier"] = [digest(classifier(fixed_input(2, 1, *patch_size)))]
    return expected


def make_model(folder: Path, scratch: Path) -> dict[str, list]:
    """A trained fold as nnU-Net leaves it, and its package."""
    with pytest.MonkeyPatch.context() as monkeypatch, conftest.light_nnunet():
        _, _, overrides = ENCODERS["encoder_qt_unet"]
        monkeypatch.setattr(
            nnUNetPlannerQTUNetT, "network_overrides", {name: overrides[name] for name in ("embed_dim", "num_heads")}
        )
        sharing.environment(scratch, monkeypatch)
        training.prepare(scratch, monkeypatch, size=(16, 16, 16), cases=5)
        training.train()
    model = scratch / "results" / "Dataset900_Balls" / sharing.MODEL
    repeat_numbers(model / "fold_0" / "checkpoint_final.pth")
    stored = folder / "model" / sharing.MODEL
    (stored / "fold_0").mkdir(parents=True)
    for name in ("dataset.json", "dataset_fingerprint.json", "plans.json"):
        shutil.copyfile(model / name, stored / name)
    shutil.copyfile(model / "fold_0" / "checkpoint_final.pth", stored / "fold_0" / "checkpoint_final.pth")
    result = sharing.invoke("package", model, "-f", 0, "-o", folder / "package", "--licence", "CC-BY-4.0")
    assert result.exit_code == 0, result.output
    loaded = load_package(folder / "package", torch.device("cpu"))[0]
    network = loaded.predictor.network.eval()
    network.load_state_dict(loaded.predictor.list_of_parameters[0])
    with torch.no_grad():
        output = network(fixed_input(1, 1, *network.patch_size))
    return {"package": [digest(output[0] if isinstance(output, list) else output)]}


def make_prepared(folder: Path, scratch: Path) -> dict[str, list]:
    """Two prepared images."""
    write_dataset(scratch / "raw", size=(10, 12, 10), cases=2)
    prepare_images(scratch / "raw" / "Dataset900_Balls", folder / "prepared", patch_size=(8, 8, 8))
    for path in (folder / "prepared").iterdir():
        if path.suffix == ".pkl" or path.stem.endswith("_seg"):
            path.unlink()
    images = PreparedImages(folder / "prepared")
    return {"prepared": [digest(images.read(name, (0, 0, 0), images.shapes[name][1:])) for name in images.names]}


def make_plans(folder: Path, scratch: Path) -> dict[str, dict]:
    """A plan of each family of networks, for volumes of thick slices."""
    expected, families = {}, {}
    for name, planner in zip(PLANNERS, CLASSES, strict=True):
        families.setdefault(name.removeprefix("nnUNetPlanner").rstrip("TBLA0123456789"), planner)
    (folder / "plans").mkdir()
    for planner in families.values():
        plans = plan(scratch, planner, (3.0, 1.0, 1.0), (24, 120, 100), channels=2, labels=3)
        file = f"{plans['plans_name']}.json"
        (folder / "plans" / file).write_text(json.dumps(plans, indent=1))
        expected[file] = {
            name: network_digest(configuration)
            for name, configuration in plans["configurations"].items()
            if "architecture" in configuration
        }
    return expected


def main() -> None:
    """Make all of them in the folder that is given."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    primus.PrimusS = TinyPrimus
    torch.manual_seed(0)
    np.random.seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        parts = [Path(scratch) / name for name in ("others", "model", "prepared", "plans")]
        for part in parts:
            part.mkdir()
        networks = make_encoders(folder) | make_others(folder, parts[0]) | make_model(folder, parts[1])
        expected = {"networks": networks | make_prepared(folder, parts[2]), "plans": make_plans(folder, parts[3])}
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    compress(folder)


if __name__ == "__main__":
    main()
