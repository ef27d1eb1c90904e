"""Pinned samples of every data module: a seed draws the samples that it drew when checkpoints were published."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_transformers.pretraining.data import (
    EpochData,
    FusedCropData,
    MaskedCropData,
    MaskedViewData,
    MatchedViewData,
    OverlappingViewData,
    ShuffledEpoch,
    TwoViewData,
    loader_memory,
)
from nnunet_transformers.pretraining.data.epoch import hold_out
from nnunet_transformers.pretraining.data.loader_memory import LoaderMemory
from nnunet_transformers.pretraining.data.prepare import prepare
from nnunet_transformers.pretraining.fit import fit, mask_grid
from nnunet_transformers.pretraining.methods.alice import Alice
from nnunet_transformers.pretraining.methods.qt_ssl import QTSSL
from tests.conftest import write_dataset

from .recipes import SMALL_QT_UNET, short_run
from .steps import train

SIZE = (16, 16, 16)
SMALL = {"patch_embed_stride": 2, "num_stages": 2, "window_sizes": 4}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    prepare(write_dataset(folder / "raw", cases=4), folder / "prepared", patch_size=SIZE)
    return str(folder / "prepared")


def sums(tensor):
    """Return the sum of the values, and their sum weighted by position, which flips and other crops change."""
    values = tensor.double().flatten()
    return float(values.sum()), float(values @ torch.linspace(0, 1, len(values), dtype=torch.float64))


def draw(samples, epoch=1, index=2):
    samples.epoch = epoch
    return samples[index]


class TestPinned:
    def test_matched(self, prepared):
        sample = draw(MatchedViewData(prepared, SIZE, (2, 2, 2), matcher="identity", seed=3).epoch())
        masks = {side: sample[f"{side}_mask"].flatten().nonzero().flatten().tolist() for side in ("query", "key")}
        assert masks == {"query": [0, 2, 4, 5, 6, 7], "key": [0, 2, 3, 4, 6, 7]}
        assert sums(sample["query_masked"]) == pytest.approx((2064.5248, 1088.3815), rel=1e-5)
        assert sums(sample["query_intact"]) == pytest.approx((2064.5248, 977.9447), rel=1e-5)
        assert sums(sample["key_masked"]) == pytest.approx((1989.1699, 1023.4398), rel=1e-5)
        assert sums(sample["key_intact"]) == pytest.approx((1989.1699, 965.7301), rel=1e-5)

    def test_crops(self, prepared):
        crop, mask = draw(MaskedCropData(prepared, SIZE, (2, 2, 2), seed=3).epoch())
        assert mask.flatten().nonzero().flatten().tolist() == [0, 2, 4, 5, 6, 7]
        assert sums(crop) == pytest.approx((2064.5248, 977.9447), rel=1e-5)

    def test_fused(self, prepared):
        image, classes = draw(FusedCropData(prepared, SIZE, seed=3).epoch())
        assert sums(image) == pytest.approx((1911.6924, 782.1994), rel=1e-5)
        assert sums(classes) == pytest.approx((4638, 2121.6752), rel=1e-5)

    def test_masked(self, prepared):
        first, second = draw(MaskedViewData(prepared, SIZE, seed=3).epoch())
        assert (first[2], second[2]) == (1, 0)
        assert sums(first[0]) == pytest.approx((2497.0273, 1292.0923), rel=1e-5)
        assert sums(second[0]) == pytest.approx((2219.1116, 1068.0684), rel=1e-5)

    def test_boxes_as_wide_as_stated(self, prepared):
        """Boxes of the whole patch leave nothing of the crop; those of one voxel nearly everything."""

        def changed(**kwargs):
            (view, target, _), _ = draw(MaskedViewData(prepared, SIZE, seed=3, **kwargs).epoch())
            return float((view != target).float().mean())

        assert changed(box_edge=(16, 16)) > 0.99
        assert 0 < changed(box_edge=(1, 1)) < 0.01

    def test_overlapping(self, prepared):
        (view, frame, volume), (other, other_frame, same) = draw(OverlappingViewData(prepared, SIZE, seed=3).epoch())
        assert volume == same == 2
        assert sums(view) == pytest.approx((1408.0313, 1202.3436), rel=1e-5)
        assert sums(other) == pytest.approx((1019.6856, 983.3647), rel=1e-5)
        assert (*sums(frame), *sums(other_frame)) == pytest.approx((6.0, 3.56, 4.2, 3.0), rel=1e-5)

    def test_images_and_volumes(self, prepared):
        data = TwoViewData(prepared, SIZE[1:], (8, 16, 16), seed=3)
        for samples, expected in (
            (data.images, [(797.1366, 456.8192), (1256.0973, 634.6959)]),
            (data.volumes, [(788.8002, 119.4736), (1192.8698, 461.1035)]),
        ):
            for view, values in zip(draw(samples), expected, strict=True):
                assert sums(view) == pytest.approx(values, rel=1e-5)


def test_grid_is_that_of_the_method():
    module = Alice(patch_size=SIZE, network_overrides=SMALL, decoder_heads=4)
    assert mask_grid(module) == tuple(module.encoder.grid) == (4, 4, 4)
    with pytest.raises(ValueError, match="QTSSL has none"):
        mask_grid(QTSSL(patch_size=SIZE, network_overrides=SMALL))


def fake_trainer(**settings):
    given = {"current_epoch": 0, "world_size": 1, "global_rank": 0, "num_devices": 1, "accumulate_grad_batches": 1}
    return SimpleNamespace(**given | settings)


class TestHeldOut:
    def test_images_are_apart_and_samples_the_same(self, prepared):
        data = MaskedViewData(prepared, SIZE, batch_size=2, num_workers=0, val_images=1)
        data.trainer = fake_trainer()
        names = set(data.views.images.names), set(data.held_out.images.names)
        assert [len(n) for n in names] == [3, 1]
        assert not names[0] & names[1]
        assert len(data.views) == 3
        (first,), (again,) = (list(data.val_dataloader()) for _ in range(2))
        assert torch.equal(first[0][0], again[0][0])
        assert MaskedViewData(prepared, SIZE).val_dataloader() == []

    def test_number_and_share(self):
        names = [f"case_{i}" for i in range(20)]
        training, held_out = hold_out(names, 0.1, seed=3)
        assert (len(training), len(held_out)) == (18, 2)
        assert sorted([*training, *held_out]) == sorted(names)
        assert held_out == hold_out(names, 2, seed=3)[1] != hold_out(names, 2, seed=4)[1]
        assert hold_out(names, 0.01, seed=3) == hold_out(names, 0.05, 3, fewest=2) == (names, [])
        assert hold_out(names, 0.95, 0, fewest=2) == (names, [])

    @pytest.mark.parametrize(
        ("number", "message"),
        [(20, "val_images 20 of 20 images leaves too few"), (-1, "val_images must be 0 or more, got -1")],
    )
    def test_a_number_that_cannot_be_held_out(self, number, message):
        with pytest.raises(ValueError, match=message):
            hold_out([f"case_{i}" for i in range(20)], number, seed=0)

    def test_one_image_is_a_batch_of_validation(self, prepared):
        module = QTSSL(patch_size=SIZE, network_overrides=SMALL)
        module.log_dict = lambda values, **kwargs: setattr(module, "logged", values)
        data = MaskedViewData(prepared, SIZE, batch_size=2, num_workers=0, val_images=1)
        data.trainer = fake_trainer()
        (batch,) = data.val_dataloader()
        module.eval().validation_step(batch, 0)
        assert set(module.logged) == {"val_loss", "val_reconstruction", "val_rotation", "val_byol"}
        with pytest.raises(ValueError, match="batch_size must be at least 2"):
            module.train().training_step(batch, 0)


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """A prepared folder of 2D images."""
    folder = tmp_path_factory.mktemp("flat")
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 255, (20, 24), dtype=np.uint8))
    for name in ("a.png", "b.png"):
        sitk.WriteImage(image, str(folder / name))
    prepare(folder, folder / "prepared", patch_size=(16, 16))
    return folder / "prepared"


class TestMistakes:
    @pytest.mark.parametrize(
        ("data", "arguments", "message"),
        [
            (MaskedViewData, {"batch_size": 0}, "batch_size must be at least 1, got 0"),
            (MaskedCropData, {"grid": (2, 2, 2), "samples_per_epoch": -4}, "samples_per_epoch must be at least 1"),
            (MatchedViewData, {"grid": (2, 2, 2), "matcher": "identity", "tries": 0}, "tries must be at least 1"),
            (MatchedViewData, {"grid": (2, 2, 2), "matcher": "identity", "partners": 0}, "partners must be at least 1"),
            (FusedCropData, {"num_classes": 1}, "num_classes must be at least 2"),
            (FusedCropData, {"boxes": (39, 10)}, "boxes must be two numbers, the lower one first"),
            (FusedCropData, {"edge": (8, 1.5)}, "edge must be a number of voxels and a share of at most 1"),
            (TwoViewData, {"patch_size_3d": SIZE, "period": 0}, "period must be at least 1"),
            (TwoViewData, {"patch_size_3d": SIZE, "margin": 0.5}, "margin must be 0 or more and below 0.5"),
        ],
    )
    def test_numbers_out_of_range(self, prepared, data, arguments, message):
        """Each is named before the first sample, which would fail, or draw nothing."""
        with pytest.raises(ValueError, match=message):
            data(prepared, SIZE[-2:] if data is TwoViewData else SIZE, **arguments)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"lr": 0}, "lr must be above 0, got 0"),
            ({"warmup_epochs": -1}, "warmup_epochs must not be negative, got -1"),
            ({"tau": 1.5}, "tau must lie between 0 and 1, got 1.5"),
        ],
    )
    def test_settings_of_a_method(self, settings, message):
        with pytest.raises(ValueError, match=message):
            train(QTSSL(patch_size=SIZE, network_overrides=SMALL, **settings), [None])

    @pytest.mark.parametrize("data", [MatchedViewData, OverlappingViewData])
    def test_views_of_volumes_from_2d_images(self, flat, data):
        arguments = {"grid": (2, 2, 2), "matcher": "identity"} if data is MatchedViewData else {}
        with pytest.raises(ValueError, match="these views are of volumes, and the prepared images are 2D"):
            data(str(flat), SIZE, **arguments)

    def test_a_patch_of_volumes_for_2d_images(self, flat, tmp_path):
        """It would be a slice among slices of padding."""
        with pytest.raises(ValueError, match=r"images are 2D, the patch \[16, 16, 16\] has three axes: take"):
            fit("qt_ssl_in_task", short_run(flat, tmp_path / "run", SMALL_QT_UNET))


class TestFewImages:
    def test_an_epoch_is_at_least_a_step(self, prepared):
        """The in-task recipe on four images, which an epoch of one crop each would be too short for."""
        data = MaskedViewData(prepared, SIZE, batch_size=8, num_workers=0)
        data.trainer = fake_trainer(accumulate_grad_batches=4)
        assert [len(batch[0][0]) for batch in data.train_dataloader()] == [8] * 4
        assert len(MaskedViewData(prepared, SIZE, batch_size=2).epoch()) == 4

    def test_a_stated_length_is_kept(self, prepared):
        data = MaskedViewData(prepared, SIZE, batch_size=8, samples_per_epoch=4, num_workers=0)
        data.trainer = fake_trainer()
        with pytest.raises(ValueError, match="an epoch of 4 samples is less than one step of 8 samples"):
            data.train_dataloader()

    def test_images_that_are_seen_once_make_smaller_batches(self, prepared):
        class Once(ShuffledEpoch):
            def sample(self, rng, number=None):
                return number

        class Data(EpochData):
            index, batch_size, num_workers, samples = None, 8, 0, Once(5)

            def epoch(self):
                return self.samples

        data = Data()
        data.trainer = fake_trainer(accumulate_grad_batches=2)
        batches = list(data.train_dataloader())
        assert ([len(batch) for batch in batches], data.batch_size) == ([2, 2], 2)
        data = Data()
        data.trainer = fake_trainer(accumulate_grad_batches=6)
        with pytest.raises(ValueError, match="an epoch of 5 samples is less than one step"):
            data.train_dataloader()


class TestMemory:
    @pytest.mark.parametrize(
        ("workers", "free", "expected"),
        [
            (8, None, (8, 2, 18)),
            (8, 36, (8, 2, 18)),
            (8, 35, (8, 1, 10)),
            (8, 12, (4, 1, 6)),
            (8, 3, (0, 1, 2)),
            (0, 1, (0, 2, 2)),
        ],
    )
    def test_bound(self, workers, free, expected):
        gb = 10**9
        assert LoaderMemory.within(gb, workers, free and free * gb) == LoaderMemory(*expected[:2], expected[2] * gb)

    @pytest.mark.parametrize(("cores", "is_said"), [(3, True), (4, False)])
    def test_more_workers_than_cores(self, cores, is_said, monkeypatch):
        monkeypatch.setattr(loader_memory, "_first", lambda samples: np.zeros(4))
        monkeypatch.setattr(loader_memory, "_free", lambda workers: None)
        monkeypatch.setattr(loader_memory, "available_cores", lambda: cores)
        _, line = loader_memory.loader_memory(None, 1, 4, 1)
        assert line.endswith("3 cores, which more workers may slow: --data.init_args.num_workers 3") == is_said

    def test_is_said_and_kept(self, prepared, monkeypatch, caplog):
        """Two views and targets of 16^3 voxels in float32 and two numbers of 8 bytes, times four samples."""
        monkeypatch.setattr(loader_memory, "SHARED_MEMORY", "/nowhere")
        monkeypatch.setattr(loader_memory, "available_bytes", lambda: 10 * 4 * (4 * 16**3 * 4))
        data = MaskedViewData(prepared, SIZE, batch_size=4, num_workers=8)
        data.trainer = fake_trainer(num_devices=2)
        torch.manual_seed(5)
        with caplog.at_level(logging.INFO):
            loader = data.train_dataloader()
        assert (loader.num_workers, loader.prefetch_factor) == (0, None)
        assert "at most 0.00 GB of batches in each process, of 0.3 MB, 0 workers" in caplog.text
        assert "8 workers with 2 each would take more than 50%" in caplog.text
        torch.manual_seed(5)
        first = torch.rand(1)
        torch.manual_seed(5)
        data._memory.clear()
        data.train_dataloader()
        assert torch.equal(torch.rand(1), first)

    def test_bytes(self):
        sample = {"a": torch.zeros(3, dtype=torch.half), "b": [np.zeros(2), "text"], "c": 5}
        assert loader_memory.bytes_of(sample) == 6 + 16
