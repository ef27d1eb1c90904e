"""Texts that stand for places on the hub."""

from __future__ import annotations

import pytest

from nnunet_transformers.hub import Address

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://owner/name", Address("owner/name")),
        ("hf://owner/name/encoder.pth", Address("owner/name", "encoder.pth")),
        ("hf://owner/name/a/b.pth@v1.0", Address("owner/name", "a/b.pth", "v1.0")),
        ("hf://owner/name@refs/pr/1", Address("owner/name", "", "refs/pr/1")),
        (f"hf://o-1/n.2_x@{COMMIT}", Address("o-1/n.2_x", "", COMMIT)),
        ("hf://owner/name/", Address("owner/name")),
        ("hf://owner/name/a@2x.pth@main", Address("owner/name", "a@2x.pth")),
    ],
)
def test_parse(text, expected):
    address = Address.parse(text)
    assert address == expected
    assert Address.parse(str(address)) == address
    assert address.is_pinned == (expected.revision == COMMIT)


@pytest.mark.parametrize(
    "text",
    [
        "hf://owner",
        "hf:///name",
        "hf://owner//file",
        "hf://owner/na--me",
        "hf://owner/..",
        "hf://owner/na me",
        "hf://-o/name",
        f"hf://owner/{'n' * 97}",
        "hf://datasets/owner/name",
        "hf://spaces/owner",
        "hf://owner/name@",
        "hf://owner/name/../x",
        "hf://owner/name/a\\b",
        "hf://owner/name/a\x1b[2J",
        # a revision is the name of a file in the cache
        "hf://owner/name@../../x",
        "hf://owner/name@/etc/x",
        "",
    ],
)
def test_others(text):
    with pytest.raises(ValueError):
        Address.parse(text)


def test_urls():
    assert Address.parse("hf://o/n/a/b.pth@v1").url("https://hub") == "https://hub/o/n/resolve/v1/a/b.pth"
    assert Address.parse("hf://o/n").url("https://hub") == "https://hub/o/n/tree/main"
    # in which a # begins something else
    assert (
        Address("o/n", "a b#1.pth", "refs/pr/1").url("https://hub")
        == "https://hub/o/n/resolve/refs%2Fpr%2F1/a%20b%231.pth"
    )


def test_a_revision_that_is_left_out():
    with pytest.raises(ValueError, match="'hf://o/n@' has no revision after its @"):
        Address.parse("hf://o/n@")
