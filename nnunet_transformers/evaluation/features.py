"""Features of a frozen encoder, one vector for each prepared image."""

from __future__ import annotations

from itertools import islice

import torch
from numpy.typing import NDArray

from ..classification.classifier import BackboneDescription
from ..cpu import optimize
from ..pretraining.data import PreparedImages
from ..weights import EncoderCheckpoint, TimmCheckpoint, load_encoder_weights

TILES = 8


class FrozenEncoder:
    """A checkpoint's encoder, to be looked at: its deepest feature map averaged, of timm's networks as timm pools.

    Args:
        checkpoint: of pretraining.
        device: to compute on.
    """

    def __init__(self, checkpoint: EncoderCheckpoint | TimmCheckpoint, device: torch.device | str = "cpu") -> None:
        self.input_channels, self.patch_size, self.device = checkpoint.input_channels, checkpoint.patch_size, device
        if isinstance(checkpoint, TimmCheckpoint):
            network = checkpoint.build_network()
        else:
            arguments = (checkpoint.name, self.patch_size, self.input_channels, checkpoint.overrides)
            network = BackboneDescription(*arguments).build()
            load_encoder_weights(network.encoder, checkpoint)
        self.network = network.to(device).eval()
        if torch.device(device).type == "cpu":
            optimize(self.network)

    @torch.inference_mode()
    def features(self, images: PreparedImages, name: str) -> NDArray:
        """The mean of the features over an image, in tiles of the patch side by side; in 2D over its slices.

        Args:
            images: prepared images; of one channel they are repeated to as many as the network takes.
            name: of the image.

        Returns:
            (dim,), float32.

        Raises:
            ValueError: if the image has another number of channels than the network takes.
        """
        channels = images.shapes[name][0]
        if channels not in (1, self.input_channels):
            raise ValueError(f"{name} has {channels} channels, the encoder was trained on {self.input_channels}")
        means, tiles = [], images.tiles(name, self.patch_size)
        while chunk := list(islice(tiles, TILES)):
            batch = torch.stack(chunk).to(self.device)
            means.append(self.network(batch.expand(-1, self.input_channels, *batch.shape[2:])))
        return torch.cat(means).mean(0).float().cpu().numpy()
