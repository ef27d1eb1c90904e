"""Weights that the papers' authors released."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..architectures import get_checkpoint_filter


def from_reference(family: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate a release's weights to this package's names.

    >>> network = create_network("qt_unet_tiny", 1, 3, (64, 64, 64), reference_compat=True)
    >>> network.load_state_dict(from_reference("qt_unet", released))

    Args:
        family: "qt_unet".
        state_dict: weights with the release's names; prefixes of DataParallel and torch.compile may be there.

    Returns:
        A state dict that loads strictly into the same variant, built with ``reference_compat=True``.

    Raises:
        ValueError: if the family is unknown or the weights are not the family's.
    """
    plain = {key.removeprefix("module.").removeprefix("_orig_mod."): value for key, value in state_dict.items()}
    return get_checkpoint_filter(family)(plain)
