"""Features of a frozen encoder, one vector per prepared image."""

from __future__ import annotations

from itertools import islice
from typing import cast

import torch
from numpy.typing import NDArray

from ..architectures import SegmentationNetwork
from ..classification.classifier import BackboneDescription
from ..cpu import optimize
from ..pretraining.data import PreparedImages
from ..weights import EncoderCheckpoint, TimmCheckpoint, load_encoder_weights

TILES = 8


class FrozenEncoder:
    """Frozen encoder whose deepest feature map is averaged; timm networks use their own pooling.

    Args:
        checkpoint: encoder checkpoint.
        device: device to compute on.
    """

    def __init__(self, checkpoint: EncoderCheckpoint | TimmCheckpoint, device: torch.device | str = "cpu") -> None:
        self.input_channels, self.patch_size, self.device = checkpoint.input_channels, checkpoint.patch_size, device
        if isinstance(checkpoint, TimmCheckpoint):
            network = checkpoint.build_network()
        else:
            arguments = (checkpoint.name, self.patch_size, self.input_channels, checkpoint.overrides)
            network = BackboneDescription(*arguments).build()
            load_encoder_weights(cast(SegmentationNetwork, network.encoder), checkpoint)
        self.network = network.to(device).eval()
        if torch.device(device).type == "cpu":
            optimize(self.network)

    @torch.inference_mode()
    def features(self, images: PreparedImages, name: str) -> NDArray:
        """Compute the features of an image, the mean over tiles that cover it; a 2D encoder covers all slices.

        Args:
            images: prepared images; an image of one channel is repeated to the network's channels.
            name: image name.

        Returns:
            (dim,), float32.

        Raises:
            ValueError: if the number of channels of image and network differ.
        """
        channels = images.shapes[name][0]
        if channels not in (1, self.input_channels):
            raise ValueError(f"{name} has {channels} channels, the encoder was trained on {self.input_channels}")
        means, tiles = [], images.tiles(name, self.patch_size)
        while chunk := list(islice(tiles, TILES)):
            batch = torch.stack(chunk).to(self.device)
            means.append(self.network(batch.expand(-1, self.input_channels, *batch.shape[2:])))
        return torch.cat(means).mean(0).float().cpu().numpy()
