"""A 2D and a 3D network at once, sharing what does not know the dimensionality (UniMiSS, ECCV 2022, section 3)."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

TOKEN_PREFIX = "ssl_token."


class NetworkPair(nn.Module, ABC):
    """Two forms of a network whose linear layers and layer norms are the same objects where their shapes agree.

    A batch has one dimensionality, and the other form's own parameters then get no gradient.

    Args:
        form_2d, form_3d: the two forms; the second takes over layers of the first.
        dim: output channels of both.
    """

    def __init__(self, form_2d: nn.Module, form_3d: nn.Module, dim: int) -> None:
        super().__init__()
        self.form_2d, self.form_3d, self.dim = form_2d, form_3d, dim
        layers = dict(form_3d.named_modules())
        for name, module in form_2d.named_modules():
            knows_no_dimension = isinstance(module, (nn.Linear, nn.LayerNorm))
            if knows_no_dimension and name in layers and _shapes(module) == _shapes(layers[name]):
                parent, _, child = name.rpartition(".")
                setattr(form_3d.get_submodule(parent), child, module)

    def form(self, ndim: int) -> nn.Module:
        """The network for images of two or three dimensions.

        Raises:
            ValueError: on any other number.
        """
        if ndim not in (2, 3):
            raise ValueError(f"there is a 2D and a 3D form, none of {ndim} dimensions")
        return self.form_2d if ndim == 2 else self.form_3d

    @abstractmethod
    def form_weights(self, ndim: int) -> dict[str, Tensor]:
        """The weights of one form that start a segmentation network, by its names."""

    def token_weights(self, ndim: int) -> dict[str, Tensor]:
        """The weights that only a classifier with a token has, by its names after ``TOKEN_PREFIX``; none by default.

        A segmentation network has no token: under names of their own these weights do not interfere with loading an
        encoder as a whole.
        """
        return {}

    def forward(self, image: Tensor) -> Tensor:
        """(batch, channels, *patch size of either form) to the output of that form, (batch, dim)."""
        return self.form(image.dim() - 2)(image)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
