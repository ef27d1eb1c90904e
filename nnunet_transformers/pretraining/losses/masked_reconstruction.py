"""Masked reconstruction, the loss of MAE and one of Alice's."""

from __future__ import annotations

from torch import Tensor

from ..patchify import patchify


def masked_reconstruction_loss(
    prediction: Tensor, image: Tensor, mask: Tensor, epsilon: float = 1e-6, normalise: bool = True
) -> Tensor:
    """Compute the mean squared error over masked cells (MAE, https://arxiv.org/abs/2111.06377, section 3).

    Args:
        prediction, image: (batch, channels, *size).
        mask: (batch, *grid) of cells that divide the image, true for masked cells.
        epsilon: added to the variance of a cell.
        normalise: normalise each cell of the target to mean 0 and standard deviation 1.

    Examples:
        >>> image, mask = torch.randn(2, 1, 8, 8), torch.ones(2, 2, 2, dtype=torch.bool)
        >>> masked_reconstruction_loss(image + 2, image, mask, normalise=False).round(decimals=3)
        tensor(4.)
    """
    grid = mask.shape[1:]
    prediction, target = patchify(prediction, grid), patchify(image, grid)
    if normalise:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + epsilon).sqrt()
    error = (prediction - target).square().mean(-1)
    mask = mask.flatten(1).to(error.dtype)
    return (error * mask).sum() / mask.sum().clamp(min=1)
