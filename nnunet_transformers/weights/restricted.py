"""What weight files of others hold besides tensors and plain types, read as inert data.

Training scripts save their arguments, logs and configuration beside the weights. PyTorch's restricted reader takes a
callable for each name that it meets in a file; the callables here only store what they are given, in place of the
classes of that name, none of which is imported. ``as_plain`` then turns what they stored into plain types:

| in the file | read as |
|---|---|
| ``argparse.Namespace`` and other bags of attributes, configurations | mapping |
| ``defaultdict``, ``Counter``, ``OrderedDict`` | mapping |
| NumPy scalar | number or text |
| NumPy array | tensor; nested lists if it holds texts |
| path, time, version, NumPy type, name of a class | text |

NumPy's own functions are not among them: with a forged type they read any bytes as pointers.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from itertools import product
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

# codes of NumPy's types of numbers and texts, as its pickles have them
NUMPY_CODE = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,4}")


class NotInertError(TypeError):
    """Raised for something that cannot be read as inert data; the message is its name."""


class Attributes(dict[str, Any]):
    """The attributes of an object, in place of it."""

    __slots__ = ()

    def __new__(cls, *_: Any) -> Attributes:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        # attributes, or a pair of those in __dict__ and those in __slots__
        for part in state if isinstance(state, tuple) else (state,):
            self.update(part or {})
        # nodes of omegaconf refer to their parents, so that the content would contain itself
        self.pop("_parent", None)


class Items:
    """Makes a mapping in place of one of a derived class; PyTorch's reader adds items to no other class."""

    def __new__(cls, *arguments: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        # one argument may be a mapping; defaultdict's is a factory
        return OrderedDict(*(argument for argument in arguments[:1] if isinstance(argument, dict)))


class Text:
    """Makes a text in place of an object that is one."""

    def __new__(cls, text: Any = "", *_: Any) -> str:  # type: ignore[misc]
        if not isinstance(text, str):
            raise TypeError(f"a {type(text).__name__} in place of a text")
        return text


class NumpyType:
    """A type of NumPy, by its code and its byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = code if isinstance(code, str) else "", "="

    def __setstate__(self, state: Any) -> None:
        _, self.order, *structure = state[:5]
        if structure != [None] * 3 or self.order not in ("<", ">", "=", "|"):
            raise NotInertError("structured NumPy values")

    def resolve(self) -> np.dtype[Any]:
        """Return NumPy's own type, of numbers or texts."""
        if not NUMPY_CODE.fullmatch(self.code):
            is_object = self.code.startswith("O")
            raise NotInertError("NumPy arrays of objects" if is_object else f"NumPy values of type {self.code!r}")
        return np.dtype(self.order + self.code)


class NumpyArray:
    """An array, or a view of the bytes in the file as one."""

    __slots__ = ("value",)

    def __init__(self, *_: Any) -> None:
        self.value: np.ndarray[Any, Any] = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, is_fortran, data = state
        self.value = _array(kind, shape, data, "F" if is_fortran else "C")


def _array(kind: NumpyType, shape: tuple[int, ...], data: bytes, order: Any = "C") -> np.ndarray[Any, Any]:
    numpy_type = kind.resolve()
    if type(data) is not bytes:
        raise TypeError("a NumPy array without bytes")
    array: np.ndarray[Any, Any] = np.ndarray(shape, numpy_type, data, order=order)
    if array.nbytes != len(data):
        raise ValueError("a NumPy array has another size than its bytes")
    return array


def _scalar(kind: NumpyType, data: bytes) -> Any:
    return _array(kind, (), data).item()


def _posix_path(*parts: str) -> str:
    return str(PurePosixPath(*parts))


def _windows_path(*parts: str) -> str:
    return str(PureWindowsPath(*parts))


def _no_bytes() -> bytes:
    """Return b"", which pickles call ``bytes`` for; with a number it would take that much memory."""
    return b""


def _list(items: Any = (), *_: Any) -> list[Any]:
    return list(_sequence(items))


def _frozenset(items: Any = ()) -> frozenset[Any]:
    return frozenset(_sequence(items))


def _sequence(items: Any) -> list[Any] | tuple[Any, ...]:
    # a forged tensor would have billions of items
    if not isinstance(items, (list, tuple)):
        raise TypeError(f"a {type(items).__name__} in place of a sequence")
    return items


# what is made in place of each name
CALLABLES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        (
            "argparse.Namespace",
            "types.SimpleNamespace",
            "ml_collections.config_dict.config_dict.ConfigDict",
            "ml_collections.config_dict.config_dict.FrozenConfigDict",
            "mmengine.logging.history_buffer.HistoryBuffer",
            "omegaconf.base.ContainerMetadata",
            "omegaconf.base.Metadata",
            "omegaconf.dictconfig.DictConfig",
            "omegaconf.listconfig.ListConfig",
            *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Boolean", "Float", "Integer", "Path", "String")),
        ),
        Attributes,
    ),
    **dict.fromkeys(
        (
            "addict.addict.Dict",
            "collections.defaultdict",
            "detectron2.config.config.CfgNode",
            "easydict.EasyDict",
            "fvcore.common.config.CfgNode",
            "lightning.fabric.utilities.data.AttributeDict",
            "lightning.pytorch.utilities.parsing.AttributeDict",
            "lightning_fabric.utilities.data.AttributeDict",
            "mmcv.utils.config.ConfigDict",
            "mmengine.config.config.ConfigDict",
            "pytorch_lightning.utilities.parsing.AttributeDict",
            "yacs.config.CfgNode",
        ),
        Items,
    ),
    # NumPy 1 and 2
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": NumpyArray for core in ("core", "_core")},
    "numpy.dtype": NumpyType,
    # Python 3.13 moved them, and moved them back
    **{f"{m}.{p}PosixPath": _posix_path for m, p in product(("pathlib", "pathlib._local"), ("", "Pure"))},
    **{f"{m}.{p}WindowsPath": _windows_path for m, p in product(("pathlib", "pathlib._local"), ("", "Pure"))},
    **{f"datetime.{kind.__name__}": kind for kind in (date, datetime, time, timedelta, timezone)},
    "builtins.bytes": _no_bytes,
    "builtins.frozenset": _frozenset,
    "collections.deque": _list,
    "torch.torch_version.TorchVersion": Text,
}
# names that are not called, such as the types of arguments; each stands for itself, as text
NAMES = (
    *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "object", "str", "tuple")),
    *(f"numpy.{name}" for name in ("bool", "bool_", "float16", "float32", "float64", "ndarray", "str_")),
    *(f"numpy.{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    # Lightning before 1.6 keyed its callbacks by their classes
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "typing.Any",
)
# as ``torch.serialization.safe_globals`` takes them
INERT: tuple[tuple[Any, str], ...] = (
    *((made, name) for name, made in CALLABLES.items()),
    *((name, name) for name in NAMES),
)
# in place of a value whose conversion is not finished
_OPEN = object()
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)


