"""MiT in 2D and 3D with shared layers: the network that UniMiSS pretrains.

Xie et al., "UniMiSS: Universal Medical Self-Supervised Learning via Breaking Dimensionality Barrier", ECCV 2022,
section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .._arguments import PerAxis, in_plane
from .._pair import TOKEN_PREFIX, NetworkPair
from .trunk import MiTTrunk


class MiTPair(NetworkPair):
    """A 2D and a 3D trunk that share linear layers, layer norms of equal shape, and the SSL token.

    Each form has its own convolutions (stem, patch embeddings, spatial reduction), their norms and position embeddings.
    MiT-22 has 43.9 M parameters, of which 16.9 M are shared. Slices of a volume enter the 2D form at their own size,
    with interpolated position embeddings, where its strides allow that.

    Args:
        patch_size_2d, patch_size_3d: edge lengths in pixels and voxels.
        input_channels_2d, input_channels_3d: image channels.
        patch_embed_stride: voxels per token; the 2D form drops the first axis of all arguments with an entry per axis.
        trunk_arguments: further arguments of ``MiTTrunk``, for both forms.

    Raises:
        ValueError: as ``MiTTrunk``.

    Examples:
        >>> import torch
        >>> from nnunet_transformers.architectures import create_network
        >>> pair = MiTPair(patch_size_2d=(64, 64), patch_size_3d=(16, 64, 64))
        >>> pair(torch.zeros(2, 3, 64, 64)).shape, pair(torch.zeros(2, 1, 16, 64, 64)).shape
        (torch.Size([2, 48]), torch.Size([2, 48]))
        >>> network = create_network("mit_7", 1, 14, (16, 64, 64))
        >>> network.load_state_dict(pair.form_weights(3), strict=False).unexpected_keys
        []
    """

    def __init__(
        self,
        patch_size_2d: Sequence[int] = (224, 224),
        patch_size_3d: Sequence[int] = (16, 96, 96),
        input_channels_2d: int = 3,
        input_channels_3d: int = 1,
        patch_embed_stride: PerAxis = (2, 4, 4),
        **trunk_arguments: Any,
    ) -> None:
        arguments = {**trunk_arguments, "patch_embed_stride": patch_embed_stride, "ssl_token": True}
        form_2d = MiTTrunk(input_channels_2d, patch_size_2d, **in_plane(arguments))
        form_3d = MiTTrunk(input_channels_3d, patch_size_3d, **arguments)
        super().__init__(form_2d, form_3d, form_2d.norm_dim)
        form_3d.encoder.token = form_2d.encoder.token
        if form_2d.takes(slice_size := form_3d.patch_size[1:]):
            self.slice_size = slice_size
            form_2d.image_sizes.add(slice_size)

    def form_weights(self, ndim: int, ssl_token: bool = False) -> dict[str, Tensor]:
        """Weights of one form, by the names of ``MiT``.

        Args:
            ndim: 2 or 3.
            ssl_token: keep the SSL token's weights, for ``MiTTrunk`` and ``MiTClassifier``.

        Returns:
            a state dict of stem, encoder and decoder. It covers a ``MiT`` of the same patch size except the heads, the
            last up-sampling and the convolution after it.
        """
        weights = self.form(ndim).state_dict()
        return {name: value for name, value in weights.items() if ssl_token or ".token" not in name}

    def token_weights(self, ndim: int) -> dict[str, Tensor]:
        """Weights of the encoder's SSL token, by ``MiTClassifier``'s names after ``TOKEN_PREFIX``."""
        weights = self.form_weights(ndim, ssl_token=True)
        return {
            f"{TOKEN_PREFIX}{name}": value
            for name, value in weights.items()
            if name.startswith("encoder.") and ".token" in name
        }
