"""A 2D and a 3D network that share the layers independent of dimensionality (UniMiSS, ECCV 2022, section 3)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, cast

from torch import Tensor, nn

TOKEN_PREFIX = "ssl_token."


class NetworkPair(nn.Module, ABC):
    """A 2D and a 3D form of a network that share linear layers and layer norms of equal names and shapes.

    A batch is either 2D or 3D, so the parameters that only the other form has get no gradient.

    Args:
        form_2d, form_3d: the two forms; layers of the second are replaced by those of the first.
        dim: output channels of both.

    Attributes:
        slice_size: height and width at which the slices of a volume enter the 2D form, by default its patch size.
    """

    slice_size: tuple[int, ...]

    def __init__(self, form_2d: nn.Module, form_3d: nn.Module, dim: int) -> None:
        super().__init__()
        self.form_2d, self.form_3d, self.dim = form_2d, form_3d, dim
        self.slice_size = cast(Any, form_2d).patch_size
        layers = dict(form_3d.named_modules())
        for name, module in form_2d.named_modules():
            is_dimensionless = isinstance(module, (nn.Linear, nn.LayerNorm))
            if is_dimensionless and name in layers and _shapes(module) == _shapes(layers[name]):
                parent, _, child = name.rpartition(".")
                setattr(form_3d.get_submodule(parent), child, module)

    def form(self, ndim: int) -> nn.Module:
        """The network for images of 2 or 3 dimensions.

        Raises:
            ValueError: on any other number.
        """
        if ndim not in (2, 3):
            raise ValueError(f"there is a 2D and a 3D form, none of {ndim} dimensions")
        return self.form_2d if ndim == 2 else self.form_3d

    @abstractmethod
    def form_weights(self, ndim: int) -> dict[str, Tensor]:
        """Weights of one form (``ndim`` 2 or 3) that initialise a segmentation network, by its names."""

    def token_weights(self, ndim: int) -> dict[str, Tensor]:
        """Weights of one form's SSL token, by the classifier's names after ``TOKEN_PREFIX``; none by default.

        Segmentation networks have no SSL token. The prefix keeps these weights apart from those of the encoder.
        """
        return {}

    def forward(self, image: Tensor) -> Tensor:
        """Map (batch, channels, *patch size of either form) to the output of that form, (batch, dim)."""
        return self.form(image.dim() - 2)(image)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
