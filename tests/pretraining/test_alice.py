"""Alice: masking, networks, losses, optimiser steps, matched views, a run of the recipe."""

from __future__ import annotations

import hashlib
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_transformers.architectures import create_encoder, create_network, get_network
from nnunet_transformers.pretraining.data import CachedMatcher, MatchedViewData, MatchedViews, PreparedImages
from nnunet_transformers.pretraining.data.prepare import prepare
from nnunet_transformers.pretraining.encoders.masked import (
    MaskedEncoder,
    VisibleEncoder,
    create_masked_encoder,
    random_mask,
)
from nnunet_transformers.pretraining.fit import fit
from nnunet_transformers.pretraining.losses import SIMILARITIES, masked_reconstruction_loss
from nnunet_transformers.pretraining.matching import AffineMatcher, Volume
from nnunet_transformers.pretraining.methods.alice import LOSSES, Alice
from nnunet_transformers.pretraining.patchify import patchify, unpatchify
from nnunet_transformers.testing.network import shallow
from nnunet_transformers.weights import create_primus, load_encoder, load_encoder_weights
from nnunet_transformers.weights.primus import SIZES
from tests.architectures.test_networks import SMALLEST, forms

from .phantoms import write_volumes
from .recipes import SMALL_QT_UNET, short_run
from .steps import (
    check_logs_means_of_processes,
    check_target_follows,
    cosine,
    cosines,
    separate,
    train,
    warmup_cosine,
)

SIZE = (16, 16, 16)
PATCHES = {"3d": (32, 64, 64), "2d": (64, 64)}
TARGETS = {"target.encoder.": "encoder.", "target.head.": "head."}
SMALL = {"patch_embed_stride": 2, "num_stages": 2, "window_sizes": 4}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alice")
    prepare(write_volumes(folder / "raw", 4, shift=6), folder / "prepared", patch_size=SIZE)
    return folder / "prepared"


def batch(grid, patch_size, size=2, matched=(True, False), channels=1):
    sides = {}
    for first, side in enumerate(("query", "key")):
        sides[f"{side}_masked"] = torch.randn(size, channels, *patch_size)
        sides[f"{side}_intact"] = torch.randn(size, channels, *patch_size)
        rngs = [np.random.default_rng(2 * i + first) for i in range(size)]
        sides[f"{side}_mask"] = torch.stack([torch.from_numpy(random_mask(grid, 0.75, rng)) for rng in rngs])
    return {**sides, "is_matched": torch.tensor(matched), "redraws": torch.arange(size)}


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
    def test_masked_voxels_are_not_seen(self, name, patch_size):
        encoder = MaskedEncoder(create_encoder(name, 1, patch_size, **shallow(name, len(patch_size))), 1).eval()
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

    def test_only_visible_tokens_are_computed(self):
        """The result equals that of Primus's blocks with masked tokens excluded from attention."""
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

    def test_without_a_mask_it_is_nnunets_own_encoder(self):
        encoder = create_masked_encoder("primus_s", 2, self.PATCH).eval()
        image = torch.randn(1, 2, *self.PATCH)
        with torch.no_grad():
            own = encoder.network.eva(encoder.network.down_projection(image).flatten(2).transpose(1, 2))[0]
            torch.testing.assert_close(encoder(image), own)

    @pytest.mark.parametrize("name", ["primus_s", "primus_v3_s"])
    def test_masked_voxels_are_not_seen(self, name):
        encoder = create_masked_encoder(name, 1, self.PATCH).eval()
        mask = torch.zeros(1, *encoder.grid, dtype=torch.bool)
        mask[0, 0, 0, 0] = True
        image = torch.randn(1, 1, *self.PATCH)
        other = image.clone()
        other[..., :8, :8, :8] += 1
        with torch.no_grad():
            assert torch.equal(encoder(image, mask), encoder(other, mask))
            assert not torch.allclose(encoder(image), encoder(other))

    def test_arguments_of_a_plan(self):
        """A plan states what a size has, which is that size; other sizes are a registered network, with mask tokens."""
        stated = {**get_network("primus_v3_s").all_arguments(3), "activation_checkpointing": True, "strides": None}
        assert isinstance(create_masked_encoder("primus_v3_s", 1, self.PATCH, stated), VisibleEncoder)
        own = {**stated, "embed_dim": 216, "num_heads": 3, "depth": 2}
        for changed in (own, {**own, "drop_path_rate": 0.5}):
            assert isinstance(create_masked_encoder("primus_v3_s", 1, self.PATCH, changed), MaskedEncoder)
        with pytest.raises(ValueError, match="typo"):
            create_masked_encoder("primus_v3_s", 1, self.PATCH, {"typo": 1})

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
        with pytest.raises(ValueError, match="primus_s has fixed sizes: leave network_overrides out"):
            create_masked_encoder("primus_s", 1, self.PATCH, {"depths": 2})
        with pytest.raises(ValueError, match="stride of 8 does not divide"):
            create_masked_encoder("primus_s", 1, (16, 24, 30))
        with pytest.raises(ValueError, match="takes volumes"):
            create_masked_encoder("primus_s", 1, (16, 24))


