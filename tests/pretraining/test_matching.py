"""Matchers on phantoms with known maps, and the training of the anatomical embedding."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_transformers.pretraining.data import CachedMatcher, OverlappingViewData
from nnunet_transformers.pretraining.data.prepare import prepare
from nnunet_transformers.pretraining.fit import fit
from nnunet_transformers.pretraining.matching import (
    MATCHERS,
    AffineMatcher,
    EmbeddingMatcher,
    IdentityMatcher,
    MatcherCheckpoint,
    PrecomputedMatcher,
    embedding,
)
from nnunet_transformers.pretraining.matching.embedding import sample_near
from nnunet_transformers.pretraining.matching.embedding_network import (
    AnatomyEmbedding,
    cell_positions,
    resample,
    sample,
)
from nnunet_transformers.pretraining.matching.hybrid import robust_affine
from nnunet_transformers.pretraining.matching.matcher import apply_affine, random_points
from nnunet_transformers.pretraining.methods.anatomical_embedding import AnatomyMatching
from nnunet_transformers.runs.callbacks import feature_spread

from .phantoms import SPACING, make_volume, random_map, true_match, write_volumes
from .steps import cross_entropy, train

STRIDE = 2 * max(SPACING)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Checkpoint of the embedding, trained by its recipe on a few phantoms."""
    folder = tmp_path_factory.mktemp("matcher")
    prepare(write_volumes(folder / "raw", 16, shift=10), folder / "prepared", patch_size=(24, 24, 24))
    arguments = {
        "data.init_args.folder": folder / "prepared",
        "data.init_args.num_workers": 0,
        "data.init_args.patch_size": "[24,24,24]",
        "data.init_args.samples_per_epoch": 160,
        "model.init_args.channels": "[16,32,64]",
        "model.init_args.dim": 32,
        "model.init_args.lr": 0.05,
        "trainer.max_steps": 80,
        "trainer.accelerator": "cpu",
        "trainer.default_root_dir": folder,
        "trainer.enable_progress_bar": "false",
        "trainer.logger": "false",
    }
    fit("matcher", [f"--{key}={value}" for key, value in arguments.items()])
    return str(folder / "matcher.pth")


@pytest.fixture
def matchers(weights, tmp_path):
    landmarks = tmp_path / "landmarks.json"
    landmarks.write_text("{}")
    given = {"embedding": (weights,), "hybrid": (weights,), "precomputed": (str(landmarks),)}
    return {name: matcher(*given.get(name, ())) for name, matcher in MATCHERS.items()}


def errors(matcher, query, key, query_map, key_map, number=100):
    """Return error in mm and validity of the matches of points that the key volume shows."""
    points = random_points(query.extent, number, np.random.default_rng(0), 0.15)
    true = true_match(query_map, key_map, points)
    shown = ((true >= 0) & (true <= key.extent)).all(axis=1)
    match = matcher.match(matcher.prepare(query), matcher.prepare(key), points)
    return np.linalg.norm(match.points - true, axis=1)[shown], match.valid[shown]


def pairs(shift, number=6):
    rng = np.random.default_rng(5)
    for pair in range(number):
        maps = random_map(rng, shift), random_map(rng, shift)
        yield *(make_volume(f"{pair}_{side}", m, 100 + 2 * pair + side) for side, m in enumerate(maps)), *maps


