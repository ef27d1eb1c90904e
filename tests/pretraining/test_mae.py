"""MAE: cells, masking of every form of network, loss, optimiser steps, samples, a run of the recipe."""

from __future__ import annotations

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nnunet_transformers.architectures import create_encoder, create_network
from nnunet_transformers.pretraining.data import MaskedCrops
from nnunet_transformers.pretraining.data.prepare import prepare
from nnunet_transformers.pretraining.data.transforms import spatial_transforms
from nnunet_transformers.pretraining.encoders.map_decoder import PyramidDecoder, TokenDecoder
from nnunet_transformers.pretraining.encoders.masked import MaskedEncoder, VisibleEncoder, choose_grid, random_mask
from nnunet_transformers.pretraining.encoders.sparse import SparseEncoder
from nnunet_transformers.pretraining.fit import fit
from nnunet_transformers.pretraining.methods.mae import MAE
from nnunet_transformers.testing.network import shallow
from nnunet_transformers.weights import load_encoder, load_encoder_weights
from tests.architectures.test_networks import SMALLEST, forms, reduced

from .phantoms import write_volumes
from .recipes import SMALL_QT_UNET, short_run
from .steps import train

SIZE = (16, 16, 16)
PATCHES = {"3d": (32, 32, 64), "2d": (64, 64)}
SMALL = {"patch_embed_stride": 2, "num_stages": 2, "window_sizes": 4}
# a short run
RUN = {
    **SMALL_QT_UNET,
    "data.init_args.batch_size": 4,
    "model.init_args.network": "qt_unet_tiny",
    "model.init_args.lr": 3e-3,
    "model.init_args.warmup_epochs": 1,
}
PRIMUS = pytest.param("primus_s", (16, 24, 32), id="primus_s")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mae")
    prepare(write_volumes(folder / "raw", 4, shift=6), folder / "prepared", patch_size=SIZE)
    return folder / "prepared"


def masks(grid, size=2):
    return torch.stack([torch.from_numpy(random_mask(grid, 0.75, np.random.default_rng(i))) for i in range(size)])


def method(network="qt_unet_tiny", patch_size=SIZE, overrides=SMALL, **kwargs):
    torch.manual_seed(0)
    module = MAE(network, patch_size, network_overrides=overrides, **kwargs)
    module.log_dict = lambda values, **kwargs: setattr(module, "logged", values)
    return module


def batch(module, size=2):
    image = torch.randn(size, module.hparams.input_channels, *module.hparams.patch_size)
    return image.to(module.dtype), masks(module.encoder.grid, size)


def repeat(mask, *edges):
    """Enlarge a mask, (batch, *grid), by a factor for each axis, or one for all."""
    for axis, edge in enumerate(edges if len(edges) > 1 else edges * (mask.dim() - 1), start=1):
        mask = mask.repeat_interleave(edge, axis)
    return mask


