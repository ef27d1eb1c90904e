"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import sys

import pytest

from nnunet_transformers.architectures import (
    MiTClassifier,
    MiTPair,
    class_path,
    create_network,
    get_network,
)
from tests.architectures.test_networks import INSTALLED

DOCUMENTED = [create_network, class_path, MiTClassifier, MiTPair]
DOCUMENTED += sorted({get_network(name).network_class for name in INSTALLED}, key=lambda c: c.__name__)


@pytest.mark.parametrize("documented", DOCUMENTED, ids=lambda d: d.__name__)
def test_examples(documented):
    namespace = vars(sys.modules[documented.__module__])
    (test,) = doctest.DocTestFinder(recurse=False).find(documented, documented.__name__, globs=dict(namespace))
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0