class TestPhantoms:
    @pytest.mark.parametrize("name", [name for name in MATCHERS if name != "precomputed"])
    def test_identical_volume_within_one_stride(self, matchers, name):
        volume = make_volume("same", np.eye(4))
        found, valid = errors(matchers[name], volume, volume, np.eye(4), np.eye(4))
        assert np.median(found) <= STRIDE
        assert valid.mean() > 0.8

    @pytest.mark.parametrize("name", ["affine", "hybrid"])
    def test_shift_and_affine_map(self, matchers, name):
        shift = np.eye(4)
        shift[:3, 3] = 9, -6, 6
        # maps are cached by the names of the volumes
        for kind, known in {"shifted": shift, "mapped": random_map(np.random.default_rng(3), 8)}.items():
            query, key = make_volume("a", np.eye(4), 1), make_volume(kind, known, 2)
            found, _ = errors(matchers[name], query, key, np.eye(4), known)
            assert np.median(found) < max(SPACING) / 2

    @pytest.mark.parametrize(("thickness", "is_found"), [(4, True), (12, False)])
    def test_thick_slices(self, thickness, is_found):
        """All slices are registered: a registration needs four, and points of one that failed are invalid."""
        shift = np.eye(4)
        shift[:3, 3] = 9, -6, 6
        maps = np.eye(4), shift
        query, key = (
            replace(volume, image=volume.image[:, ::thickness], spacing=(thickness * SPACING[0], *SPACING[1:]))
            for volume in (make_volume("a", maps[0], 1), make_volume("b", maps[1], 2))
        )
        found, valid = errors(AffineMatcher(longest=12), query, key, *maps)
        assert valid.any() == is_found
        assert not is_found or np.median(found) < 8  # 12 without a registration

    def test_a_registration_is_repeatable(self):
        """To the last bit: the samples of a run follow from its seed."""
        matcher = AffineMatcher(longest=16)
        query, key = (
            matcher.prepare(make_volume(n, random_map(np.random.default_rng(i), 8))) for i, n in enumerate("ab")
        )
        (first, score), *others = (matcher.affine_map(query, key) for _ in range(4))
        assert all((matrix == first).all() and again == score for matrix, again in others)

    def test_hybrid_is_best_where_fields_of_view_differ(self, matchers):
        medians = {name: [] for name in ("identity", "embedding", "hybrid")}
        for pair in pairs(shift=25):
            for name, values in medians.items():
                values.extend(errors(matchers[name], *pair)[0])
        near = {name: np.mean(np.array(values) <= 1.5 * STRIDE) for name, values in medians.items()}
        assert near["hybrid"] > near["identity"] + 0.2
        assert near["hybrid"] >= near["embedding"]

    def test_cycle_tells_good_matches_from_bad(self, matchers):
        good, bad = [], []
        for pair in pairs(shift=25):
            found, valid = errors(matchers["embedding"], *pair)
            good.extend(found[valid])
            bad.extend(found[~valid])
        assert np.median(good) < np.median(bad)

    def test_the_maps_of_both_directions_must_agree(self, matchers, monkeypatch):
        """The gate of the hybrid, through the cache of maps too; an affine map alone has none."""
        hybrid = matchers["hybrid"]
        assert (hybrid.cycle_error, matchers["affine"].cycle_error) == (hybrid.embedding.cycle_error, None)
        away = np.eye(4)
        away[0, 3] = hybrid.cycle_error + 1
        maps = {"a": (np.eye(4), 1.0), "b": (away, 1.0)}  # by the volume that is mapped
        monkeypatch.setattr(hybrid, "affine_map", lambda query, key: maps[query["name"]])
        volumes = {name: {"name": name, "extent": np.full(3, 90.0)} for name in "ab"}
        points = np.array([[40.0, 40, 40]])
        match = hybrid.match(volumes["a"], volumes["b"], points)
        assert (match.points == points).all()
        assert not match.valid.any()
        away[0, 3] -= 2
        assert hybrid.match(volumes["a"], volumes["b"], points).valid.all()
        monkeypatch.setattr(matchers["affine"], "affine_map", hybrid.affine_map)
        away[0, 3] += 2
        assert matchers["affine"].match(volumes["a"], volumes["b"], points).valid.all()
        images = SimpleNamespace(
            folder=Path("x"), shapes={"a": (1, 91, 91, 91), "b": (1, 91, 91, 91)},
            index=SimpleNamespace(spacing_of=lambda axes: (1.0, 1.0, 1.0)),
        )  # fmt: skip
        cached = CachedMatcher(images, "identity")
        cached.matcher = hybrid
        monkeypatch.setattr(cached, "_map", lambda query, key: maps[query])
        assert not cached.match("a", "b", points).valid.any()

    @pytest.mark.parametrize("name", ["affine", "hybrid"])
    def test_points_outside_the_field_of_view(self, matchers, name):
        away = np.eye(4)
        away[0, 3] = 15  # the key's field of view begins 5 voxels later
        query, key = make_volume("a", np.eye(4), 1), make_volume("b", away, 2)
        points = np.array([[6.0, 45, 45], [80.0, 45, 45]])
        match = matchers[name].match(matchers[name].prepare(query), matchers[name].prepare(key), points)
        assert match.valid.tolist() == [False, True]


