"""VolumeFusion: fused crops, loss, networks."""

from __future__ import annotations

import pytest
import torch

from nnunet_transformers.pretraining.data import FusedCrops
from nnunet_transformers.pretraining.data.prepare import prepare
from nnunet_transformers.pretraining.methods.volume_fusion import VolumeFusion
from tests.architectures.test_networks import SMALLEST

from .phantoms import write_volumes
from .test_mae import PATCHES, SIZE, SMALL


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fusion")
    prepare(write_volumes(folder / "raw", 3, shift=6), folder / "prepared", patch_size=SIZE)
    return folder / "prepared"


def method(network="qt_unet_tiny", patch_size=SIZE, overrides=SMALL, **kwargs):
    torch.manual_seed(0)
    module = VolumeFusion(network, patch_size, network_overrides=overrides, **kwargs)
    module.log_dict = lambda values, **kwargs: setattr(module, "logged", values)
    return module


def batch(patch_size, size=2, num_classes=5, channels=1):
    return torch.randn(size, channels, *patch_size), torch.randint(num_classes, (size, *patch_size))


class TestCrops:
    def crops(self, prepared, patch_size=SIZE, num_classes=5, boxes=(10, 39), edge=(8, 0.625)):
        return FusedCrops(prepared, patch_size, num_classes, boxes, edge, 4)

    def test_sample(self, prepared):
        crops = self.crops(prepared)
        (image, classes), (again, same) = crops[1], crops[1]
        assert (image.shape, classes.shape, classes.dtype) == ((1, *SIZE), SIZE, torch.long)
        assert torch.equal(image, again) and torch.equal(classes, same)
        assert set(classes.unique().tolist()) == {0, 1, 2, 3, 4}

    def test_fusion(self, prepared, monkeypatch):
        """Where the coefficient is c, the image is c * foreground + (1 - c) * background."""
        crops, given = self.crops(prepared, num_classes=3), []
        crop = crops._crop
        monkeypatch.setattr(crops, "_crop", lambda rng: given.append(crop(rng)) or given[-1])
        image, classes = crops[0]
        foreground, background = given
        for number, expected in enumerate((background, (foreground + background) / 2, foreground)):
            assert (classes == number).any()
            torch.testing.assert_close(image[:, classes == number], expected[:, classes == number])

    @pytest.mark.parametrize(("edge", "lengths"), [((3, 0.5), {3, 4, 5, 6, 7, 8}), ((20, 0.1), {16})])
    def test_boxes(self, prepared, edge, lengths):
        """Edges lie between the limits, and within the crop."""
        crops, found = self.crops(prepared, boxes=(1, 1), edge=edge), set()
        for index in range(60):
            _, classes = crops[index]
            if classes.any():
                places = classes.nonzero()
                box = (places.max(0).values - places.min(0).values + 1).tolist()
                assert len(places) == box[0] * box[1] * box[2]
                found |= set(box)
        assert found == lengths

    def test_slices(self, prepared):
        image, classes = self.crops(prepared, SIZE[1:])[0]
        assert (image.shape, classes.shape) == ((1, 16, 16), (16, 16))


def test_formula():
    """Cross-entropy minus Dice of all classes and images, of a training step in double precision."""
    module = method(overrides={**SMALL, "drop_path_rate": 0}, num_classes=3, input_channels=2).double()
    image, classes = batch(SIZE, 3, 3, 2)
    loss = module.training_step((image.double(), classes), 0)
    logits = module.decoder(module.encoder.encode(image.double()))
    assert logits.shape == (3, 3, *SIZE)
    probabilities = logits.exp() / logits.exp().sum(1, keepdim=True)
    entropy, dice = [], []
    for row in range(3):
        for number in range(3):
            p, is_class = probabilities[row, number], (classes[row] == number).double()
            entropy.append(-(p.log() * is_class).sum())
            dice.append((2 * (p * is_class).sum() + 1e-5) / (p.sum() + is_class.sum() + 1e-5))
    torch.testing.assert_close(loss, sum(entropy) / classes.numel() - sum(dice) / 9, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", [name for name in SMALLEST if name != "unet2022_tiny"])
def test_any_network(name):
    patch_size = PATCHES["2d"]
    module = method(name, patch_size, None)
    module.training_step(batch(patch_size), 0).backward()
    assert [n for n, p in module.named_parameters() if p.grad is None] == []
