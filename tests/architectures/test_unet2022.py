"""UNet-2022 against its paper and its release."""

from __future__ import annotations

import json
from copy import deepcopy

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from nnunet_transformers.architectures import create_network
from nnunet_transformers.architectures.unet2022 import AttentionConvBlock
from nnunet_transformers.weights import find_weights, from_reference, identify, load_imagenet

from ..counting import published_multiply_adds
from ..released import DATA, golden_input, released_keys, weights_from_names

# name, crop, stride of the stem, windows, input channels, classes, parameters, giga multiply-adds
PUBLISHED = {
    "Synapse_224": ("unet2022_base", 224, 4, (7, 7, 14, 7), 1, 9, 72_929_187, 16.31),
    "Synapse_320": ("unet2022_tiny", 320, 4, (10, 10, 20, 10), 1, 9, 41_329_665, 20.15),
    "ACDC_224": ("unet2022_large", 224, 4, (7, 7, 14, 7), 1, 4, 163_080_024, 35.68),
    "ISIC_512": ("unet2022_tiny", 512, 8, (8, 8, 16, 8), 3, 2, 42_026_628, 14.23),
    "EM_512": ("unet2022_tiny", 512, 8, (16, 16, 16, 8), 1, 2, 42_065_940, 15.56),
}


def build(published, **overrides):
    name, crop, stride, windows, channels, classes, *_ = PUBLISHED[published]
    return create_network(
        name,
        channels,
        classes,
        (crop, crop),
        **{"patch_embed_stride": stride, "window_sizes": windows, "auxiliary_heads": True, **overrides},
    )


def windows_of(network):
    return [stage[0].parallel.attn.partition.window_size for stage in network.encoder.stages]


class TestPublished:
    @pytest.mark.parametrize("published", PUBLISHED)
    def test_parameters(self, published):
        with torch.device("meta"):
            network = build(published)
        assert sum(p.numel() for p in network.parameters()) == PUBLISHED[published][-2]

    @pytest.mark.parametrize("published", PUBLISHED)
    def test_multiply_adds(self, published):
        with torch.device("meta"):
            network = build(published, deep_supervision=True)
        counted = published_multiply_adds(network, PUBLISHED[published][4], network.patch_size)
        assert counted / 1e9 == pytest.approx(PUBLISHED[published][-1], rel=0.005)

    @pytest.mark.parametrize("published", [p for p in PUBLISHED if p != "EM_512"])
    def test_windows_follow_from_the_patch(self, published):
        with torch.device("meta"):
            network = build(published, window_sizes=None)
        assert windows_of(network) == [(w, w) for w in PUBLISHED[published][3]]

    def test_rectangular_patch_gets_rectangular_windows(self):
        network = create_network("unet2022_tiny", 1, 2, (160, 320))
        assert windows_of(network) == [(5, 10), (5, 10), (10, 20), (5, 10)]
        with torch.no_grad():
            assert network(torch.zeros(1, 1, 160, 320)).shape == (1, 2, 160, 320)


@pytest.fixture(scope="module")
def golden():
    """Names and shapes of a released network, and its three outputs (every second pixel)."""
    archive = np.load(DATA / "unet2022_tiny_64.npz")
    return json.loads(str(archive["shapes"])), [torch.from_numpy(archive[f"out{i}"]) for i in range(3)]