class TestMethod:
    @pytest.mark.parametrize("name", SMALLEST)
    def test_any_network(self, name):
        patch_size = PATCHES[f"{max(get_network(name).dimensions)}d"]
        module = method(name, patch_size, shallow(name, len(patch_size)))
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

    def test_pairs_of_one_subject_have_no_view_loss(self):
        module = method(losses=["views"])
        given = batch(module.encoder.grid, SIZE, matched=(False, False))
        assert module.training_step(given, 0) == 0

    def test_reconstruction_is_in_place(self):
        """Unpatchify inverts patchify, so a perfect prediction has no error."""
        image, grid = torch.randn(2, 2, 8, 12, 16), (2, 4, 2)
        cells = patchify(image, grid)
        assert torch.equal(cells[1, 4 * 2 + 2 * 2 + 1], image[1, :, 4:, 6:9, 8:].flatten())
        back = unpatchify(cells, grid, image.shape[2:])
        assert torch.equal(back, image)
        everywhere = torch.ones(2, *grid, dtype=torch.bool)
        assert masked_reconstruction_loss(back, image, everywhere, normalise=False) == 0

    def test_mistakes(self):
        with pytest.raises(ValueError, match="losses must be some of"):
            method(losses=["jigsaw"])
        with pytest.raises(ValueError, match="similarity must be one of"):
            method(similarity="euclid")


def still(**kwargs):
    """Build the method for two channels, without drop path and with a perturbed target network."""
    module = method(overrides={**SMALL, "drop_path_rate": 0}, input_channels=2, decoder_depth=1, **kwargs).double()
    separate(module.target)
    return module


def three_pairs(module, **kwargs):
    return batch(module.encoder.grid, SIZE, 3, channels=2, **{"matched": (True, False, True), **kwargs})


