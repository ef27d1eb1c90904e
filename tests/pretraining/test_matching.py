"""Matchers on phantoms whose map is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_transformers.pretraining.data.prepare import prepare
from nnunet_transformers.pretraining.fit import fit
from nnunet_transformers.pretraining.matching import MATCHERS, IdentityMatcher, MatcherCheckpoint, PrecomputedMatcher
from nnunet_transformers.pretraining.matching.embedding_network import AnatomyEmbedding, cell_positions, sample
from nnunet_transformers.pretraining.matching.hybrid import robust_affine
from nnunet_transformers.pretraining.matching.matcher import apply_affine, random_points

from .phantoms import SPACING, make_volume, random_map, true_match, write_volumes

STRIDE = 2 * max(SPACING)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The embedding, trained by its recipe on a few phantoms."""
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
        "trainer.max_steps": 120,
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
    """Distance in mm of what is found from where it is, for points that the key volume shows."""
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
        # maps are kept by the volumes' names
        for kind, known in {"shifted": shift, "mapped": random_map(np.random.default_rng(3), 8)}.items():
            query, key = make_volume("a", np.eye(4), 1), make_volume(kind, known, 2)
            found, _ = errors(matchers[name], query, key, np.eye(4), known)
            assert np.median(found) < max(SPACING) / 2

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

    @pytest.mark.parametrize("name", ["affine", "hybrid"])
    def test_points_outside_the_field_of_view(self, matchers, name):
        away = np.eye(4)
        away[0, 3] = 15  # the key begins 5 voxels further up
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

    def test_mistakes(self, tmp_path):
        for content in ("[]", '{"a": {"x": [1, 2]}}', "no json"):
            (tmp_path / "landmarks.json").write_text(content)
            with pytest.raises(ValueError, match=r"landmarks.json must hold"):
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

    def test_sample_at_cells(self):
        import torch

        grid = torch.nn.functional.normalize(torch.randn(5, 3, 4, 6), dim=0)
        places = cell_positions((3, 4, 6), 4)
        torch.testing.assert_close(sample(grid, places, 4), grid.flatten(1).T)

    def test_checkpoint_refuses_another_kind(self, weights, tmp_path):
        from nnunet_transformers.weights import load_encoder

        assert MatcherCheckpoint.load(weights).settings["dim"] == 32
        with pytest.raises(ValueError, match="is no encoder or timm_encoder checkpoint"):
            load_encoder(weights)
        damaged = bytearray(Path(weights).read_bytes())
        damaged[len(damaged) // 2] ^= 1
        (tmp_path / "damaged.pth").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"altered|truncated"):
            MatcherCheckpoint.load(tmp_path / "damaged.pth")
