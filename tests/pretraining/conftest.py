"""Fixtures of the pretraining tests."""

import pytest

from benchmarks.synthetic_reports import write_text_encoder


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """Folder of a tiny text encoder and its tokenizer."""
    return str(write_text_encoder(tmp_path_factory.mktemp("bert")))
