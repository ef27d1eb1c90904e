"""The networks by which the contract is checked."""

from __future__ import annotations

import pytest

from nnunet_transformers.testing.network import _smaller


@pytest.mark.parametrize(
    ("own", "smaller"), [((2, 2, 8, 2), (2, 1, 1, 1)), ((1, 3), (1, 1)), ((3, 3, 3, 3, 3, 0), (2, 1, 1, 1, 1, 0))]
)
def test_depths_of_any_number_of_stages(own, smaller):
    """The last number is that of all further stages."""
    assert _smaller((2, 1, 1, 1), own) == smaller