class TestReleasedWeights:
    def outputs(self, shapes, **overrides):
        network = create_network(
            "unet2022_tiny", 1, 9, (64, 64), window_sizes=(4, 4, 4, 2), deep_supervision=True, **overrides
        ).eval()
        network.load_state_dict(from_reference("unet2022", weights_from_names(shapes)), strict=True)
        with torch.no_grad():
            return [output[..., ::2, ::2] for output in network(golden_input((1, 1, 64, 64)))]

    def test_released_outputs(self, golden):
        shapes, expected = golden
        for output, reference in zip(self.outputs(shapes, reference_compat=True), expected, strict=True):
            assert (output - reference).abs().max() <= 1e-4 * reference.abs().max()

    def test_default_does_not_convolve_across_opposite_edges(self, golden):
        shapes, expected = golden
        assert (self.outputs(shapes)[0] - expected[0]).abs().max() > 1e-3 * expected[0].abs().max()

    @pytest.mark.parametrize("published", PUBLISHED)
    def test_every_released_name(self, published):
        released = {f"module.{key}": torch.zeros(shape, device="meta") for key, shape in
                    released_keys("unet2022")[f"unet2022_{published}"]}  # fmt: skip
        weights = from_reference("unet2022", released)
        with torch.device("meta"):
            build(published, reference_compat=True).load_state_dict(weights, strict=True, assign=True)

    def test_identify(self):
        shapes = released_keys("unet2022")["unet2022_ISIC_512"]
        weights = from_reference("unet2022", {key: torch.zeros(shape) for key, shape in shapes})
        found = identify("unet2022", weights)
        assert (found.name, found.input_channels, found.num_classes, found.ndim) == ("unet2022_tiny", 3, 2, 2)
        assert found.overrides["patch_embed_stride"] == 8

    def test_weights_of_something_else(self):
        with pytest.raises(ValueError, match="not the weights of a released UNet-2022"):
            from_reference("unet2022", {"conv1.weight": torch.zeros(1)})


