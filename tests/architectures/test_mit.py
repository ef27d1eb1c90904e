"""MiT against its paper and its release."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from nnunet_transformers.architectures import create_network, create_pair
from nnunet_transformers.architectures.layers import ConvNormAct, fit_position_embeddings
from nnunet_transformers.architectures.mit.classifier import MiTClassifier
from nnunet_transformers.architectures.mit.pair import MiTPair
from nnunet_transformers.architectures.mit.trunk import InterpolatedEmbed
from nnunet_transformers.weights import from_reference, identify

from ..counting import published_multiply_adds
from ..released import DATA, golden_input, released_keys, weights_from_names

SIZES = {"mit_7": {}, "mit_22": {"depths": (2, 3, 4, 3), "decoder_depths": (3, 4, 3)}}
STRIDE_3D = (2, 4, 4)


def count(module, names=""):
    return sum(p.numel() for n, p in module.named_parameters() if names in n)


class TestPublishedNumbers:
    @pytest.mark.parametrize("name,exact", [("mit_7", 22_954_310), ("mit_22", 43_644_582)])
    def test_segmentation_parameters(self, name, exact):
        with torch.device("meta"):
            network = create_network(name, 1, 14, (48, 192, 192), deep_supervision=True)
        assert count(network) == exact
        assert count(network, "position") == 7_575_552

    @pytest.mark.parametrize("name,millions", [("mit_7", (20.38, 9.60, 16.31)), ("mit_22", (43.94, 23.80, 37.00))])
    def test_pretraining_parameters(self, name, millions):
        with torch.device("meta"):
            pair = MiTPair(**SIZES[name])
        counts = [count(module) / 1e6 for module in (pair, pair.form_2d, pair.form_3d)]
        assert counts == pytest.approx(millions, abs=0.005)
        if name == "mit_22":
            assert counts[1] + counts[2] - counts[0] == pytest.approx(16.86, abs=0.005)

    @pytest.mark.parametrize("name,millions", [("mit_7", 13.32), ("mit_22", 26.59)])
    def test_classification_parameters(self, name, millions):
        with torch.device("meta"):
            network = MiTClassifier(1, 2, (64, 128, 128), patch_embed_stride=STRIDE_3D, **SIZES[name])
        assert count(network) / 1e6 == pytest.approx(millions, abs=0.005)

    @pytest.mark.parametrize("name,giga", [("mit_7", 2.62), ("mit_22", 3.84)])
    def test_segmentation_multiply_adds(self, name, giga):
        patch_size = (16, 96, 96)
        network = create_network(name, 1, 14, patch_size, deep_supervision=True, reference_compat=True)
        # the release classifies after the last up-sampling, which gives four times the voxels
        later_head = 32 * 14 * np.prod(patch_size) * 3 / 4
        assert (published_multiply_adds(network, 1, patch_size) + later_head) / 1e9 == pytest.approx(giga, rel=0.005)

    @pytest.mark.parametrize("name,giga", [("mit_7", (1.33, 1.45)), ("mit_22", (3.50, 2.69))])
    def test_pretraining_multiply_adds(self, name, giga):
        pair = MiTPair(reference_compat=True, **SIZES[name])
        counted = [
            published_multiply_adds(pair, 3, (224, 224)) / 1e9,
            published_multiply_adds(pair, 1, (16, 96, 96)) / 1e9,
        ]
        assert counted == pytest.approx(giga, rel=0.005)


@pytest.fixture(scope="module")
def golden():
    """Outputs of the released MiT-7 on weights drawn from their names; of the two largest every fourth voxel."""
    return np.load(DATA / "mit_7.npz")


class TestReleasedWeights:
    @pytest.mark.parametrize("fused", [True, False])
    @pytest.mark.parametrize("checkpointing", [True, False])
    def test_released_segmentation(self, golden, fused, checkpointing):
        network = create_network(
            "mit_7",
            1,
            3,
            (16, 96, 96),
            deep_supervision=True,
            reference_compat=True,
            activation_checkpointing=checkpointing,
        )
        network.train(checkpointing)
        released = weights_from_names(json.loads(str(golden["shapes"])))
        network.load_state_dict(from_reference("mit", released), strict=True)
        for module in network.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = fused
        with torch.set_grad_enabled(checkpointing):
            outputs = network(golden_input((1, 1, 16, 96, 96)))
        assert [o.shape[2:] for o in outputs] == [(16, 96, 96), (16, 48, 48), (8, 24, 24), (4, 12, 12), (2, 6, 6)]
        for i, output in enumerate(outputs):
            step = 4 if i < 2 else 1
            expected = torch.from_numpy(golden[f"seg{i}"])
            difference = output.detach()[..., ::step, ::step, ::step] - expected
            assert difference.abs().max() <= 1e-4 * expected.abs().max()

    @pytest.mark.parametrize("prefix", ["", "module.", "module.backbone."])
    def test_released_pretraining(self, golden, prefix):
        pair = MiTPair(reference_compat=True).eval()
        released = {prefix + k: v for k, v in weights_from_names(released_keys("mit")["mit_ssl7_MM"]).items()}
        if "backbone" in prefix:
            released["module.head.mlp.0.weight"] = torch.zeros(1)
        pair.load_state_dict(from_reference("mit", released), strict=True)
        with torch.no_grad():
            outputs = {"2d": pair(golden_input((2, 3, 224, 224))), "3d": pair(golden_input((2, 1, 16, 96, 96)))}
        for form, output in outputs.items():
            expected = torch.from_numpy(golden[f"ssl_{form}"])
            assert (output - expected).abs().max() <= 1e-4 * expected.abs().max()

    def test_default_differs_where_the_release_drops_tokens(self, golden):
        released = weights_from_names(json.loads(str(golden["shapes"])))
        network = create_network("mit_7", 1, 3, (16, 96, 96), auxiliary_heads=True).eval()
        network.load_state_dict(from_reference("mit", released))
        expected = torch.from_numpy(golden["seg0"])
        with torch.no_grad():
            output = network(golden_input((1, 1, 16, 96, 96)))[..., ::4, ::4, ::4]
        assert (output - expected).abs().max() > 1e-2 * expected.abs().max()

    @pytest.mark.parametrize("name", SIZES)
    def test_every_released_name_of_segmentation(self, name):
        shapes = released_keys("mit")[name.replace("_", "_seg") + "_48x192x192"]
        weights = from_reference("mit", {f"module.{key}": torch.zeros(shape) for key, shape in shapes})
        with torch.device("meta"):
            network = create_network(name, 1, 14, (48, 192, 192), deep_supervision=True, reference_compat=True)
        network.load_state_dict(weights, strict=True, assign=True)
        assert all(not p.is_meta for p in network.parameters())
        found = identify("mit", weights)
        assert (found.name, found.input_channels, found.num_classes, found.patch_size) == (name, 1, 14, (48, 192, 192))
        # a release states the number of tokens only
        assert identify("mit", weights, (48, 96, 384)).patch_size == (48, 96, 384)
        with pytest.raises(ValueError, match=r"fit no mit network .* at a patch size of 48x192x256"):
            identify("mit", weights, (48, 192, 256))

    @pytest.mark.parametrize("name", SIZES)
    def test_every_released_name_of_pretraining(self, name):
        shapes = released_keys("mit")[name.replace("_", "_ssl") + "_MM"]
        weights = from_reference("mit", {f"module.backbone.{key}": torch.zeros(shape) for key, shape in shapes})
        with torch.device("meta"):
            pair = MiTPair(reference_compat=True, **SIZES[name])
        pair.load_state_dict(weights, strict=True)
        with pytest.raises(ValueError, match="not a whole mit network"):
            identify("mit", weights)

    def test_every_released_name_of_classification(self):
        shapes = released_keys("mit")["mit_cls22"]
        weights = from_reference("mit", {key: torch.zeros(shape) for key, shape in shapes})
        with torch.device("meta"):
            network = MiTClassifier(1, 2, (64, 128, 128), patch_embed_stride=STRIDE_3D, **SIZES["mit_22"])
        network.load_state_dict(weights, strict=True)

    def test_weights_of_something_else(self):
        for key in ("conv1.weight", "norm.weight"):
            with pytest.raises(ValueError, match="not the weights of a released MiT"):
                from_reference("mit", {key: torch.zeros(1)})


class TestStrides:
    def outputs(self, patch_size, **overrides):
        network = create_network("mit_7", 1, 2, patch_size, deep_supervision=True, **overrides)
        outputs = network(torch.randn(1, 1, *patch_size))
        sum(o.mean() for o in outputs).backward()
        assert all(p.grad is not None for p in network.parameters())
        assert len(outputs) == len(network.strides) - 1 == len(network.decoder.seg_layers)
        return network.strides, [tuple(o.shape[2:]) for o in outputs]

    def test_published_in_3d(self):
        strides, sizes = self.outputs((16, 64, 32))
        assert strides == [[1, 1, 1], [1, 2, 2], *[[2, 2, 2]] * 4]
        assert sizes == [(16, 64, 32), (16, 32, 16), (8, 16, 8), (4, 8, 4), (2, 4, 2)]

    def test_depth_strides_of_anisotropic_data(self):
        strides, sizes = self.outputs(
            (10, 64, 64), patch_embed_stride=(1, 4, 4), merge_strides=[(1, 2, 2), (2, 2, 2), (1, 2, 2)]
        )
        assert strides == [[1, 1, 1], [1, 2, 2], [1, 2, 2], [1, 2, 2], [2, 2, 2], [1, 2, 2]]
        assert sizes == [(10, 64, 64), (10, 32, 32), (10, 16, 16), (10, 8, 8), (5, 4, 4)]

    @pytest.mark.parametrize(
        "stride,strides,sizes",
        [
            (8, [[1, 1], [4, 4], [2, 2], [2, 2], [2, 2]], [(32, 64), (8, 16), (4, 8), (2, 4)]),
            (2, [[1, 1], [2, 2], [2, 2], [2, 2]], [(32, 64), (16, 32), (8, 16)]),
            ((1, 4), [[1, 1], [1, 2], [1, 2], [2, 2], [2, 2]], [(32, 64), (32, 32), (32, 16), (16, 8)]),
            (1, [[1, 1], [2, 2], [2, 2]], [(32, 64), (16, 32)]),
        ],
    )
    def test_one_output_for_each_resolution(self, stride, strides, sizes):
        assert self.outputs((32, 64), patch_embed_stride=stride, num_stages=3) == (strides, sizes)

    @pytest.mark.parametrize(
        "patch_size,overrides,message",
        [
            ((48, 64, 64), {"num_stages": 1}, "num_stages must be at least 2"),
            ((48, 64, 64), {"num_stages": 5}, "embed_dims must have an entry for each of 5 stages"),
            ((48, 64, 64), {"depths": (1, 1)}, "depths must have an entry for each of 4 stages"),
            ((48, 64, 64), {"patch_embed_stride": 3}, "patch_embed_stride must be 1, 2, 4 or 8"),
            ((48, 64, 64), {"merge_strides": 4}, "merge_strides must be 1 or 2"),
            ((48, 64, 64), {"merge_strides": (2, 2)}, r"one entry per stage \(3\)"),
            ((48, 64, 64), {"strides": [[1, 1, 1], [2, 2, 2]]}, "contradict"),
            ((48, 64, 64), {"num_heads": (5, 2, 4, 8)}, "num_heads 5 does not divide"),
            ((40, 64, 64), {}, r"axis 0 \(depth\) has size 40.*nearest valid sizes: 32 or 48"),
            ((16, 32, 32), {}, r"leaves one token.*nearest valid size: 32 on axis 0 \(depth\)"),
        ],
    )
    def test_contradictions(self, patch_size, overrides, message):
        with pytest.raises(ValueError, match=message):
            create_network("mit_7", 1, 2, patch_size, **overrides)


PATCH_SIZES = {"patch_size_2d": (64, 64), "patch_size_3d": (32, 32, 32)}


class TestPair:
    def test_shares_layers_independent_of_dimensionality(self):
        with torch.device("meta"):
            pair = MiTPair(**SIZES["mit_22"])
        shapes = released_keys("mit")["mit_ssl22_MM"]
        names_2d = dict(pair.form_2d.named_parameters())
        shared = [n for n, p in pair.form_3d.named_parameters() if n in names_2d and p is names_2d[n]]
        assert len(shared) == sum("2D" not in key and "3D" not in key for key, _ in shapes)
        assert not any(part in name for name in shared for part in ("attn.sr", "position", "embed", "stem"))
        # the release stores the token's row and the grid's in one tensor
        rows = sum("pos_embed" in key.lower() or "PosEmbed" in key for key, _ in shapes)
        assert len(list(pair.parameters())) == len(shapes) + rows

    def test_a_batch_of_one_form_gives_the_other_no_gradient(self):
        pair = MiTPair(**PATCH_SIZES)
        pair(torch.randn(1, 3, 64, 64)).square().sum().backward()
        without = {n for n, p in pair.form_3d.named_parameters() if p.grad is None}
        own = {n for n, p in pair.form_3d.named_parameters() if all(p is not q for q in pair.form_2d.parameters())}
        assert without == own
        assert all(p.grad is not None for p in pair.form_2d.parameters())

    def test_no_other_dimensionality_and_no_other_size(self):
        pair = MiTPair(**PATCH_SIZES)
        with pytest.raises(ValueError, match="none of 1 dimensions"):
            pair(torch.zeros(1, 1, 64))
        with pytest.raises(ValueError, match=r"axis 2 \(width\) has 64 voxels"):
            pair(torch.zeros(1, 1, 32, 32, 64))

    @pytest.mark.parametrize("ndim", [2, 3])
    def test_weights_of_one_form_start_a_segmentation_network(self, ndim):
        pair = MiTPair(**PATCH_SIZES)
        patch_size = pair.form(ndim).patch_size
        network = create_network("mit_7", 3 if ndim == 2 else 1, 2, patch_size, deep_supervision=True)
        missing, unexpected = network.load_state_dict(pair.form_weights(ndim), strict=False)
        assert not unexpected
        assert {name.split(".")[1] for name in missing} == {"up", "fuse", "seg_layers"}
        weight = "encoder.stages.0.blocks.0.attn.sr.weight"
        assert torch.equal(network.state_dict()[weight], pair.form(ndim).state_dict()[weight])

    def test_weights_of_one_form_start_a_network_of_another_patch_size(self):
        weights = MiTPair(**PATCH_SIZES).form_weights(3)
        network = create_network("mit_7", 1, 2, (32, 64, 32))
        missing, unexpected = network.load_state_dict(fit_position_embeddings(weights, network), strict=False)
        assert not unexpected
        assert not any("position" in name for name in missing)

    def test_weights_of_one_form_start_a_classifier(self):
        weights = MiTPair(**PATCH_SIZES).form_weights(3, ssl_token=True)
        network = MiTClassifier(1, 2, (32, 32, 32), patch_embed_stride=STRIDE_3D)
        kept = {name: value for name, value in weights.items() if not name.startswith("decoder.")}
        missing, unexpected = network.load_state_dict(kept, strict=False)
        assert (set(missing), unexpected) == ({"norm.weight", "norm.bias", "head.weight", "head.bias"}, [])
        network(torch.randn(2, 1, 32, 32, 32)).square().sum().backward()
        assert all(p.grad is not None for p in network.parameters())


def test_drop_path_rises_in_the_encoder_and_falls_in_the_decoder():
    network = create_network("mit_7", 1, 2, (64, 64), drop_path_rate=0.3)
    encoder, decoder = (
        [getattr(b.drop_path, "drop_prob", 0.0) for s in part.stages for b in s.blocks]
        for part in (network.encoder, network.decoder)
    )
    assert encoder == pytest.approx([0, 0.1, 0.2, 0.3])
    assert decoder == pytest.approx([0.3, 0.15, 0])


class TestInterpolatedEmbedding:
    """Variant 2 of the appendix's Table 1: no parameters but a linear layer's, the same in 2D and 3D."""

    ARGUMENTS = {"embed_dims": (8, 16, 24, 32), "switchable_embedding": False}  # noqa: RUF012

    def test_against_averages_and_repetition(self):
        down = InterpolatedEmbed(2, 3, (1, 2)).double()
        image = torch.randn(1, 2, 4, 6, dtype=torch.float64)
        averages = image.unflatten(3, (3, 2)).mean(-1)
        expected = torch.einsum("oi,bihw->bohw", down.linear.weight, averages) + down.linear.bias[:, None, None]
        torch.testing.assert_close(down(image), expected)
        up = InterpolatedEmbed(2, 3, (2, 2, 2), is_encoder=False).double()
        constant = torch.ones(1, 2, 2, 3, 4, dtype=torch.float64)
        raised = up(constant)
        assert raised.shape == (1, 3, 4, 6, 8)
        torch.testing.assert_close(raised[0, :, 1, 2, 3], up.linear.weight.sum(1) + up.linear.bias)

    @pytest.mark.parametrize("patch_size", [(64, 64), (32, 64, 64)], ids=["2d", "3d"])
    def test_network(self, patch_size):
        network = create_network("mit_7", 1, 3, patch_size, deep_supervision=True, **self.ARGUMENTS)
        outputs = network(torch.randn(1, 1, *patch_size))
        assert outputs[0].shape == (1, 3, *patch_size)
        sum(o.sum() for o in outputs).backward()
        assert all(p.grad is not None for p in network.parameters())
        assert not any(isinstance(m, ConvNormAct) for m in (*network.stem.modules(), *network.encoder.modules()))

    def test_pair_shares_it(self):
        pair = create_pair("mit_7", (64, 64), (16, 64, 64), 1, 1, self.ARGUMENTS)
        twin = dict(pair.form_3d.named_modules(remove_duplicate=False))
        embeds = [n for n, m in pair.form_2d.named_modules() if isinstance(m, InterpolatedEmbed)]
        assert len(embeds) == 8
        assert all(twin[f"{n}.linear"] is pair.form_2d.get_submodule(f"{n}.linear") for n in embeds)