def test_relative_position():
    matcher = IdentityMatcher()
    query, key = ({"extent": np.array(extent)} for extent in ([10.0, 20, 40], [20.0, 20, 20]))
    match = matcher.match(query, key, np.array([[5.0, 5, 40]]))
    np.testing.assert_allclose(match.points, [[10, 5, 20]])


class TestPrecomputed:
    def test_affine_and_spline(self, tmp_path):
        rng = np.random.default_rng(0)
        query_map, key_map = random_map(rng, 5), random_map(rng, 5)
        query, key = make_volume("a", query_map), make_volume("b", key_map)
        for number in (5, 20):
            places = random_points(query.extent, number, rng)
            table = {
                "a": {str(i): p.tolist() for i, p in enumerate(places)},
                "b": {str(i): p.tolist() for i, p in enumerate(true_match(query_map, key_map, places))},
            }
            (tmp_path / "landmarks.json").write_text(json.dumps(table))
            matcher = PrecomputedMatcher(str(tmp_path / "landmarks.json"))
            assert np.max(errors(matcher, query, key, query_map, key_map)[0]) < 1e-6
        other = matcher.match(matcher.prepare(query), matcher.prepare(make_volume("c", np.eye(4))), places)
        assert not other.valid.any()

    def test_landmarks_of_one_plane(self, tmp_path):
        """They say nothing of what is off the plane, which moves along unchanged."""
        places = np.c_[np.full(5, 50.0), np.random.default_rng(0).uniform(20, 70, (5, 2))]
        table = {name: dict(enumerate((places + shift).tolist())) for name, shift in {"a": 0, "b": (20, 3, 0)}.items()}
        (tmp_path / "landmarks.json").write_text(json.dumps(table))
        matcher = PrecomputedMatcher(str(tmp_path / "landmarks.json"))
        query, key = (matcher.prepare(make_volume(name, np.eye(4))) for name in table)
        found = matcher.match(query, key, np.array([[50.0, 40, 40], [20.0, 40, 40]]))
        np.testing.assert_allclose(found.points, [[70, 43, 40], [40, 43, 40]], atol=1e-6)

    def test_mistakes(self, tmp_path):
        for content in ("[]", '{"a": {"x": [1, 2]}}', "no json"):
            (tmp_path / "landmarks.json").write_text(content)
            with pytest.raises(ValueError, match=r"landmarks.json is truncated or not a JSON file of"):
                PrecomputedMatcher(str(tmp_path / "landmarks.json"))


