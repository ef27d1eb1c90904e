"""A tiny text encoder for the methods that read reports."""

import pytest

from benchmarks.synthetic_reports import write_text_encoder


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """A tiny text encoder's folder."""
    return str(write_text_encoder(tmp_path_factory.mktemp("bert")))