class TestFormula:
    """Section 3: the loss is l_r + l_dv + l_st, with l_s = 2 - 2 cos."""

    def reconstruction(self, module, side, given):
        """Compute l_r: the squared error of masked cells, normalised over voxels and channels."""
        image, mask = given[f"{side}_masked"], given[f"{side}_mask"]
        _, reconstruction = module.decoder(module.encoder(image, mask))
        edge, errors = SIZE[0] // mask.shape[1], []
        for row, *cell in mask.nonzero().tolist():
            place = tuple(slice(i * edge, (i + 1) * edge) for i in cell)
            target = image[(row, slice(None), *place)].flatten()
            target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            voxels = reconstruction[(row, slice(None), *place)].flatten()
            errors.append((voxels - target).square().mean())
        return torch.stack(errors).mean()

    def visible(self, module, given, side):
        """Return the encoder's output for visible cells, image by image."""
        mask = given[f"{side}_mask"]
        tokens = module.encoder(given[f"{side}_masked"], mask)
        return torch.stack([own[~hidden.flatten()] for own, hidden in zip(tokens, mask, strict=True)])

    def attend(self, casa, queries, tokens):
        """Compute eq. 3 and 4, zeta(softmax(q k^T / sqrt(C)) v) of normalised tokens."""
        q, kv = casa.norm_q(queries), casa.norm_kv(tokens)
        q, k, v = q @ casa.q.weight.T, kv @ casa.k.weight.T, kv @ casa.v.weight.T
        scores = (q @ k.transpose(1, 2) / q.shape[2] ** 0.5).exp()
        return scores / scores.sum(2, keepdim=True) @ v @ casa.proj.weight.T + casa.proj.bias

    @pytest.mark.parametrize("target_ratio", [0, 0.5])
    def test_training_step(self, target_ratio):
        module = still()
        given = {n: v.double() if v.is_floating_point() else v for n, v in three_pairs(module).items()}
        if target_ratio:
            for side in ("query", "key"):
                masks = [random_mask(module.encoder.grid, target_ratio, np.random.default_rng(i)) for i in range(3)]
                given[f"{side}_target_mask"] = torch.from_numpy(np.stack(masks))
        loss = module.training_step(given, 0)
        tokens, projected, target = {}, {}, {}
        for side in ("query", "key"):
            tokens[side] = module.encoder(given[f"{side}_masked"], given[f"{side}_mask"])
            projected[side] = module.head(module.decoder(tokens[side])[0])
            hidden = given.get(f"{side}_target_mask")
            target[side] = module.target["head"](module.target["encoder"](given[f"{side}_intact"], hidden))
        reconstruction = sum(self.reconstruction(module, side, given) for side in tokens)
        views = alignment = 0.0
        for side, other in (("query", "key"), ("key", "query")):
            classes, others = (x.mean(1)[[0, 2]] for x in (projected[side], target[other]))
            views += (2 - 2 * cosines(classes, others)).mean()
            queries = self.visible(module, given, side)
            online, wanted = (self.attend(module.casa, queries, x[side]) for x in (projected, target))
            alignment += (2 - 2 * cosines(online, wanted)).mean()
        for name, value in {"reconstruction": reconstruction, "views": views, "alignment": alignment}.items():
            torch.testing.assert_close(module.logged[name], value, msg=name)
        torch.testing.assert_close(loss, reconstruction + views + alignment)
        assert module.logged["feature_spread"] > 0.1  # or no side would differ from the other
        loss.backward()
        assert all(p.grad is None for p in module.target.parameters())

    def test_alignment_stops_the_gradient_of_the_target(self):
        """CASA's output for the target tokens is a target too: no gradient flows through it."""
        module = still(losses=["alignment"])
        given = {n: v.double() if v.is_floating_point() else v for n, v in three_pairs(module).items()}
        module.training_step(given, 0).backward()
        expected = 0.0
        for side in ("query", "key"):
            tokens = module.encoder(given[f"{side}_masked"], given[f"{side}_mask"])
            queries = self.visible(module, given, side)
            with torch.no_grad():
                target = module.target["head"](module.target["encoder"](given[f"{side}_intact"]))
                wanted = self.attend(module.casa, queries, target)
            online = self.attend(module.casa, queries, module.head(module.decoder(tokens)[0]))
            expected += (2 - 2 * cosines(online, wanted)).mean()
        (gradient,) = torch.autograd.grad(expected, [module.casa.v.weight])
        torch.testing.assert_close(module.casa.v.weight.grad, gradient)