def as_plain(content: Any, size: int) -> Any:
    """Turn what PyTorch's reader made of a file, with the callables of ``INERT``, into tensors and plain types.

    Tensors lose their gradients, hooks and attributes, and mappings their attributes, which a file can set to anything.

    Args:
        content: nested content.
        size: bytes of the file. Its arrays cannot have more, but a forged one can refer to one of them many times.

    Raises:
        NotInertError: if it holds anything else.
        ValueError: if it contains itself, or has more in arrays than ``size``.
    """
    return _Conversion(size)(content)


class _Conversion:
    def __init__(self, size: int) -> None:
        self.remaining = size
        self.converted: dict[int, Any] = {}

    def __call__(self, value: Any) -> Any:
        """Convert a value, once for all the places that refer to it."""
        if type(value) in PLAIN:
            return value
        if id(value) not in self.converted:
            self.converted[id(value)] = _OPEN
            self.converted[id(value)] = self._convert(value)
        if self.converted[id(value)] is _OPEN:
            raise ValueError("its content contains itself")
        return self.converted[id(value)]

    def _convert(self, value: Any) -> Any:
        match value:
            case Tensor():
                return Tensor.detach(value)
            # omegaconf's containers and nodes
            case {"_metadata": _, "_content": inner} | {"_metadata": _, "_val": inner} if type(value) is Attributes:
                return self(inner)
            case dict():
                # the class's own method, as a file can give an OrderedDict another one
                return {self(key): self(item) for key, item in dict.items(value)}
            case list():
                return [self(item) for item in value]
            case tuple() | set() | frozenset():
                return type(value)(self(item) for item in value)
            case NumpyArray():
                return self._numbers(value.value)
            case NumpyType():
                return value.resolve().name
            case date() | time() | timedelta() | timezone():
                return str(value)
        raise NotInertError(_name(value))

    def _numbers(self, array: np.ndarray[Any, Any]) -> Any:
        self.remaining -= array.nbytes
        if self.remaining < 0:
            raise ValueError("its arrays claim more than it holds")
        if array.dtype.kind in "SU":
            return array.tolist()
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))


def _name(value: Any) -> str:
    described = value if isinstance(value, type) else type(value)
    return f"{described.__module__}.{described.__qualname__}"