class TestThreeDimensions:
    @pytest.mark.parametrize(
        "stride,stem,kernel",
        [
            ((4, 4, 4), [[2, 2, 2], [2, 2, 2]], (3, 3, 3)),
            ((2, 4, 4), [[1, 2, 2], [2, 2, 2]], (1, 7, 7)),
            ((1, 4, 4), [[1, 2, 2], [1, 2, 2]], (1, 7, 7)),
        ],
    )
    def test_strides_per_axis(self, stride, stem, kernel):
        patch_size = tuple(8 * s for s in stride)
        network = create_network("unet2022_tiny", 1, 2, patch_size, patch_embed_stride=stride, deep_supervision=True)
        assert [list(block[0].stride) for block in network.stem.blocks] == stem
        depth_wise = network.encoder.stages[0][0].parallel.conv_dw
        assert depth_wise.kernel_size == kernel
        outputs = network(torch.zeros(1, 1, *patch_size))
        assert [tuple(o.shape[2:]) for o in outputs] == [tuple(n // 2**i for n in patch_size) for i in range(3)]

    def test_windows_hold_few_tokens(self):
        with torch.device("meta"):
            network = create_network("unet2022_tiny", 1, 2, (128, 128, 128))
        assert all(np.prod(w) <= 350 for w in windows_of(network))


def test_checkpointing_changes_nothing_but_memory():
    torch.manual_seed(0)
    network = create_network("unet2022_tiny", 1, 2, (32, 32), drop_path_rate=0.0).double()
    twin = create_network("unet2022_tiny", 1, 2, (32, 32), drop_path_rate=0.0, activation_checkpointing=True).double()
    twin.load_state_dict(network.state_dict())
    image = torch.randn(1, 1, 32, 32, dtype=torch.float64)
    kept = []
    for model in (network, twin):
        saved = []

        def pack(tensor, saved=saved):
            saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(image).square().mean()
        loss.backward()
        kept.append(sum(saved))
    for (name, parameter), other in zip(network.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, msg=name)
    assert kept[1] < kept[0] / 2


@pytest.mark.parametrize(
    "overrides,message",
    [
        ({"patch_embed_stride": 3}, "must be powers of two"),
        ({"patch_embed_stride": 1}, "one of them above 1"),
        ({"num_stages": 1}, "num_stages must be at least 2"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"depths": 3}, r"depths must have one entry per stage \(4\)"),
        ({"depths": (3, 3)}, r"depths must have one entry per stage \(4\)"),
        ({"window_sizes": (7, 7)}, r"window_sizes must be an integer or one entry per stage \(4\)"),
        ({"strides": [[1, 1], [2, 2]]}, "contradict"),
    ],
)
def test_contradictions(overrides, message):
    with pytest.raises(ValueError, match=message):
        create_network("unet2022_tiny", 1, 2, (64, 64), **overrides)


@pytest.fixture(scope="module")
def convnext(tmp_path_factory):
    """timm's ConvNeXt with random weights, and its file."""
    model = timm.create_model("convnext_tiny")
    path = tmp_path_factory.mktemp("imagenet") / "convnext.safetensors"
    save_file(model.state_dict(), path)
    return model, path


class TestImageNet:
    def test_a_loaded_block_computes_the_same_as_timms(self, convnext):
        model, path = convnext
        with torch.no_grad():
            for block in model.stages[1].blocks:
                block.gamma.fill_(0.5)
        save_file(model.state_dict(), path)
        network = create_network("unet2022_tiny", 1, 2, (64, 64), drop_path_rate=0.0)
        report = load_imagenet(network, path)
        x = torch.randn(1, 192, 8, 8)
        for ours in (network.encoder.stages[1][2], network.decoder.levels[1].blocks[2]):
            expected = model.stages[1].blocks[2](x)
            torch.testing.assert_close(ours.convnext(x.movedim(1, -1)).movedim(-1, 1), expected, rtol=1e-4, atol=1e-5)
        parameters = dict(network.named_parameters())
        assert {*report.loaded, *report.fresh} == parameters.keys()
        assert report.fresh["stem.blocks.0.0.weight"] == "not in the source"
        assert 0.5 < report.coverage(parameters, "encoder") < 0.8
        assert "convnext: head.fc.weight" in report.unused

    def test_spread_takes_blocks_from_the_whole_stage(self, convnext):
        model, path = convnext
        network = create_network("unet2022_tiny", 1, 2, (64, 64))
        load_imagenet(network, path, spread=True)
        for index, source in enumerate((0, 4, 8)):
            ours = network.encoder.stages[2][index].convnext.mlp.fc1.weight
            assert torch.equal(ours, model.stages[2].blocks[source].mlp.fc1.weight)

    def test_inflated_kernel_equals_2d_on_constant_depth(self, tmp_path):
        model = timm.create_model("convnext_femto").eval()
        save_file(model.state_dict(), tmp_path / "femto.safetensors")
        network = create_network("unet2022_tiny", 1, 2, (32, 32, 32), kernel_size=7).eval()
        report = load_imagenet(network, tmp_path / "femto.safetensors")
        assert "7x7 to 7x7x7" in report.adapted["encoder.stages.0.0.convnext.conv_dw.weight"]
        image = torch.randn(1, 16, 16, 48)
        flat = model.stages[0].blocks[0].conv_dw(image.movedim(-1, 1)).movedim(1, -1)
        volume = image[:, None].expand(1, 15, 16, 16, 48)
        inflated = network.encoder.stages[0][0].convnext.conv_dw(volume)[:, 7]
        torch.testing.assert_close(inflated, flat, rtol=1e-4, atol=1e-5)

    def test_swin_for_the_attention(self, convnext, tmp_path):
        swin = timm.create_model("swin_tiny_patch4_window7_224")
        torch.save(swin.state_dict(), tmp_path / "swin.pth")
        network = create_network("unet2022_tiny", 1, 2, (224, 224))
        report = load_imagenet(network, convnext[1], tmp_path / "swin.pth")
        ours = network.encoder.stages[0][1].parallel
        assert torch.equal(ours.attn.qkv.weight, swin.layers[0].blocks[1].attn.qkv.weight)
        assert torch.equal(ours.attn.bias.table, swin.layers[0].blocks[1].attn.relative_position_bias_table)
        assert report.adapted["encoder.stages.2.0.parallel.attn.bias.table"] == "offsets 13x13 to 27x27"

    def test_mistakes(self, convnext, tmp_path):
        network = create_network("unet2022_base", 1, 2, (64, 64))
        with pytest.raises(ValueError, match="holds no weights of convnext_base"):
            load_imagenet(network, convnext[1])
        narrow = create_network("unet2022_tiny", 1, 2, (64, 64), embed_dim=36)
        with pytest.raises(ValueError, match="no ConvNeXt with 36 channels"):
            load_imagenet(narrow, convnext[1])
        with pytest.raises(FileNotFoundError, match="no such checkpoint"):
            load_imagenet(network, tmp_path / "missing.pth")


class TestAblations:
    """Blocks of the paper's tables 5 and 6."""

    FORMS = ({"block": "swin"}, {"block": "convnext"}, {"attention": False}, {"convolution": False})

    @pytest.mark.parametrize("patch_size", [(64, 32), (32, 32, 64)])
    @pytest.mark.parametrize("form", FORMS, ids=str)
    def test_trains(self, form, patch_size):
        network = create_network("unet2022_tiny", 1, 2, patch_size, deep_supervision=True, depths=[2] * 4, **form)
        outputs = network(torch.randn(1, 1, *patch_size))
        sum(o.square().mean() for o in outputs).backward()
        assert outputs[0].shape == (1, 2, *patch_size)
        assert all(p.grad is not None for p in network.parameters())
        # position tables, where there is attention
        assert bool(network.no_weight_decay()) == (form in ({"block": "swin"}, {"convolution": False}))

    def test_a_half_is_what_remains_of_the_whole(self):
        """Without its attention the block equals one whose attention gives zero; likewise for the convolution."""
        whole = create_network("unet2022_tiny", 1, 2, (64, 64), depths=[2] * 4).double().eval()
        image = torch.randn(1, 1, 64, 64, dtype=torch.float64)
        with torch.no_grad():
            for parameter in whole.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
            for half in ("attention", "convolution"):
                other = create_network("unet2022_tiny", 1, 2, (64, 64), depths=[2] * 4, **{half: False}).double().eval()
                state = {k.replace("parallel.attn.proj", "parallel.proj"): v for k, v in whole.state_dict().items()}
                names = other.state_dict().keys()
                other.load_state_dict({k: (state | whole.state_dict())[k] for k in names})
                silent = deepcopy(whole)
                for module in silent.modules():
                    if isinstance(module, AttentionConvBlock):
                        if half == "attention":
                            dim = module.norm.weight.numel()
                            module.attn.qkv.weight[2 * dim :] = 0
                            module.attn.qkv.bias[2 * dim :] = 0
                        else:
                            module.conv_dw.weight.zero_()
                            module.conv_dw.bias.zero_()
                torch.testing.assert_close(other(image), silent(image))

    def test_imagenet_weights(self, tmp_path):
        swin = timm.create_model("swin_tiny_patch4_window7_224")
        save_file({n: v.contiguous() for n, v in swin.state_dict().items()}, tmp_path / "swin.safetensors")
        network = create_network("unet2022_tiny", 1, 2, (64, 64), block="swin")
        find_weights(tmp_path / "swin.safetensors").weights.load_into(network)
        block = network.encoder.stages[0][1].swin
        assert torch.equal(block.mlp.fc1.weight, swin.layers[0].blocks[1].mlp.fc1.weight)
        assert torch.equal(block.norm2.bias, swin.layers[0].blocks[1].norm2.bias)
        assert torch.equal(block.attn.qkv.weight, swin.layers[0].blocks[1].attn.qkv.weight)

    @pytest.mark.parametrize(
        "arguments,message",
        [
            ({"block": "window"}, "block must be parallel, swin or convnext, got 'window'"),
            ({"attention": False, "convolution": False}, "needs attention, convolution or both"),
            ({"block": "swin", "attention": False}, "are halves of the block 'parallel', got 'swin'"),
        ],
    )
    def test_impossible_ones(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            create_network("unet2022_tiny", 1, 2, (64, 64), **arguments)
