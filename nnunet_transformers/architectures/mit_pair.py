"""MiT in 2D and 3D at once, sharing what does not know the dimensionality: the network that UniMiSS pretrains.

Xie et al., "UniMiSS: Universal Medical Self-Supervised Learning via Breaking Dimensionality Barrier", ECCV 2022,
section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ._arguments import PerAxis
from .mit_trunk import MiTTrunk


class MiTPair(nn.Module):
    """A 2D and a 3D trunk with the SSL token, whose linear layers and layer norms are the same objects.

    Convolutions (stem, patch embeddings, the attention's reduction), their norms and position embeddings are each
    form's own; the learned token is shared. Of MiT-22's 43.9 M parameters 16.9 M are shared.

    >>> pair = MiTPair()
    >>> pair(torch.zeros(2, 3, 224, 224)).shape, pair(torch.zeros(2, 1, 16, 96, 96)).shape
    (torch.Size([2, 48]), torch.Size([2, 48]))
    >>> network = create_network("mit_7", 1, 14, (16, 96, 96))
    >>> network.load_state_dict(pair.form_weights(3), strict=False)

    A batch has one dimensionality, and the other form's own parameters then get no gradient.

    Args:
        patch_size_2d, patch_size_3d: edge lengths in pixels and voxels.
        input_channels_2d, input_channels_3d: image channels.
        patch_embed_stride_2d, patch_embed_stride_3d: pixels or voxels per token.
        trunk_arguments: of ``MiTTrunk``, for both forms.

    Raises:
        ValueError: as ``MiTTrunk`` does.
    """

    def __init__(
        self,
        patch_size_2d: Sequence[int] = (224, 224),
        patch_size_3d: Sequence[int] = (16, 96, 96),
        input_channels_2d: int = 3,
        input_channels_3d: int = 1,
        patch_embed_stride_2d: PerAxis = 4,
        patch_embed_stride_3d: PerAxis = (2, 4, 4),
        **trunk_arguments: Any,
    ) -> None:
        super().__init__()
        self.form_2d = MiTTrunk(
            input_channels_2d,
            patch_size_2d,
            patch_embed_stride=patch_embed_stride_2d,
            ssl_token=True,
            **trunk_arguments,
        )
        self.form_3d = MiTTrunk(
            input_channels_3d,
            patch_size_3d,
            patch_embed_stride=patch_embed_stride_3d,
            ssl_token=True,
            **trunk_arguments,
        )
        _share(self.form_2d, self.form_3d)

    def form(self, ndim: int) -> MiTTrunk:
        """The trunk for images of two or three dimensions.

        Raises:
            ValueError: on any other number.
        """
        if ndim not in (2, 3):
            raise ValueError(f"MiT has a 2D and a 3D form, none of {ndim} dimensions")
        return self.form_2d if ndim == 2 else self.form_3d

    def forward(self, image: Tensor) -> Tensor:
        """(batch, channels, *patch size of either form) to the normalised SSL token (batch, embed_dims[0])."""
        return self.form(image.dim() - 2)(image)

    def form_weights(self, ndim: int, ssl_token: bool = False) -> dict[str, Tensor]:
        """The weights of one form, by the names of ``MiT``.

        Args:
            ndim: 2 or 3.
            ssl_token: keep what belongs to the token, for ``MiTTrunk`` and ``MiTClassifier``.

        Returns:
            a state dict of stem, encoder and decoder; a ``MiT`` of the same patch size lacks nothing in it but its
            heads, the last up-sampling and the convolution after it.
        """
        weights = self.form(ndim).state_dict()
        return {name: value for name, value in weights.items() if ssl_token or ".token" not in name}


def _share(source: MiTTrunk, target: MiTTrunk) -> None:
    for name, module in source.named_modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            parent, _, child = name.rpartition(".")
            setattr(target.get_submodule(parent), child, module)
    target.encoder.token = source.encoder.token
