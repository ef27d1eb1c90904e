"""Image encoders of MGCA: timm's ViTs and CNNs, and this package's 2D networks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import VisionTransformer
from torch import Tensor, nn

from ...architectures import SegmentationNetwork, create_encoder, list_networks
from ...weights import create_timm

LOCAL_STRIDE = 16
# supplement A.2: ResNet-50 sees crops of 224 enlarged to 299
CNN_SCALE = 299 / 224


@dataclass(frozen=True)
class ImageFeatures:
    """Global and local features of a batch of images.

    Attributes:
        instance: global features, one vector per image, (batch, dim).
        patches: local features, (batch, patches, local_dim).
        grid: rows and columns of the patches.
        attention: (batch, patches), attention of [CLS] to each patch in the last layer, averaged over the heads; None
            for networks without [CLS].
    """

    instance: Tensor
    patches: Tensor
    grid: tuple[int, int]
    attention: Tensor | None = None


class ImageEncoder(nn.Module, ABC):
    """Base of the encoders that compute global and local features of an image.

    Attributes:
        network: backbone.
        dim, local_dim: channels of the global and of the local features.
    """

    network: Any
    dim: int
    local_dim: int

    @abstractmethod
    def forward(self, image: Tensor) -> ImageFeatures:
        """Encode images, (batch, channels, height, width)."""


class TimmViT(ImageEncoder):
    """Encode by timm's ViT: global features are [CLS], local features the patch tokens of the last layer.

    Args:
        network: the ViT.

    Raises:
        ValueError: if it has no class token.
    """

    def __init__(self, network: VisionTransformer) -> None:
        super().__init__()
        if not network.has_class_token:
            raise ValueError("MGCA weights patches by the attention of the class token, and this ViT has none")
        self.network = network
        self.dim = self.local_dim = network.num_features
        # fused attention does not return its attention map
        self.network.blocks[-1].attn.fused_attn = False

    def forward(self, image: Tensor) -> ImageFeatures:
        maps: list[Tensor] = []
        dropout = self.network.blocks[-1].attn.attn_drop
        hook = dropout.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
        try:
            tokens = self.network.forward_features(image)
        finally:
            hook.remove()
        first = self.network.num_prefix_tokens
        grid = self.network.patch_embed.grid_size
        return ImageFeatures(tokens[:, 0], tokens[:, first:], grid, maps[0][:, :, 0, first:].mean(1))


class TimmCNN(ImageEncoder):
    """Encode by timm's CNN: global features are its pooled features, local features the map of stride nearest to 16.

    Args:
        network: network with timm's ``forward_intermediates``, such as a ResNet.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        stages = self.network.feature_info
        self.stage = _nearest([stage["reduction"] for stage in stages])
        self.dim, self.local_dim = self.network.head_hidden_size, stages[self.stage]["num_chs"]

    def forward(self, image: Tensor) -> ImageFeatures:
        size = [round(n * CNN_SCALE) for n in image.shape[2:]]
        image = F.interpolate(image, size=size, mode="bilinear", align_corners=False)
        last, (local,) = self.network.forward_intermediates(image, indices=[self.stage])
        instance = self.network.forward_head(last, pre_logits=True)
        return ImageFeatures(instance, local.flatten(2).transpose(1, 2), tuple(local.shape[2:]))


class RegisteredEncoder(ImageEncoder):
    """Encode by a registered 2D network: global features are the mean of its deepest feature map, local features the
    map of stride nearest to 16.

    Args:
        network: result of ``create_encoder``.
    """

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        # create_encoder freezes the norms of all maps but the deepest, and one of them is used here
        self.network = network.requires_grad_()
        self.stage = _nearest([math.prod(stride) ** (1 / len(stride)) for stride in network.feature_strides])
        self.dim, self.local_dim = network.feature_channels[-1], network.feature_channels[self.stage]

    def forward(self, image: Tensor) -> ImageFeatures:
        maps = self.network.encode(image)
        local = maps[self.stage]
        return ImageFeatures(maps[-1].flatten(2).mean(2), local.flatten(2).transpose(1, 2), tuple(local.shape[2:]))


def create_image_encoder(
    name: str,
    input_channels: int,
    patch_size: Sequence[int],
    overrides: Mapping[str, Any] | None = None,
    pretrained: bool | str = False,
    instance: bool = True,
    patches: bool = True,
) -> ImageEncoder:
    """Build an image encoder and freeze the parameters that the used features do not depend on.

    Args:
        name: registered network, or a timm model.
        input_channels: image channels.
        patch_size: height and width.
        overrides: arguments of a registered network.
        pretrained: start from timm's weights, downloaded or from the given file.
        instance, patches: whether the global and the local features are used.

    Raises:
        ValueError: if there is no such network, or its arguments are invalid.
        FileNotFoundError: if there is no such file of weights.
    """
    if name in list_networks():
        if pretrained:
            raise ValueError(f"pretrained is for timm's networks; set it to false for {name}, a registered network")
        encoder: ImageEncoder = RegisteredEncoder(create_encoder(name, input_channels, patch_size, **(overrides or {})))
    elif overrides:
        raise ValueError(f"network_overrides are for registered networks; {name} is a timm model or unknown")
    elif not timm.is_model(name):
        close = get_close_matches(name, [*list_networks(), *timm.list_models()], n=3)
        raise ValueError(f"unknown network {name!r}; did you mean {', '.join(close) or 'one of timm.list_models()'}?")
    else:
        network = create_timm(name, input_channels, patch_size, pretrained)
        encoder = TimmViT(network) if isinstance(network, VisionTransformer) else TimmCNN(network)
    _freeze_unused(encoder, (2, input_channels, *patch_size), instance, patches)
    return encoder


def _freeze_unused(encoder: ImageEncoder, shape: Sequence[int], instance: bool, patches: bool) -> None:
    """Freeze unused parameters: DDP requires a gradient for every trainable parameter.

    Args:
        encoder: encoder, in place.
        shape: (batch, channels, height, width) to trace the encoder with.
        instance, patches: whether the global and the local features are used.
    """
    twin = deepcopy(encoder).to("meta")
    features = twin(torch.empty(*shape, device="meta"))
    used = [features.instance.sum()] * instance + [features.patches.sum()] * patches
    own, others = ([p for p in e.parameters() if p.requires_grad] for e in (encoder, twin))
    gradients = torch.autograd.grad(sum(used), others, allow_unused=True)
    for parameter, gradient in zip(own, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


def _nearest(strides: Sequence[float]) -> int:
    """Return the index of the stride that is nearest to 16 on a logarithmic scale."""
    return min(range(len(strides)), key=lambda i: abs(math.log2(strides[i] / LOCAL_STRIDE)))