class TestCells:
    @pytest.mark.parametrize(
        ("name", "patch_size", "mask_size", "expected"),
        [
            ("qt_unet_tiny", (96, 96, 96), 16, (6, 6, 6)),
            ("qt_unet_tiny", (96, 96, 96), 15, (12, 12, 12)),
            ("qt_unet_tiny", (96, 96, 96), 100, (3, 3, 3)),
            ("qt_unet_a_tiny", (32, 96, 96), 16, (8, 6, 6)),
            ("mit_7", (32, 64, 64), 16, (4, 4, 4)),
            ("setr_pup_tiny", (64, 64), 8, (4, 4)),
        ],
    )
    def test_grid(self, name, patch_size, mask_size, expected):
        with torch.device("meta"):
            assert choose_grid(create_encoder(name, 1, patch_size), mask_size) == expected

    def test_openminds_cells(self):
        """Voxels of 160^3: cells of 16 voxels where maps have strides 1 to 32 as in ResEnc-L, Primus's tokens of 8."""

        strides = [(s,) * 3 for s in (1, 2, 4, 8, 16, 32)]
        resenc_l = SimpleNamespace(grid_sizes=[(160 // s,) * 3 for s, *_ in strides], feature_strides=strides)
        assert choose_grid(resenc_l, 16) == (10, 10, 10)
        assert method("primus_s", (32, 32, 32), None).encoder.grid == (4, 4, 4)


class TestForms:
    """Every network in 2D and 3D, and Primus."""

    @pytest.mark.parametrize("name,patch_size", [*forms(SMALLEST, patches=PATCHES), PRIMUS])
    def test_reconstruction(self, name, patch_size):
        overrides = None if "primus" in name else shallow(name, len(patch_size))
        module = method(name, patch_size, overrides).train()
        image, mask = batch(module)
        form = SparseEncoder if name.startswith("res") else VisibleEncoder if "primus" in name else MaskedEncoder
        assert isinstance(module.encoder, form)
        assert isinstance(module.decoder, TokenDecoder if "primus" in name or "setr" in name else PyramidDecoder)
        cell = [p // g for p, g in zip(patch_size, module.encoder.grid, strict=True)]
        hidden = repeat(mask, *cell)[:, None]

        @torch.no_grad()
        def reconstruct(image):
            torch.manual_seed(1)  # of drop path
            return module.decoder(module.encoder.maps(image, mask))

        prediction = reconstruct(image)
        assert prediction.shape == image.shape
        # masked voxels have no influence, visible ones do
        assert torch.equal(reconstruct(torch.where(hidden, torch.randn_like(image), image)), prediction)
        assert not torch.allclose(reconstruct(torch.where(hidden, image, 1 - image)), prediction)
        module.training_step((image, mask), 0).backward()
        assert [n for n, p in module.named_parameters() if p.grad is None] == []
        assert 0.1 < module.logged["feature_spread"] <= 1

    def test_one_image(self):
        """A batch of one image is no collapse."""
        module = method()
        module.training_step(batch(module, 1), 0)
        assert module.logged["feature_spread"] > 0.1

    def test_masked_places_get_the_token(self):
        """Masked tokens enter the encoder as one learned vector, at the finest resolution."""
        module = method().double()
        image, mask = batch(module)
        entered = []
        handle = module.network.encoder.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
        module.encoder.maps(image, mask)
        handle.remove()
        fine = repeat(mask, 2).flatten(1)
        assert module.encoder.grid == (4, 4, 4) and fine.shape[1] == entered[0].shape[1]
        assert (entered[0][fine] == module.encoder.mask_token).all()
        assert not (entered[0][~fine] == module.encoder.mask_token).any()

    def test_mistakes(self):
        with pytest.raises(ValueError, match="optimizer must be some of adamw, sgd"):
            method(optimizer="lion").create_optimizer()
        with pytest.raises(ValueError, match="primus_s has fixed sizes"):
            method("primus_s", (16, 24, 32))
        with pytest.raises(ValueError, match="decoder_heads must divide the tokens' 396 channels, got 8"):
            method("primus_s", (16, 24, 32), None, decoder_heads=8)


class TestFormula:
    """OpenMind's loss: the squared error of the voxels of masked cells, not normalised within cells."""

    def test_training_step(self):
        module = method(overrides={**SMALL, "drop_path_rate": 0}, input_channels=2).double()
        network, (image, mask) = module.network, batch(module, 3)
        loss = module.training_step((image, mask), 0)
        tokens = network.stem(image.where(~repeat(mask, 4)[:, None], 0.0))
        tokens[repeat(mask, 2).flatten(1)] = module.encoder.mask_token
        maps = [f.mT.unflatten(2, grid) for f, grid in zip(network.encoder(tokens), network.grid_sizes, strict=True)]
        prediction, errors = module.decoder(maps), []
        for row, *cell in mask.nonzero().tolist():
            for channel in range(2):
                place = (row, channel, *(slice(4 * i, 4 * i + 4) for i in cell))
                errors += [(prediction[place] - image[place]).square().flatten()]
        torch.testing.assert_close(loss, torch.cat(errors).mean())
        torch.testing.assert_close(module.logged["reconstruction"], loss)

    def test_prediction_of_a_cell(self):
        """The channels of the finest map's places are the voxels of its cells."""
        decoder = PyramidDecoder([(6, 8, 4), (10, 4, 4)], (16, 8), 3)
        maps = [torch.randn(2, 6, 8, 4), torch.randn(2, 10, 4, 4)]
        voxels = decoder.levels(maps)
        assert voxels.shape == (2, 12, 8, 4)
        assert torch.equal(decoder(maps), F.pixel_shuffle(voxels, 2))

    def test_mean_prediction(self):
        """The loss of predicting the mean is the variance: 1 for z-scored voxels."""
        module = method()
        image, mask = batch(module, 8)
        image = (image - image.mean()) / image.std()
        module.decoder = torch.nn.Module()
        module.decoder.forward = lambda maps: torch.zeros_like(image)
        assert float(module.training_step((image, mask), 0)) == pytest.approx(1, abs=0.05)


class TestSteps:
    def rates(self, steps, warmup, highest):
        rising = [highest * (step + 1) / warmup for step in range(warmup)]
        return rising + [highest * (1 - step / (steps - warmup)) ** 0.9 for step in range(steps - warmup)]

    def still(self, **kwargs):
        return method(overrides={**SMALL, "drop_path_rate": 0}, **kwargs).double()

    def test_adamw(self):
        module = self.still(lr=1e-3, warmup_epochs=1, weight_decay=100.0)
        recorder = train(module, [batch(module, 3) for _ in range(2)], epochs=3)
        assert recorder.settings("lr") == pytest.approx(self.rates(6, 2, 1e-3))
        assert recorder.groups[0][0]["betas"] == (0.9, 0.98)
        # besides weight decay, of all parameters as in nnssl, AdamW's first step is at most the learning rate
        before, after = recorder.weights[:2]
        for name in recorder.gradients[0]:
            expected = before[name] * (1 - 5e-4 * 100)
            torch.testing.assert_close(after[name], expected, rtol=0, atol=5e-4 + 1e-9, msg=name)

    def test_sgd(self):
        module = self.still(optimizer="sgd", lr=1e-3, warmup_epochs=0, weight_decay=0.1)
        recorder = train(module, [batch(module, 3) for _ in range(2)])
        assert recorder.settings("lr") == pytest.approx(self.rates(2, 0, 1e-3))
        before, after, last = recorder.weights
        for name, gradient in recorder.gradients[0].items():
            # Nesterov: v = 0.99 v + g, then w -= lr (g + 0.99 v); the first v is g
            first = gradient + 0.1 * before[name]
            torch.testing.assert_close(after[name], before[name] - 1e-3 * 1.99 * first, msg=name)
            second = recorder.gradients[1][name] + 0.1 * after[name]
            velocity = 0.99 * first + second
            rate = 1e-3 * 0.5**0.9
            torch.testing.assert_close(last[name], after[name] - rate * (second + 0.99 * velocity), msg=name)


class TestData:
    def crops(self, prepared, patch_size=SIZE, grid=(4, 4, 4), ratio=0.75, samples=4):
        return MaskedCrops(prepared, patch_size, grid, ratio, samples)

    def test_sample(self, prepared):
        crops = self.crops(prepared)
        (crop, mask), (again, same) = crops[1], crops[1]
        assert (crop.shape, mask.shape, mask.sum()) == ((1, *SIZE), (4, 4, 4), 48)
        assert torch.equal(crop, again) and torch.equal(mask, same)
        assert not torch.equal(mask, crops[2][1])
        assert crop.is_contiguous()

    def test_slices(self, prepared):
        crop, mask = self.crops(prepared, SIZE[1:], (4, 4))[0]
        assert (crop.shape, mask.sum()) == ((1, 16, 16), 12)

    @pytest.mark.parametrize("edge", [5, 12, 30], ids=["thinner", "between patch and what is read", "larger"])
    def test_every_voxel_can_be_in_a_crop(self, prepared, monkeypatch, edge):
        """Also where what is read for a rotation covers the image; beyond its borders is padding, evenly."""
        images = self.crops(prepared).images
        name = images.names[0]
        ramp = torch.arange(1.0, edge + 1)[None, :, None, None].expand(1, edge, edge, edge)
        monkeypatch.setattr(images, "names", [name])
        monkeypatch.setitem(images.shapes, name, (1, edge, edge, edge))
        parts = []

        def read(name, start, size):
            assert all(a >= 0 and a + n <= edge for a, n in zip(start, size, strict=True))
            parts.append(ramp[(slice(None), *(slice(a, a + n) for a, n in zip(start, size, strict=True)))])
            return parts[-1]

        monkeypatch.setattr(images, "read", read)
        rng, seen = np.random.default_rng(0), set()
        for _ in range(200):
            crop = images.crop_with_surroundings((8, 8, 8), (14, 14, 14), rng)
            assert crop.shape == (1, 14, 14, 14) and crop.min() == parts[-1].min()
            middle = crop[0, 3:11, 7, 7]
            seen |= set(middle.tolist())
            if edge == 5:
                assert middle.tolist() == [1, 1, 2, 3, 4, 5, 1, 1]
            else:
                assert torch.equal(middle.diff(), torch.ones(7))
        assert seen == set(range(1, edge + 1))

    @pytest.mark.parametrize("ratio", [0.0, 0.005, 1.0])
    def test_nothing_to_do(self, prepared, ratio):
        with pytest.raises(ValueError, match=rf"mask_ratio {ratio} masks (0|64) of 64 cells"):
            self.crops(prepared, ratio=ratio)

    @pytest.mark.parametrize(
        ("patch_size", "taken", "turned"),
        [
            ((32, 32, 32), 1.36, (0, 1, 2)),
            ((8, 32, 32), 1.41, (1, 2)),
            ((32, 32), 1.41, (0, 1)),
            ((32, 64), 1.22, (0, 1)),
        ],
        ids=["3d", "anisotropic", "2d", "2d with an angle of 15"],
    )
    def test_spatial(self, patch_size, taken, turned):
        """Corners of rotated crops have voxels; where these are anisotropic, slices stay slices."""
        transform, size = spatial_transforms(patch_size)
        for axis, (edge, n) in enumerate(zip(patch_size, size, strict=True)):
            assert n >= edge and (n > edge) == (axis in turned)
        assert max(size) / max(patch_size) < taken / 0.85 + 0.1
        places = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in size], indexing="ij"))
        changed = 0
        for seed in range(20):
            torch.manual_seed(seed)
            np.random.seed(seed)
            result = transform(image=places)["image"]
            assert tuple(result.shape[1:]) == tuple(patch_size)
            steps = [result.diff(dim=axis + 1)[axis].abs() for axis in range(len(patch_size))]
            changed += any(not torch.allclose(step, torch.ones(1)) for step in steps)
            if turned == (1, 2):
                assert torch.allclose(steps[0][:, 16, 16], torch.ones(1))
        assert 2 <= changed <= 14  # 36 % of 20


@pytest.mark.parametrize(
    ("network", "patch_size", "overrides"),
    [("qt_unet_tiny", SIZE, SMALL), ("resnet18_unet", (64, 64), None)],
)
def test_learns_an_image(network, patch_size, overrides):
    """Mask tokens and sparse layers let the masked voxels of an image be fitted."""
    module = method(network, patch_size, overrides)
    x = torch.stack(torch.meshgrid(*[torch.linspace(0, 4, n) for n in patch_size], indexing="ij")).sum(0).sin()
    image, mask = torch.stack([x, -x])[:, None] / x.std(), masks(module.encoder.grid)
    optimizer = torch.optim.AdamW(module.parameters(), 2e-3)
    for _ in range(12):
        optimizer.zero_grad()
        loss = module.training_step((image, mask), 0)
        loss.backward()
        optimizer.step()
    assert loss < 0.6


@pytest.mark.parametrize(
    ("network", "overrides"),
    [("mednext_s", reduced("mednext_s")), ("qt_unet_tiny", SMALL), ("mit_7", shallow("mit_7", 3))],
)
def test_recomputed_activations(network, overrides):
    """The backward pass recomputes them with the mask that they had, also after another one; gradients are equal."""
    gradients = []
    for active in (False, True):
        module = method(network, (32, 32, 32), {**overrides, "activation_checkpointing": active}).double()
        torch.manual_seed(1)
        image, mask = batch(module)
        loss = module.losses((image, mask))[0]["reconstruction"]
        if isinstance(module.encoder, SparseEncoder):
            module.encoder.maps(image, ~mask)
        loss.backward()
        gradients.append([p.grad for p in module.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("state", ["last", "file"])
def test_resumed_with_other_settings(prepared, tmp_path, monkeypatch, state):
    """Rate and weight decay are those of the command, in the optimiser as in what the files state."""
    settings = {**RUN, "data.init_args.samples_per_epoch": 8}
    first = fit("mae", short_run(prepared, tmp_path, settings))
    assert first.optimizers[0].param_groups[0]["initial_lr"] == 3e-3
    rates, training_step = [], MAE.training_step

    def noted(self, *batch):
        rates.append(self.optimizers().param_groups[0]["lr"])
        return training_step(self, *batch)

    monkeypatch.setattr(MAE, "training_step", noted)
    path = "last" if state == "last" else tmp_path / "last.ckpt"
    settings |= {"model.init_args.lr": 1e-5, "model.init_args.weight_decay": 0.3}
    settings |= {"trainer.max_epochs": 2, "ckpt_path": path}
    resumed = fit("mae", short_run(prepared, tmp_path, settings))
    assert rates == pytest.approx([1e-5, 1e-5 * 0.5**0.9])
    assert [group["weight_decay"] for group in resumed.optimizers[0].param_groups] == [0.3]
    recipe = load_encoder(tmp_path / "encoder.pth").recipe
    assert (recipe["lr"], recipe["weight_decay"], recipe["epochs"]) == (1e-5, 0.3, 2)


def test_recipe_to_network(prepared, tmp_path):
    """The loss of drawn images falls below that of a mean prediction, and the encoder fills its network."""
    settings = {
        **RUN,
        "data.init_args.samples_per_epoch": 40,
        "trainer.max_epochs": 3,
        "trainer.log_every_n_steps": 1,
        "trainer.logger": "CSVLogger",
        "trainer.logger.init_args.save_dir": tmp_path,
    }
    fit("mae", short_run(prepared, tmp_path, settings))
    with open(next(tmp_path.rglob("metrics.csv"))) as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    crops = MaskedCrops(prepared, SIZE, (4, 4, 4), 0.75, 50)
    variance = torch.stack([crops[i][0] for i in range(50)]).var()
    assert len(losses) == 30 and np.mean(losses[-10:]) < 0.8 * variance
    checkpoint = load_encoder(tmp_path / "encoder.pth")
    assert (checkpoint.method, checkpoint.num_cases) == ("MAE", 4)
    network = create_network("qt_unet_tiny", 1, 2, SIZE, **SMALL)
    report = load_encoder_weights(network, checkpoint)
    assert [report.coverage(dict(network.named_parameters()), part) for part in ("stem.", "encoder.")] == [1, 1]