class TestParts:
    def test_robust_affine_ignores_outliers(self):
        rng = np.random.default_rng(0)
        known, source = random_map(rng, 20), rng.uniform(0, 100, (100, 3))
        target = apply_affine(known, source)
        target[:30] = rng.uniform(0, 100, (30, 3))
        np.testing.assert_allclose(robust_affine(source, target, 3.0), known, atol=1e-6)
        assert robust_affine(source[:5], target[:5], 3.0) is None
        assert robust_affine(source, rng.uniform(0, 100, (100, 3)), 0.1) is None

    @given(st.lists(st.integers(1, 27), min_size=3, max_size=3))
    @settings(max_examples=15, deadline=None)
    def test_embedding_of_any_size(self, size):
        torch.manual_seed(0)
        network = AnatomyEmbedding((4, 4, 4), 8).eval()
        with torch.no_grad():
            for embedding, stride in zip(network(torch.randn(1, 1, *size)), network.strides, strict=True):
                assert embedding.shape == (1, 8, *(-(-n // stride) for n in size))
                torch.testing.assert_close(embedding.norm(dim=1), torch.ones_like(embedding[:, 0]))
                assert (cell_positions(embedding.shape[2:], stride) < torch.tensor(size)).all()

    @pytest.mark.parametrize("points", [[[3.0, 4, 5]], [[0.0, 0, 0], [11, 14, 9.5]], [[30.0, -2, 9]]])
    def test_sample_near_equals_sample(self, points):
        grid = np.random.default_rng(0).normal(size=(5, 7, 8, 6)).astype(np.float16)
        voxels = torch.tensor(points)
        expected = sample(torch.from_numpy(grid).float(), voxels, 2)
        torch.testing.assert_close(sample_near(grid, voxels, 2), expected)

    def test_found_in_parts(self, weights, monkeypatch):
        """Some planes of the key at a time find what the whole grid does."""
        matcher = EmbeddingMatcher(weights)
        query, key = (matcher.prepare(make_volume(str(seed), np.eye(4), seed)) for seed in (1, 2))
        points = random_points(query["extent"], 20, np.random.default_rng(0))
        voxels = torch.from_numpy(points / query["spacing"]).float()
        similarity = 0
        for level, stride in zip(("fine", "coarse"), matcher.network.strides, strict=True):
            grid = torch.from_numpy(key[level]).float()
            embedded = sample(torch.from_numpy(query[level]).float(), voxels, stride)
            cells = cell_positions(key["fine"].shape[1:], 2)
            at_cells = (embedded @ grid.flatten(1)).unflatten(1, grid.shape[1:])
            similarity = similarity + resample(at_cells, cells, stride) / 2
        for planes in (1, 5, 100):
            monkeypatch.setattr(embedding, "CELLS", planes * key["fine"][0, 0].size)
            found, score = matcher._find(query, key, points)
            np.testing.assert_allclose(score, similarity.max(0)[0], atol=1e-5)
            np.testing.assert_allclose(found, cells[similarity.argmax(0)].numpy() * key["spacing"], atol=1e-9)

    def test_views_at_another_spacing(self, tmp_path):
        """Frames are in voxels of the spacing of the views, in which a step is the scale of 0.8 to 1.2."""
        prepare(write_volumes(tmp_path / "raw", 2, 3), tmp_path / "prepared", patch_size=(16, 16, 16))
        data = OverlappingViewData(str(tmp_path / "prepared"), (8, 8, 8), spacing=6.0)
        assert data.spacing == (6, 6, 6)
        for view, frame, _ in data.epoch()[0]:
            assert view.shape == (1, 8, 8, 8)
            assert ((frame[1] > 0.7) & (frame[1] < 1.3)).all()
            assert (frame[0] + 7 * frame[1] <= 16).all()
        assert OverlappingViewData(str(tmp_path / "prepared"), (8, 8, 8), spacing=1.0).spacing == (3, 3, 3)

    def test_views_reach_the_ends_of_long_volumes(self, tmp_path, monkeypatch):
        prepare(write_volumes(tmp_path / "raw", 2, 3), tmp_path / "prepared", patch_size=(16, 16, 16))
        data = OverlappingViewData(str(tmp_path / "prepared"), (8, 8, 8), samples_per_epoch=300)
        views = data.epoch()
        images = views.images
        monkeypatch.setattr(images, "shapes", {name: (1, 100, 16, 16) for name in images.names})
        monkeypatch.setattr(images, "read", lambda name, start, size: torch.zeros(1, *size))
        frames = torch.stack([frame for sample in (views[i] for i in range(300)) for _, frame, _ in sample])[:, :, 0]
        assert frames[:, 0].min() <= 2
        assert (frames[:, 0] + 7 * frames[:, 1]).max() >= 97
        pairs = frames.view(300, 2, 2)
        starts, ends = pairs[:, :, 0], pairs[:, :, 0] + 7 * pairs[:, :, 1]
        assert (ends.amin(1) - starts.amax(1)).min() > 0  # the views of a pair overlap

    def test_sample_at_cells(self):
        grid = torch.nn.functional.normalize(torch.randn(5, 3, 4, 6), dim=0)
        places = cell_positions((3, 4, 6), 4)
        torch.testing.assert_close(sample(grid, places, 4), grid.flatten(1).T)

    def test_checkpoint_refuses_another_kind(self, weights, tmp_path):
        from nnunet_transformers.weights import load_encoder

        assert MatcherCheckpoint.load(weights).settings["dim"] == 32
        with pytest.raises(ValueError, match="is not a checkpoint of kind encoder or timm_encoder"):
            load_encoder(weights)
        damaged = bytearray(Path(weights).read_bytes())
        damaged[len(damaged) // 2] ^= 1
        (tmp_path / "damaged.pth").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is damaged: .* is not as it was written"):
            MatcherCheckpoint.load(tmp_path / "damaged.pth")


EMBEDDING = {"channels": (4, 6, 8), "dim": 8, "points": 12, "negative_radius": 5.0, "negatives": 40}


class TestAnatomicalEmbedding:
    """SAM, section 3: fine and coarse InfoNCE of points with the hardest negatives."""

    SIZE = (16, 24, 16)

    def batch(self, volumes=(0, 1, 2)):
        """Make pairs of crops, their frames, first voxel and step in voxels of the volume, and their volumes."""
        number = len(volumes)
        start = torch.tensor([[4.0, 5, 6], [0, 8, 2], [3, 3, 9]])[:number]
        key = (
            start + torch.tensor([[3.0, -2, 4], [1, 4, -3], [100, 100, 100]])[:number]
        )  # the last pair does not overlap
        steps = (torch.tensor([1.0, 1.1, 0.9]), torch.tensor([0.9, 1.0, 1.2]))
        frames = [torch.stack([s, step.expand_as(s)], dim=1) for s, step in zip((start, key), steps, strict=True)]
        return [(torch.randn(number, 1, *self.SIZE), frame, torch.tensor(volumes)) for frame in frames]

    def at(self, grid, point, stride):
        """Interpolate linearly between eight cells, clamped at the border, and normalise."""
        shape = grid.shape[1:]
        place = [min(max(float(x) / stride, 0.0), n - 1.0) for x, n in zip(point, shape, strict=True)]
        value = 0.0
        for corner in np.ndindex(2, 2, 2):
            cell = [min(int(x) + c, n - 1) for x, c, n in zip(place, corner, shape, strict=True)]
            weight = np.prod([(x - int(x)) if c else 1 - (x - int(x)) for x, c in zip(place, corner, strict=True)])
            value = value + float(weight) * grid[(slice(None), *cell)]
        return value / value.square().sum().sqrt()

    @pytest.mark.parametrize("volumes", [(0, 1, 2), (5, 5, 2), (1, 1, 1)])
    def test_training_step(self, volumes):
        """A volume that a batch holds twice is no negative of itself."""
        torch.manual_seed(0)
        module = AnatomyMatching(**EMBEDDING, temperature=0.3).double()
        module.log_dict = lambda values, **kwargs: setattr(module, "logged", values)
        batch = [(image.double(), frame.double(), volume) for image, frame, volume in self.batch(volumes)]
        torch.manual_seed(1)
        loss = module.training_step(batch, 0)
        images, frames, _ = zip(*batch, strict=True)
        embeddings = module.embedding(torch.cat(images))
        # of the fine embeddings of all points of the first views
        features = torch.cat([grid.flatten(1).T for grid in embeddings[0][: len(images[0])]])
        torch.testing.assert_close(module.logged["feature_spread"], feature_spread(features))
        number, losses = len(images[0]), {"fine": [], "coarse": []}
        torch.manual_seed(1)
        for i in range(number):
            for query, key in ((0, 1), (1, 0)):
                points = torch.rand(12, 3) * (torch.tensor(self.SIZE) - 1)
                rows = {"fine": [], "coarse": []}
                for point in points.double():
                    place = frames[query][i, 0] + frames[query][i, 1] * point
                    found = (place - frames[key][i, 0]) / frames[key][i, 1]
                    if (found < 0).any() or (found > torch.tensor(self.SIZE) - 1).any():
                        continue
                    for level, stride, grids in zip(rows, (2, 8), embeddings, strict=True):
                        own, other = grids[query * number + i], grids[key * number + i]
                        wanted = self.at(own, point, stride)
                        negatives = []
                        for cell in np.ndindex(*other.shape[1:]):
                            where = frames[key][i, 0] + frames[key][i, 1] * stride * torch.tensor(cell)
                            if (where - place).square().sum().sqrt() >= 5.0:
                                negatives.append(wanted @ other[(slice(None), *cell)])
                        if level == "coarse":
                            others = [j for j in range(2 * number) if volumes[j % number] != volumes[i]]
                            negatives += [wanted @ v for j in others for v in grids[j].flatten(1).T]
                        hardest = sorted(negatives, key=torch.Tensor.item)[-40:]
                        rows[level].append(torch.stack([wanted @ self.at(other, found, stride), *hardest]) / 0.3)
                for level, logits in rows.items():
                    if logits:
                        first = torch.zeros(1, dtype=torch.long)
                        losses[level].append(torch.stack([cross_entropy(row[None], first) for row in logits]).mean())
        assert 0 < len(losses["fine"]) < 2 * number
        expected = {level: torch.stack(values).mean() for level, values in losses.items()}
        for level, value in expected.items():
            torch.testing.assert_close(module.logged[level], value, msg=level)
        torch.testing.assert_close(loss, sum(expected.values()))

    def test_steps(self):
        """The optimiser is SGD with momentum and weight decay; its learning rate falls along a polynomial."""
        torch.manual_seed(0)
        module = AnatomyMatching(**EMBEDDING, lr=0.1, weight_decay=0.5)
        recorder = train(module, [self.batch() for _ in range(3)])
        rates = recorder.settings("lr")
        assert rates == pytest.approx([0.1 * (1 - step / 3) ** 0.9 for step in range(3)])
        velocity = {}
        for step, gradients in enumerate(recorder.gradients):
            before, after = recorder.weights[step : step + 2]
            for name, gradient in gradients.items():
                velocity[name] = 0.9 * velocity.get(name, 0.0) + gradient + 0.5 * before[name]
                torch.testing.assert_close(after[name], before[name] - rates[step] * velocity[name], msg=name)

    def test_mean_of_the_directions_with_points(self):
        """Hardly any point of a large crop lies in a tiny one within it, but all of the tiny one's in the large one."""
        module, calls = AnatomyMatching(**EMBEDDING), []
        module._contrast = lambda *_: calls.append(1) or [torch.tensor(3.0), torch.tensor(5.0)]
        image, volume = torch.randn(1, 1, *self.SIZE), torch.tensor([0])
        large, tiny = (torch.tensor([[[8.0, 8, 8], [step] * 3]]) for step in (1.0, 1e-3))
        losses, _ = module.losses([(image, large, volume), (image, tiny, volume)])
        assert len(calls) == 1
        assert losses == {"fine": 3.0, "coarse": 5.0}

    def test_crops_without_overlap_still_have_gradients(self):
        module = AnatomyMatching(**EMBEDDING)
        module.log_dict = lambda *args, **kwargs: None
        (image, frame, volumes), (other, *_) = self.batch((0, 1))
        module.training_step([(image, frame, volumes), (other, frame + 1000, volumes)], 0).backward()
        assert [n for n, p in module.named_parameters() if p.grad is None] == []
