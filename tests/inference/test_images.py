"""An image's slabs on their way to labels and maps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from nnunet_transformers.inference import images
from nnunet_transformers.inference.uncertainty import UncertaintyMaps, uncertainty_maps


class Export:
    """Keeps the slabs, in place of computing labels."""

    def __init__(self, *_):
        self.slabs = []

    def restart(self):
        self.slabs.clear()

    def add(self, logits):
        self.slabs.append(logits)


@pytest.mark.parametrize("temperature", [1, 2.5])
def test_slabs(monkeypatch, temperature):
    """What came before the first plane comes again is forgotten, and the temperature divides each fold's logits."""
    monkeypatch.setattr(images, "ImageExport", Export)
    folds = [torch.randn(3, 5, 4, 4) for _ in range(2)]

    def predict_slabs(_, take):
        for planes in (slice(0, 2), slice(0, 2), slice(2, 5)):  # the device was too small at first
            take(planes.start, [fold[:, planes].clone() for fold in folds])

    predictor = SimpleNamespace(predict_slabs=predict_slabs, temperature=temperature)
    predictor.plans_manager = predictor.configuration_manager = predictor.label_manager = None
    maps = UncertaintyMaps(has_regions=False)
    export = images.predict_image(predictor, torch.zeros(1, 5, 4, 4), {}, maps=maps)
    scaled = [fold / temperature for fold in folds]
    torch.testing.assert_close(torch.cat(export.slabs, 1), (scaled[0] + scaled[1]) / 2)
    torch.testing.assert_close(torch.cat(maps._slabs, 1), uncertainty_maps(scaled))