def test_primus_learns_and_its_queries_differ(monkeypatch):
    """Of the ViT's tokens only the visible ones are queries; the others would be one vector."""
    patch = (16, 16, 32)
    module = method("primus_s", patch, None, lr=1e-3, warmup_epochs=0).float()
    given, queries = batch(module.encoder.grid, patch, matched=(True, True)), []
    attend = module.casa.forward
    monkeypatch.setattr(module.casa, "forward", lambda q, kv: queries.append(q.detach()) or attend(q, kv))
    optimizer, losses = torch.optim.AdamW(module.trainable_parameters(), lr=3e-4), []
    for _ in range(3):
        optimizer.zero_grad()
        loss = module.training_step(given, 0)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    for rows in queries:
        assert rows.shape[1] == 4  # of 16
        distances = torch.cdist(rows, rows) + torch.eye(4) * 9
        assert distances.min() > 1e-3


class TestSteps:
    def test_target_follows_once_a_step(self):
        module = still(lr=1e-2, warmup_epochs=0, tau=0.9)
        recorder = train(module, [three_pairs(module) for _ in range(3)])
        check_target_follows(recorder, TARGETS, [cosine(step, 3, 0.9, 1.0) for step in range(3)])

    def test_rate_and_decay(self):
        module = still(lr=1e-3, warmup_epochs=1, weight_decay=100.0)
        recorder = train(module, [three_pairs(module) for _ in range(2)], epochs=2)
        assert recorder.settings("lr") == pytest.approx(warmup_cosine(4, 2, 1e-3))
        assert recorder.groups[0][0]["betas"] == (0.9, 0.95)
        # besides weight decay, of which vectors and biases are exempt, AdamW's first step is at most the learning rate
        before, after = recorder.weights[:2]
        for name in recorder.gradients[0]:
            decay = 100.0 if before[name].dim() > 1 and not name.endswith(".bias") else 0.0
            expected = before[name] * (1 - 5e-4 * decay)
            torch.testing.assert_close(after[name], expected, rtol=0, atol=5e-4 + 1e-9, msg=name)


def test_a_process_without_a_match_moves_the_centre_with_the_others(monkeypatch):
    """Each move waits for all processes, so all make as many, and without a match it moves nothing."""
    module, moves = still(similarity="centred").float().train(), []
    centre = module.view_similarity.center
    update = centre.update
    monkeypatch.setattr(centre, "update", lambda rows: (moves.append(len(moves)), update(rows)))
    given = three_pairs(module)
    counts = []
    for matched in (True, False):
        moves.clear()
        before = centre.value.clone()
        module.losses({**given, "is_matched": torch.full_like(given["is_matched"], matched)})
        counts.append(len(moves))
        assert torch.allclose(centre.value, before) is not matched
    assert counts == [2, 2]


