"""Forge weight files: values in their pickles are replaced at random by calls, of what is harmless and what is not.

The archive around a forged pickle has right checksums, so that the pickle reaches the reader. Half of the forgeries
name only what weight files may name, with arguments and states that nobody would write; the others also name what runs
code: a shell, an import, an evaluation, a module ``stranger`` that leaves a mark when it is imported.
"""

from __future__ import annotations

import io
import pickletools
import random
import struct
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nnunet_transformers.weights.limits import ZIP_START
from nnunet_transformers.weights.named import PLAIN_NAMES
from nnunet_transformers.weights.restricted import INERT

HARMLESS = (*sorted(PLAIN_NAMES), *(name for _, name in INERT), "torch.FloatStorage", "torch.storage.UntypedStorage")
# each with the arguments by which it would leave the mark
MODULE = "stranger"
HARMFUL = {
    "os.system": "touch {}",
    "posix.system": "touch {}",
    "builtins.exec": "open({!r}, 'w')",
    "builtins.eval": "open({!r}, 'w')",
    "builtins.__import__": MODULE,
    "importlib.import_module": MODULE,
    "stranger.Thing": "",
    "pathlib.Path.touch": "{}",
    "subprocess.getoutput": "touch {}",
    "torch.hub.load": MODULE,
    "torch.load": "{}",
    "torch.storage._load_from_bytes": "{}",
    "numpy.load": "{}",
    "builtins.getattr": "__class__",
    "builtins.bytearray": "",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "",
}
NUMBERS = (-1, 0, 1, 2, 3, 8, 300, 65_535, 2**31 - 1)
TEXTS = (
    "",
    "a",
    "f4",
    "<f8",
    "O8",
    "V8",
    "U3",
    "<",
    "b",
    "latin1",
    "utf-16",
    "cpu",
    "__class__",
    "__setstate__",
    "items",
)
VALUES = ("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE")


def forge(content: bytes, rng: random.Random, mark: str) -> bytes:
    """Replace one to three values in the pickle of a file of ``torch.save``.

    Args:
        content: the whole file, of today's layout or of that before PyTorch 1.6.
        rng: source of the choices.
        mark: file that executed code would make.
    """
    names = [*HARMLESS, *(HARMFUL if rng.random() < 0.5 else ())]
    if content.startswith(ZIP_START):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
        (name,) = (name for name in entries if name.endswith("/data.pkl"))
        entries[name] = _forge_pickle(entries[name], rng, names, mark)
        forged = io.BytesIO()
        with zipfile.ZipFile(forged, "w") as archive:
            for name, value in entries.items():
                archive.writestr(name, value)
        return forged.getvalue()
    # the fourth pickle, after magic number, version and system
    stream = io.BytesIO(content)
    for _ in range(3):
        _end_of_pickle(stream)
    start = stream.tell()
    end = _end_of_pickle(stream)
    return content[:start] + _forge_pickle(content[start:end], rng, names, mark) + content[end:]


def _end_of_pickle(stream: io.BytesIO) -> int:
    for _ in pickletools.genops(stream):
        pass
    return stream.tell()


def _forge_pickle(content: bytes, rng: random.Random, names: Sequence[str], mark: str) -> bytes:
    opcodes = list(pickletools.genops(content))
    starts: list[Any] = [position for _, _, position in opcodes] + [len(content)]
    places = [i for i, (opcode, _, _) in enumerate(opcodes) if opcode.name in VALUES]
    replaced = {place: _object(rng, names, mark) for place in rng.sample(places, rng.choice((1, 1, 2, 3)))}
    return b"".join(replaced.get(i, content[starts[i] : starts[i + 1]]) for i in range(len(opcodes)))


def _object(rng: random.Random, names: Sequence[str], mark: str, depth: int = 0) -> bytes:
    """Return opcodes that push one object."""

    def inner(number: int) -> bytes:
        return b"".join(_object(rng, names, mark, depth + 1) for _ in range(number))

    match rng.choice(("number", "text", "memo") if depth > 3 else ("number", "text", "memo", *KINDS_OF_OBJECTS)):
        case "number":
            return b"J" + struct.pack("<i", rng.choice(NUMBERS))
        case "text":
            return _text(rng.choice(TEXTS))
        case "memo":  # some object of the file
            return b"h" + bytes([rng.randrange(30)])
        case "tuple":
            return b"(" + inner(rng.randrange(6)) + b"t"
        case "list":
            return b"](" + inner(rng.randrange(4)) + b"e"
        case "mapping":
            return b"}(" + b"".join(_text(rng.choice(TEXTS)) + inner(1) for _ in range(rng.randrange(3))) + b"u"
        case "bytes":
            data = "".join(chr(rng.randrange(256)) for _ in range(rng.choice((0, 1, 4, 8, 12))))
            return _global("_codecs.encode") + _text(data) + _text("latin1") + b"\x86R"
    name = rng.choice(names)
    if name in HARMFUL:
        arguments = b"(" + (_text(HARMFUL[name].format(mark)) if HARMFUL[name] else inner(1)) + b"t"
    else:
        arguments = b"(" + inner(rng.randrange(5)) + b"t"
    made = _global(name) + rng.choice((b"", arguments + b"R", arguments + b"R", arguments + b"\x81"))
    # a state, and sometimes a second one
    return made + b"".join(inner(1) + b"b" for _ in range(rng.choice((0, 0, 1, 2))))


KINDS_OF_OBJECTS = ("tuple", "list", "mapping", "bytes", *("call",) * 8)


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _global(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


@contextmanager
def watched(folder: Path) -> Iterator[Path]:
    """Make a module that leaves a mark when it is imported, and return the mark's path."""
    mark = folder / "executed"
    (folder / f"{MODULE}.py").write_text(f"open({str(mark)!r}, 'w')\n")
    sys.path.insert(0, str(folder))
    try:
        yield mark
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(MODULE, None)


def check_inert(content: Any) -> None:
    """Check that content is of tensors and plain types alone, down to the last value.

    Raises:
        TypeError: names the type that is not.
    """
    if type(content) is dict:
        content = [*content, *content.values()]
    if type(content) in (list, tuple, set, frozenset):
        for value in content:
            check_inert(value)
    elif type(content) is torch.Tensor:
        if vars(content) or content.requires_grad:
            raise TypeError("a tensor with attributes")
    elif type(content) not in (
        type(None),
        bool,
        int,
        float,
        complex,
        str,
        bytes,
        torch.Size,
        torch.dtype,
        torch.device,
    ):
        raise TypeError(f"a {type(content)}")
