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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nnunet_transformers.weights.limits import ZIP_START
from nnunet_transformers.weights.named import PLAIN_NAMES
from nnunet_transformers.weights.restricted import CALLABLES, NAMES

TYPES_OF_NUMBERS = {str(value) for value in vars(torch).values() if isinstance(value, torch.dtype)}
HARMLESS = (*CALLABLES, *sorted(PLAIN_NAMES - TYPES_OF_NUMBERS))
# these cannot be called
VALUES_BY_NAME = (*NAMES[:4], "torch.float32", "torch.uint8", "torch.FloatStorage", "torch.storage.UntypedStorage")
MODULE = "stranger"
# each with the argument by which it would leave the mark; without one the arguments are any
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
TEXTS = ["", "a", "f4", "<f8", "O8", "V8", "U3", "<", "b", "latin1", "utf-16", "cpu"]
TEXTS += ["__class__", "__setstate__", "items"]
PLAIN_TYPES = (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)
# opcodes of the values that are replaced
VALUES = ("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE")


def forge(content: bytes, rng: random.Random, mark: str) -> bytes:
    """Replace one to three values in the pickle of a file of ``torch.save``.

    Args:
        content: the whole file, of today's layout or of that before PyTorch 1.6.
        rng: source of the choices.
        mark: file that executed code would make.
    """
    names = [*HARMLESS, *VALUES_BY_NAME, *(HARMFUL if rng.random() < 0.5 else ())]
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
            return _number(rng.choice(NUMBERS))
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
            return _bytes(rng.randbytes(rng.choice((0, 1, 4, 8, 12))))
        case "type" | "scalar" | "array" as kind:
            return _numpy(kind, rng, inner)
    name = rng.choice(names)
    if name in HARMFUL:
        arguments = b"(" + (_text(HARMFUL[name].format(mark)) if HARMFUL[name] else inner(1)) + b"t"
    else:
        arguments = b"(" + inner(rng.randrange(5)) + b"t"
    made = push_name(name) + rng.choice((b"", arguments + b"R", arguments + b"R", arguments + b"\x81"))
    # a state, and sometimes a second one
    return made + b"".join(inner(1) + b"b" for _ in range(rng.choice((0, 0, 1, 2))))


KINDS_OF_OBJECTS = ("tuple", "list", "mapping", "bytes", "type", "scalar", "array", *("call",) * 8)
NUMPY_CODES = ("f4", "f8", "i8", "u2", "b1", "c8", "U2", "S4", "O8", "V8", "M8", "f16", "", "f4,f4", "|V0", "i3")


def _numpy(kind: str, rng: random.Random, inner: Callable[[int], bytes]) -> bytes:
    """Return a type, scalar or array as NumPy pickles them, now and then with another object in one of its places."""

    def part(genuine: bytes) -> bytes:
        return genuine if rng.random() < 0.9 else inner(1)

    parts = [_number(3), _text(rng.choice("<>|=")), b"N", b"N", b"N", _number(-1), _number(-1), _number(0)]
    numpy_type = push_name("numpy.dtype") + b"(" + part(_text(rng.choice(NUMPY_CODES))) + b"\x89\x88tR"
    numpy_type += b"(" + b"".join(map(part, parts)) + b"tb"
    data = part(_bytes(rng.randbytes(rng.choice((0, 4, 8, 8, 16)))))
    core = rng.choice(("core", "_core"))
    match kind:
        case "type":
            return numpy_type
        case "scalar":
            return push_name(f"numpy.{core}.multiarray.scalar") + part(numpy_type) + data + b"\x86R"
    shape = b"(" + b"".join(part(_number(rng.choice((0, 1, 2, 4)))) for _ in range(rng.randrange(3))) + b"t"
    made = push_name(f"numpy.{core}.multiarray._reconstruct") + push_name("numpy.ndarray") + _number(0) + b"\x85"
    return made + _bytes(b"b") + b"\x87R(" + _number(1) + part(shape) + part(numpy_type) + part(b"\x89") + data + b"tb"


def _number(number: int) -> bytes:
    return b"J" + struct.pack("<i", number)


def _bytes(data: bytes) -> bytes:
    if not data:
        return push_name("builtins.bytes") + b")R"
    return push_name("_codecs.encode") + _text(data.decode("latin1")) + _text("latin1") + b"\x86R"


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def push_name(name: str) -> bytes:
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
    elif type(content) not in PLAIN_TYPES:
        raise TypeError(f"a {type(content)}")
