"""Features of a frozen encoder, one vector for each prepared image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, product

import numpy as np
import torch
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from numpy.typing import NDArray
from torch import Tensor

from ..architectures import create_network
from ..checkpoints import EncoderCheckpoint, load_encoder_weights
from ..pretraining.data import PreparedImages

TILES = 8


class FrozenEncoder:
    """A checkpoint's encoder, to be looked at.

    Args:
        checkpoint: of pretraining.
        device: to compute on.
    """

    def __init__(self, checkpoint: EncoderCheckpoint, device: torch.device | str = "cpu") -> None:
        self.input_channels, self.patch_size, self.device = checkpoint.input_channels, checkpoint.patch_size, device
        network = create_network(checkpoint.name, self.input_channels, 2, self.patch_size, **checkpoint.overrides)
        load_encoder_weights(network, checkpoint)
        self.network = network.to(device).eval()

    @torch.inference_mode()
    def features(self, images: PreparedImages, name: str) -> NDArray:
        """The deepest feature map's mean over an image, in tiles of the patch side by side; in 2D over its slices.

        Args:
            images: prepared images; of one channel they are repeated to as many as the network takes.
            name: of the image.

        Returns:
            (feature_channels[-1],), float32.

        Raises:
            ValueError: if the image has another number of channels than the network takes.
        """
        channels = images.shapes[name][0]
        if channels not in (1, self.input_channels):
            raise ValueError(f"{name} has {channels} channels, the encoder was trained on {self.input_channels}")
        means, tiles = [], self._tiles(images, name)
        while chunk := list(islice(tiles, TILES)):
            batch = torch.stack(chunk).to(self.device)
            batch = batch.expand(-1, self.input_channels, *batch.shape[2:])
            means.append(self.network.encode(batch)[-1].flatten(2).mean(2))
        return torch.cat(means).mean(0).float().cpu().numpy()

    def _tiles(self, images: PreparedImages, name: str) -> Iterator[Tensor]:
        wanted: Sequence[int] = (1,) * (3 - len(self.patch_size)) + tuple(self.patch_size)
        size = np.maximum(images.shapes[name][1:], wanted)
        for start in product(*compute_steps_for_sliding_window(tuple(size), tuple(wanted), 1.0)):
            yield images.read(name, start, self.patch_size)
