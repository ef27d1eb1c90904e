"""Alice: hidden cells, matched views, every network, each loss by itself, whole runs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_transformers.architectures import create_encoder, create_network, get_network
from nnunet_transformers.pretraining.data import CachedMatcher, MatchedViews, PreparedImages
from nnunet_transformers.pretraining.data.prepare import prepare
from nnunet_transformers.pretraining.encoders.masked import MaskedEncoder, create_masked_encoder, random_mask
from nnunet_transformers.pretraining.fit import fit
from nnunet_transformers.pretraining.methods.alice import LOSSES, SIMILARITIES, Alice
from nnunet_transformers.weights import create_primus, load_encoder, load_encoder_weights
from nnunet_transformers.weights.primus import SIZES
from tests.architectures.test_networks import SMALLEST, forms

from .phantoms import write_volumes

SIZE = (16, 16, 16)
PATCHES = {"3d": (32, 64, 64), "2d": (64, 64)}
SMALL = {"patch_embed_stride": 2, "num_stages": 2, "window_sizes": 4}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alice")
    prepare(write_volumes(folder / "raw", 4, shift=6), folder / "prepared", patch_size=SIZE)
    return folder / "prepared"


def batch(grid, patch_size, size=2, matched=(True, False)):
    sides = {}
    for side in ("query", "key"):
        sides[f"{side}_masked"] = torch.randn(size, 1, *patch_size)
        sides[f"{side}_intact"] = torch.randn(size, 1, *patch_size)
        masks = [torch.from_numpy(random_mask(grid, 0.75, np.random.default_rng(i))) for i in range(size)]
        sides[f"{side}_mask"] = torch.stack(masks)
    return {**sides, "is_matched": torch.tensor(matched), "redraws": torch.tensor([0, 4])}


def method(network="qt_unet_tiny", patch_size=SIZE, overrides=SMALL, **kwargs):
    torch.manual_seed(0)
    module = Alice(network, patch_size, network_overrides=overrides, decoder_heads=4, hidden_dim=32, **kwargs)
    module.log_dict = lambda values, **kwargs: setattr(module, "logged", values)
    return module


class TestMasking:
    def test_share(self):
        mask = random_mask((3, 4, 5), 0.75, np.random.default_rng(0))
        assert (mask.shape, mask.sum()) == ((3, 4, 5), 45)

    @pytest.mark.parametrize("name,patch_size", forms(SMALLEST, patches=PATCHES))
    def test_hidden_voxels_are_not_seen(self, name, patch_size):
        encoder = MaskedEncoder(create_encoder(name, 1, patch_size), 1).eval()
        mask = torch.zeros(1, *encoder.grid, dtype=torch.bool)
        mask[(0, *[0] * len(patch_size))] = True
        image = torch.randn(1, 1, *patch_size)
        other = image.clone()
        cell = (slice(p // g) for p, g in zip(patch_size, encoder.grid, strict=True))
        other[(slice(None), slice(None), *cell)] += 1
        with torch.no_grad():
            assert torch.equal(encoder(image, mask), encoder(other, mask))
            assert not torch.allclose(encoder(image), encoder(other))
            assert not torch.allclose(encoder(image, mask), encoder(image))
        assert not encoder.network.stem._forward_hooks


class TestPrimus:
    PATCH = (16, 24, 32)

    def test_visible_tokens_alone_are_computed(self):
        """The same as its own blocks with attention that hidden tokens are masked from."""
        encoder = create_masked_encoder("primus_s", 1, self.PATCH).double().eval()
        eva, image = encoder.network.eva, torch.randn(2, 1, *self.PATCH, dtype=torch.float64)
        mask = torch.stack(
            [torch.from_numpy(random_mask(encoder.grid, 0.75, np.random.default_rng(i))) for i in (0, 1)]
        )
        rows = []
        for block in eva.blocks:
            block.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[1]))
        with torch.no_grad():
            tokens = encoder(image, mask)
            assert rows == [6] * len(eva.blocks)  # of 24
            visible = ~mask.flatten(1)
            expected = encoder.network.down_projection(image).flatten(2).transpose(1, 2) + eva.pos_embed
            for block in eva.blocks:
                expected = block(expected, rope=eva.rope.get_embed(), attn_mask=visible[:, None, None])
            expected = eva.norm(expected)
        torch.testing.assert_close(tokens[visible], expected[visible])
        assert (tokens[~visible] == encoder.mask_token).all()

    def test_nothing_hidden_is_nnunets_own_encoder(self):
        encoder = create_masked_encoder("primus_s", 2, self.PATCH).eval()
        image = torch.randn(1, 2, *self.PATCH)
        with torch.no_grad():
            own = encoder.network.eva(encoder.network.down_projection(image).flatten(2).transpose(1, 2))[0]
            torch.testing.assert_close(encoder(image), own)

    @pytest.mark.parametrize("name", ["primus_s", "primus_v3_s"])
    def test_hidden_voxels_are_not_seen(self, name):
        encoder = create_masked_encoder(name, 1, self.PATCH).eval()
        mask = torch.zeros(1, *encoder.grid, dtype=torch.bool)
        mask[0, 0, 0, 0] = True
        image = torch.randn(1, 1, *self.PATCH)
        other = image.clone()
        other[..., :8, :8, :8] += 1
        with torch.no_grad():
            assert torch.equal(encoder(image, mask), encoder(other, mask))
            assert not torch.allclose(encoder(image), encoder(other))

    def test_trains(self):
        module = method("primus_s", self.PATCH, None)
        module.training_step(batch(module.encoder.grid, self.PATCH), 0).backward()
        assert [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None] == []

    @pytest.mark.parametrize("name", SIZES)
    def test_as_nnunet_builds_it(self, name):
        stock = SIZES[name] if "_v" in name else SIZES[name].replace("Primus", "Primus_")
        trainer = recursive_find_trainer_class_by_name(f"nnUNet_{stock}_Trainer")
        with torch.device("meta"):
            theirs = trainer.build_network_architecture(None, SimpleNamespace(patch_size=self.PATCH), 1, 3)
            ours = create_primus(name, 1, self.PATCH, 3)
        assert str(theirs).partition("(")[2] == str(ours).partition("(")[2]

    def test_mistakes(self):
        with pytest.raises(ValueError, match="overrides are for this package"):
            create_masked_encoder("primus_s", 1, self.PATCH, {"depths": 2})
        with pytest.raises(ValueError, match="stride of 8 does not divide"):
            create_masked_encoder("primus_s", 1, (16, 24, 30))
        with pytest.raises(ValueError, match="takes volumes"):
            create_masked_encoder("primus_s", 1, (16, 24))


class TestMethod:
    @pytest.mark.parametrize("name", SMALLEST)
    def test_any_network(self, name):
        patch_size = PATCHES[f"{max(get_network(name).dimensions)}d"]
        module = method(name, patch_size, None)
        module.training_step(batch(module.encoder.grid, patch_size), 0).backward()
        assert [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None] == []
        assert all(p.grad is None for p in module.target.parameters())

    @pytest.mark.parametrize("loss", LOSSES)
    def test_one_loss_alone(self, loss):
        module = method(losses=[loss])
        value = module.training_step(batch(module.encoder.grid, SIZE), 0)
        assert value == module.logged[loss]
        assert not set(LOSSES) - {loss} & set(module.logged)
        value.backward()
        assert [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None] == []

    @pytest.mark.parametrize("similarity", SIMILARITIES)
    @pytest.mark.parametrize("released_casa", [False, True], ids=["paper", "released"])
    def test_options(self, similarity, released_casa):
        module = method(similarity=similarity, released_casa=released_casa)
        assert module.training_step(batch(module.encoder.grid, SIZE), 0).isfinite()

    def test_pairs_of_one_person_have_no_view_loss(self):
        module = method(losses=["views"])
        given = batch(module.encoder.grid, SIZE, matched=(False, False))
        assert module.training_step(given, 0) == 0

    def test_reconstruction_is_in_place(self):
        """A decoder that knew the image would have no error: cells go back to where they were cut out."""
        from nnunet_transformers.pretraining.losses import masked_reconstruction_loss
        from nnunet_transformers.pretraining.losses.semantic_alignment import _cells

        module = method()
        image, grid = torch.randn(2, 1, *SIZE), module.encoder.grid
        assert torch.equal(module._image(_cells(image, grid)), image)
        everywhere = torch.ones(2, *grid, dtype=torch.bool)
        assert masked_reconstruction_loss(module._image(_cells(image, grid)), image, everywhere, normalise=False) == 0

    def test_mistakes(self):
        with pytest.raises(ValueError, match="losses must be some of"):
            method(losses=["jigsaw"])
        with pytest.raises(ValueError, match="similarity must be one of"):
            method(similarity="euclid")


class TestData:
    def views(self, prepared, matcher="identity", **kwargs):
        given = {"mask_ratio": 0.75, "matcher_arguments": None, "partners": 2, "tries": 2, "samples": 4, **kwargs}
        return MatchedViews(prepared, SIZE, (4, 4, 4), matcher=matcher, **given)

    def test_views(self, prepared):
        views = self.views(prepared)
        sample, again = views[0], views[0]
        for side in ("query", "key"):
            for kind in ("masked", "intact"):
                assert sample[f"{side}_{kind}"].shape == (1, *SIZE)
                assert torch.equal(sample[f"{side}_{kind}"], again[f"{side}_{kind}"])
            assert not torch.equal(sample[f"{side}_masked"], sample[f"{side}_intact"])
            assert sample[f"{side}_mask"].sum() == 48
        assert [(views[i]["is_matched"], views[i]["redraws"]) for i in range(4)] == [(True, 0)] * 4

    def test_nothing_matches(self, prepared, tmp_path):
        (tmp_path / "landmarks.json").write_text("{}")
        arguments = {"landmarks": str(tmp_path / "landmarks.json")}
        views = self.views(prepared, "precomputed", matcher_arguments=arguments)
        assert [(views[i]["is_matched"], views[i]["redraws"]) for i in range(4)] == [(False, 2)] * 4

    def test_features_and_maps_are_kept(self, prepared, monkeypatch):
        from nnunet_transformers.pretraining.matching import affine

        points = np.array([[30.0, 40, 50]])
        first = CachedMatcher(PreparedImages(prepared), "affine").match("case_0", "case_1", points)
        monkeypatch.setattr(affine, "register", None)
        monkeypatch.setattr(affine, "small_image", None)
        again = CachedMatcher(PreparedImages(prepared), "affine").match("case_0", "case_1", points)
        np.testing.assert_array_equal(first.points, again.points)
        assert first.score == again.score

    def test_picture(self, prepared, tmp_path):
        from typer.testing import CliRunner

        from nnunet_transformers import cli

        picture = tmp_path / "matches.png"
        command = ["pretrain", "show-matches", str(prepared), "case_0", "case_1", str(picture)]
        result = CliRunner().invoke(cli.app, [*command, "--points", "2"])
        assert result.exit_code == 0, result.output
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert "needs --weights" in str(CliRunner().invoke(cli.app, [*command, "--matcher", "hybrid"]).exception)
        command[3] = "case_9"
        assert "no image 'case_9'" in str(CliRunner().invoke(cli.app, command).exception)

    def test_unknown_matcher(self, prepared):
        with pytest.raises(ValueError, match="matcher must be one of identity"):
            self.views(prepared, "sam")


def test_recipe_to_network(prepared, tmp_path):
    arguments = {
        "data.init_args.folder": prepared,
        "data.init_args.matcher": "affine",
        "data.init_args.batch_size": 2,
        "data.init_args.num_workers": 0,
        "model.init_args.patch_size": "[16,16,16]",
        "model.init_args.network_overrides": '{"patch_embed_stride": 2, "num_stages": 2, "window_sizes": 4}',
        "model.init_args.decoder_heads": 4,
        "trainer.max_steps": 2,
        "trainer.accelerator": "cpu",
        "trainer.default_root_dir": tmp_path,
        "trainer.enable_progress_bar": "false",
        "trainer.logger": "false",
    }
    trainer = fit("alice", [f"--{key}={value}" for key, value in arguments.items()])
    assert trainer.callback_metrics["matched"] > 0
    checkpoint = load_encoder(tmp_path / "encoder.pth")
    assert (checkpoint.method, checkpoint.num_cases) == ("Alice", 4)
    network = create_network("qt_unet_tiny", 1, 2, SIZE, **SMALL)
    assert load_encoder_weights(network, checkpoint).coverage(dict(network.named_parameters()), "encoder.") == 1
