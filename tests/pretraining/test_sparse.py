"""Sparse masking: layers of CNNs compute visible places only."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
from torch import nn

from nnunet_transformers.architectures import create_encoder
from nnunet_transformers.pretraining.encoders import sparse as module
from nnunet_transformers.pretraining.encoders.masked import enlarge, hide, random_mask
from nnunet_transformers.pretraining.encoders.sparse import SparseEncoder, is_convolutional, sparse

# of 64x64 pixels; as many masked cells in each image
MASK = torch.zeros(2, 4, 4, dtype=torch.bool)
MASK[0, :3], MASK[1, :, 1:] = True, True


def masks(grid):
    rngs = [np.random.default_rng(i) for i in range(2)]
    return torch.stack([torch.from_numpy(random_mask(grid, 0.75, rng)) for rng in rngs])


def stock_encoder(encoder_class, ndim=3):
    """Build an encoder of nnU-Net's, as its plans do."""
    convolution, norm = (nn.Conv3d, nn.InstanceNorm3d) if ndim == 3 else (nn.Conv2d, nn.InstanceNorm2d)
    return encoder_class(
        input_channels=1,
        n_stages=4,
        features_per_stage=[4, 6, 8, 10],
        conv_op=convolution,
        kernel_sizes=3,
        strides=[1, 2, 2, 2],
        **{"n_conv_per_stage" if encoder_class is PlainConvEncoder else "n_blocks_per_stage": 2},
        conv_bias=True,
        norm_op=norm,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        return_skips=True,
    )


def test_example():
    assert doctest.testmod(module) == (0, 3)


def test_layers_against_their_formulas():
    """Convolutions, pooling and norms with the statistics of visible places, each written out."""
    torch.manual_seed(0)
    first, norm, last = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3, 2, 1, bias=False)
    instance = nn.InstanceNorm2d(2, affine=True)
    layers = nn.Sequential(first, norm, nn.ReLU(), nn.MaxPool2d(2), last, instance).double().train()
    with torch.no_grad():
        for parameter in (norm.weight, norm.bias, instance.weight, instance.bias):
            parameter.normal_()
    image = torch.randn(2, 1, 64, 64, dtype=torch.float64)
    with sparse([layers], MASK):
        output = layers(image)

    def visible(size):
        return (~MASK).repeat_interleave(size // 4, 1).repeat_interleave(size // 4, 2)[:, None].double()

    x = F.conv2d(image, first.weight, first.bias, padding=1) * visible(64)
    number = visible(64).sum()
    mean = x.sum((0, 2, 3), keepdim=True) / number
    variance = ((x - mean).square() * visible(64)).sum((0, 2, 3), keepdim=True) / number
    per_channel = (1, -1, 1, 1)
    x = (x - mean) / (variance + norm.eps).sqrt() * norm.weight.view(per_channel) + norm.bias.view(per_channel)
    x = F.max_pool2d((x * visible(64)).clamp(min=0), 2) * visible(32)
    x = F.conv2d(x, last.weight, stride=2, padding=1) * visible(16)
    number = visible(16).sum((2, 3), keepdim=True)
    own = x.sum((2, 3), keepdim=True) / number
    spread = ((x - own).square() * visible(16)).sum((2, 3), keepdim=True) / number
    x = (x - own) / (spread + instance.eps).sqrt()
    x = (x * instance.weight.view(per_channel) + instance.bias.view(per_channel)) * visible(16)
    torch.testing.assert_close(output, x)
    torch.testing.assert_close(norm.running_mean, 0.1 * mean.flatten())


@pytest.mark.parametrize("encoder_class", [PlainConvEncoder, ResidualEncoder])
@pytest.mark.parametrize("ndim", [2, 3])
def test_nnunets_encoders(encoder_class, ndim):
    """No layer of theirs sees or makes a feature at a masked place, up to the resolution of the cells."""
    torch.manual_seed(0)
    encoder = stock_encoder(encoder_class, ndim).double()
    assert is_convolutional(encoder)
    mask = masks((4,) * ndim)
    image = torch.randn(2, 1, *[32] * ndim, dtype=torch.float64)
    seen = []

    def watch(_, inputs, output):
        hidden = enlarge(mask, output.shape[2:])[:, None].expand_as(output)
        seen.append(float(output.detach()[hidden].abs().max()))

    def maps(image):
        with sparse([encoder], mask):
            handles = [m.register_forward_hook(watch) for m in encoder.modules() if isinstance(m, nn.LeakyReLU)]
            try:
                return encoder(hide(image, mask))
            finally:
                for handle in handles:
                    handle.remove()

    first = maps(image)
    assert seen and max(seen) == 0
    other = image + enlarge(mask, image.shape[2:])[:, None]
    assert all(torch.equal(a, b) for a, b in zip(first, maps(other), strict=True))
    assert not any(torch.allclose(a, b) for a, b in zip(first, maps(image + 1 / (1 + image**2)), strict=True))
    assert all(f.abs().max() > 0 for f in first)
    # dense layers spread the visible features into the mask
    alone = encoder(hide(image, mask))
    assert not any(torch.allclose(a, b) for a, b in zip(first, alone, strict=True))


def test_coarser_maps_are_dense():
    """Of a map whose places are larger than the cells, each is computed."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, 2, 1), nn.BatchNorm2d(2))
    mask = torch.ones(2, 4, 4, dtype=torch.bool)
    mask[:, 0, 0] = False
    with sparse([layers], mask):
        output = layers(torch.randn(2, 1, 8, 8))
    assert output.shape == (2, 2, 2, 2)
    assert output.ne(0).all()


def test_hooks_are_removed():
    layers = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2))
    with pytest.raises(RuntimeError, match="expected input"), sparse([layers], MASK):
        layers(torch.zeros(2, 3, 64, 64))
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)


def test_masked_places_hold_tokens():
    torch.manual_seed(0)
    encoder = SparseEncoder(create_encoder("resnet18_unet", 1, (64, 64)), (4, 4))
    maps = encoder.maps(torch.randn(2, 1, 64, 64), MASK)
    assert [tuple(m.shape[1:]) for m in maps] == encoder.map_shapes
    for features, token in zip(maps, encoder.mask_tokens, strict=False):
        hidden = enlarge(MASK, features.shape[2:])
        assert (features.movedim(1, -1)[hidden] == token).all()
        assert not (features.movedim(1, -1)[~hidden] == token).any()
    # 32, 16, 8 and 4 cells per axis are masked, the 2 of the deepest map are not
    assert len(encoder.mask_tokens) == 4 == len(maps) - 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet18_unet", True), ("unet2022_tiny", False), ("mit_7", False), ("setr_pup_tiny", False)],
)
def test_what_is_convolutional(name, expected):
    with torch.device("meta"):
        network = create_encoder(name, 1, (64, 64))
    assert is_convolutional(network.stem, network.encoder) == expected