def test_logs_means_of_processes():
    """How many pairs are matched included."""
    check_logs_means_of_processes(still, three_pairs(still()))


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

    def test_the_centre_of_a_crop_is_in_a_thin_image(self, prepared):
        """Padding is on both sides of it, so the crop's centre is the image's, and its match finds the crop again."""
        views = self.views(prepared)
        views.images.shapes = {"query": (1, 40, 5, 40)}
        centre = views._centre("query", [3, 0, 20])
        np.testing.assert_allclose(centre, np.array([10.5, 2, 27.5]) * views.matcher.spacing)
        assert views._start("query", centre) == [3, 0, 20]

    def test_a_crop_that_does_not_fit_is_no_match(self, prepared, monkeypatch):
        """The match lies in the image, but the crop around it would not, by more than an eighth of its edge."""
        views = self.views(prepared)
        views.images.shapes = {"key": (1, 40, 12, 40)}
        centre = np.array([7.5, 7.5, 7.5])  # of a crop that starts at 0; the second axis is shorter than the crop

        def start(*shift):
            return views._start("key", (centre + shift) * views.matcher.spacing)

        assert start(3, 0, 5) == [3, 0, 5]
        assert start(-2, 0, 26) == [0, 0, 24]
        assert start(0, 9, 0) == [0, 0, 0]
        assert start(-3, 0, 0) is start(0, 0, 27) is None
        views = self.views(prepared, max_shift=0)
        monkeypatch.setattr(views, "_start", lambda name, point: None)
        assert (views[0]["is_matched"], views[0]["redraws"]) == (False, 2)

    def test_masked_view_as_mae(self, prepared):
        """A part of the crop, enlarged and perhaps mirrored; the intact view is as without it."""
        plain, other = self.views(prepared, tries=1)[1], self.views(prepared, tries=1, augment_masked=True)[1]
        assert other["query_masked"].shape == plain["query_masked"].shape
        assert not torch.equal(other["query_masked"], plain["query_masked"])
        views = self.views(prepared)
        ramp = torch.arange(16.0)[None, None, None].expand(1, *SIZE)
        drawn = [views._as_mae(ramp) for _ in range(200)]
        widths = torch.tensor([float((d.max() - d.min()) / 15) for d in drawn])
        # edges of a box of 20 to 100 % of the volume, uniform in volume
        assert 0.5 < widths.min() < 0.65
        assert widths.max() > 0.95
        assert float((widths**3).mean()) == pytest.approx(0.56, abs=0.06)
        assert 60 < sum(float(d[0, 0, 0, 0]) > float(d[0, 0, 0, -1]) for d in drawn) < 140

    def test_mask_of_the_target(self, prepared):
        sample = self.views(prepared, target_mask_ratio=0.25)[0]
        assert sample["query_target_mask"].sum() == sample["key_target_mask"].sum() == 16
        assert not torch.equal(sample["query_target_mask"], sample["query_mask"])

    def test_held_out_images(self, prepared):
        arguments = {"matcher": "identity", "num_workers": 0, "batch_size": 2}
        data = MatchedViewData(str(prepared), SIZE, (4, 4, 4), val_images=0.5, **arguments)
        assert set(data.views.images.names).isdisjoint(data.held_out.images.names)
        assert len(data.views) == len(data.held_out) == 2
        assert {case.name for case in data.index.cases} == set(data.views.images.names)
        # matching needs two images on either side
        assert MatchedViewData(str(prepared), SIZE, (4, 4, 4), val_images=1, **arguments).val_dataloader() == []
        module = still()
        data.trainer = SimpleNamespace(world_size=1, global_rank=0)
        (given,) = data.val_dataloader()
        module.float().eval()
        module.validation_step({**given, **{n: v.repeat(1, 2, 1, 1, 1) for n, v in given.items() if v.dim() == 5}}, 0)
        assert {"val_loss", *(f"val_{loss}" for loss in LOSSES)} <= set(module.logged)

    def test_nothing_matches(self, prepared, tmp_path):
        (tmp_path / "landmarks.json").write_text("{}")
        arguments = {"landmarks": str(tmp_path / "landmarks.json")}
        views = self.views(prepared, "precomputed", matcher_arguments=arguments)
        assert [(views[i]["is_matched"], views[i]["redraws"]) for i in range(4)] == [(False, 2)] * 4

    def test_features_and_maps_are_cached(self, prepared, tmp_path, monkeypatch):
        """In a folder of their own; a known pair needs neither features nor images."""
        from nnunet_transformers.pretraining.matching import affine

        points, before = np.array([[30.0, 40, 50]]), sorted(prepared.rglob("*"))
        first = CachedMatcher(PreparedImages(prepared), "affine", cache=tmp_path).match("case_0", "case_1", points)
        assert sorted(prepared.rglob("*")) == before
        (folder,) = tmp_path.iterdir()
        shutil.rmtree(folder / "features")
        for name in ("register", "small_image"):
            monkeypatch.setattr(affine, name, None)
        monkeypatch.setattr(PreparedImages, "read", None)
        again = CachedMatcher(PreparedImages(prepared), "affine", cache=tmp_path).match("case_0", "case_1", points)
        np.testing.assert_array_equal(first.points, again.points)
        assert first.score == again.score
        # as workers and later runs find it
        assert CachedMatcher(PreparedImages(prepared), "affine").folder.parent == prepared.with_name(
            f"{prepared.name}.matching"
        )

    def test_a_matcher_that_computes_others_has_a_cache_of_its_own(self, prepared, monkeypatch):
        """Those of the first version keep theirs."""
        folders = []
        for version in (1, 2, 3):
            monkeypatch.setattr(AffineMatcher, "version", version)
            folders.append(CachedMatcher(PreparedImages(prepared), "affine").folder)
        assert len(set(folders)) == 3
        assert folders[0].name == f"affine_{hashlib.sha256().hexdigest()[:12]}"

    def test_large_features_are_mapped(self, prepared, tmp_path, monkeypatch):
        matcher = CachedMatcher(PreparedImages(prepared), "identity", cache=tmp_path)
        large = np.random.default_rng(0).normal(size=(8, 40, 40, 20))
        features = {"extent": np.ones(3), "deep": {"grid": large, "spacing": np.zeros(3)}}
        monkeypatch.setattr(matcher.matcher, "prepare", lambda volume: features)
        found = [matcher.features("case_0") for _ in range(2)][1]
        assert isinstance(found["deep"]["grid"], np.memmap)
        np.testing.assert_array_equal(found["deep"]["grid"], large)
        assert found["deep"]["spacing"].tolist() == [0, 0, 0]

    def test_volumes_are_seen_at_the_spacing_of_the_matcher(self, prepared, tmp_path, monkeypatch):
        """Of the same extent, so that points in mm stay where they are."""
        matcher = CachedMatcher(PreparedImages(prepared), "identity", cache=tmp_path)
        image = matcher.images.read("case_0", (0, 0, 0), matcher.images.shapes["case_0"][1:]).numpy()
        whole = Volume("case_0", image, matcher.spacing)
        monkeypatch.setattr(matcher.matcher, "spacing", tuple(3 * s for s in matcher.spacing))
        volume = matcher.volume("case_0")
        np.testing.assert_allclose(volume.extent, whole.extent)
        np.testing.assert_allclose(np.array(volume.spacing) / matcher.spacing, 3, rtol=0.2)
        np.testing.assert_array_equal(volume.grey[0, 0, 0], whole.grey[0, 0, 0])
        np.testing.assert_allclose(volume.grey[-1, -1, -1], whole.grey[-1, -1, -1], rtol=1e-5)
        monkeypatch.setattr(matcher.matcher, "spacing", (0.1, 0.1, 0.1))
        assert matcher.volume("case_0").image.shape == whole.image.shape

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

    def test_mistakes(self, prepared):
        for given, message in (
            ({"mask_ratio": 0.005}, "mask_ratio 0.005 masks 0 of 64 cells"),
            ({"target_mask_ratio": 1.0}, "target_mask_ratio 1.0 masks 64 of 64 cells"),
        ):
            with pytest.raises(ValueError, match=message):
                self.views(prepared, **given)
        with pytest.raises(ValueError, match=r"volumes: --model.init_args.patch_size has three axes, not \[16, 16\]"):
            MatchedViewData(str(prepared), SIZE[1:], (4, 4), matcher="identity")

    def test_unknown_matcher(self, prepared):
        with pytest.raises(ValueError, match="matcher must be one of identity"):
            self.views(prepared, "sam")


def test_recipe_to_network(prepared, tmp_path):
    settings = {"data.init_args.matcher": "affine", "model.init_args.decoder_heads": 4, "trainer.max_steps": 2}
    trainer = fit("alice", short_run(prepared, tmp_path, {**SMALL_QT_UNET, **settings}))
    assert trainer.callback_metrics["matched"] > 0
    checkpoint = load_encoder(tmp_path / "encoder.pth")
    assert (checkpoint.method, checkpoint.num_cases) == ("Alice", 4)
    network = create_network("qt_unet_tiny", 1, 2, SIZE, **SMALL)
    assert load_encoder_weights(network, checkpoint).coverage(dict(network.named_parameters()), "encoder.") == 1
