"""Make the stored detector, of the version that first wrote detectors; see make.py, whose files are of an earlier one.

Run once in the repository, and never again::

    PYTHONPATH=$PWD python tests/data/make_detector.py
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import torch
from outputs import RECIPE, SPACING, digest, fixed_input

from nnunet_transformers.classification.classifier import BackboneDescription
from nnunet_transformers.detection.checkpoint import DetectorCheckpoint
from nnunet_transformers.detection.data import whole_images
from nnunet_transformers.detection.detector import Detector
from nnunet_transformers.detection.yolo import ANCHORS

FOLDER = Path(__file__).parent / "format_1"


@torch.no_grad()
def main() -> None:
    description = BackboneDescription("test_resnet", (32, 32), 1)
    widths = (4, 4, 8)
    detector = Detector(description.build(), (1, 32, 32), 2, ANCHORS, widths).eval()
    for value in detector.state_dict().values():
        if value.is_floating_point():  # few numbers, so that xz makes little of them; variances are positive
            value.copy_((torch.arange(value.numel()) % 509 / 2048 + 0.01).view(value.shape))
    file = FOLDER / "detector.pth"
    DetectorCheckpoint(
        detector.state_dict(),
        backbone=description,
        classes=("mass", "nodule"),
        anchors=[[list(map(float, anchor)) for anchor in grid] for grid in ANCHORS],
        widths=widths,
        views=whole_images((32, 32), 1),
        spacing=SPACING,
        normalization=("RescaleTo01Normalization",),
        channels=("radiograph",),
        scores={"val_loss": 0.75},
        encoder="stored",
        recipe=RECIPE,
        num_cases=12,
    ).save(file)
    file.with_suffix(".pth.xz").write_bytes(lzma.compress(file.read_bytes(), preset=9))
    file.unlink()
    expected = json.loads((FOLDER / "expected.json").read_text())
    expected["networks"]["detector"] = [digest(output) for output in detector(fixed_input(2, 1, 32, 32))]
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1))


if __name__ == "__main__":
    main()
