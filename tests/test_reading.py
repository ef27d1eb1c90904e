"""Whatever a reader raises becomes one line that names the file; errors of the file system stay what they are."""

from __future__ import annotations

import struct

import pytest

from nnunet_transformers._reading import LONGEST_REASON, RefusedError, read_json, reading

ERRORS = [IndexError("list index out of range"), TypeError("t"), AssertionError(), struct.error("unpack"), EOFError()]


@pytest.mark.parametrize("error", [*ERRORS, RuntimeError("first\nsecond"), OSError(22, "Invalid argument")], ids=repr)
def test_errors_of_readers(error):
    with (
        pytest.raises(ValueError, match=r"^a\.pth is truncated or not a checkpoint: .*\S; copy it again$") as caught,
        reading("a.pth", "a checkpoint", "copy it again"),
    ):
        raise error
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [RefusedError("complete"), KeyboardInterrupt(), FileNotFoundError(2, "no", "a.pth")])
def test_what_is_passed_on(error):
    with pytest.raises(type(error)) as caught, reading("a.pth", "a checkpoint"):
        raise error
    assert caught.value is error


def test_reasons_are_short_and_printable():
    with pytest.raises(ValueError, match=r"\\x1b\[2J") as caught, reading("a.pth", "a checkpoint"):
        raise ValueError("\x1b[2J" * 1000)
    assert len(str(caught.value)) < LONGEST_REASON + 100
    with pytest.raises(ValueError, match="KeyError: 'a'"), reading("a.pth", "a checkpoint"):
        {}["a"]


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"{", "Expecting property name"),
        (b"[" * 100_000, "recursion"),
        (b"\xff{}", "can't decode"),
        (b"[1]", "it holds a list, not an object"),
        (b'{"a": ' + b"9" * 5000 + b"}", "4300 digits"),
    ],
    ids=["half", "deep", "bytes", "list", "digits"],
)
def test_json(content, reason, tmp_path):
    (tmp_path / "plans.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"plans\.json is truncated or not a plan: .*{reason}"):
        read_json(tmp_path / "plans.json", "a plan")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "other.json", "a plan")
