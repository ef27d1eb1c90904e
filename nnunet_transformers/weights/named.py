"""Which classes and functions a weight file names, found by reading its pickles and running none of them."""

from __future__ import annotations

import io
import pickletools
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from typing import IO, Any

import torch

from .limits import ZIP_START

# of a file of PyTorch before 1.6: magic number, version, system, content and the keys of the storages, which follow
PICKLES_BEFORE_ARCHIVES = 5
# what torch.save writes for tensors and plain types. PyTorch's restricted reader accepts more, among it what takes as
# much memory as a number in the file says
PLAIN_NAMES = frozenset(
    (
        "_codecs.encode",
        "builtins.complex",
        "builtins.set",
        "collections.Counter",
        "collections.OrderedDict",
        "torch.Size",
        "torch.Tensor",
        "torch.device",
        "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout",
        "torch._tensor._rebuild_from_type_v2",
        *(f"torch._utils._rebuild_{name}" for name in ("tensor", "tensor_v2", "tensor_v3")),
        *(f"torch._utils._rebuild_{name}" for name in ("parameter", "parameter_with_state")),
        # these are refused later, as tensors that are not plain ones
        *(f"torch._utils._rebuild_{name}" for name in ("sparse_tensor", "meta_tensor_no_storage")),
        *(str(value) for value in vars(torch).values() if isinstance(value, torch.dtype)),
    )
)
STORAGE = re.compile(r"torch\.(cuda\.|storage\.)?\w+Storage")


class UnknownProtocolError(ValueError):
    """Raised for a pickle that PyTorch's restricted reader does not read."""


def names_in(file: IO[bytes]) -> list[str]:
    """Return the classes and functions that a file of ``torch.save`` names, each once, in their order.

    Args:
        file: the open file; it is left at its beginning.

    Returns:
        names with their modules, those of Python 2 as those of Python 3.

    Raises:
        UnknownProtocolError: if a pickle is of a protocol after 2, in which names can be put together.
        Exception: whatever ``pickletools`` and PyTorch raise for a damaged file, to be translated by ``reading``.
    """
    file.seek(0)
    is_archive = file.read(len(ZIP_START)) == ZIP_START
    file.seek(0)
    # the record that PyTorch will read: another reader of archives could find another one of the same name
    pickles = io.BytesIO(torch._C.PyTorchFileReader(file).get_record("data.pkl")) if is_archive else file
    names: dict[str, None] = {}
    for _ in range(1 if is_archive else PICKLES_BEFORE_ARCHIVES):
        argument: Any
        for opcode, argument, _ in pickletools.genops(pickles):
            if opcode.proto > 2 or (opcode.name == "PROTO" and int(argument or 0) > 2):
                raise UnknownProtocolError("parts of a later pickle protocol")
            if opcode.name in ("GLOBAL", "INST"):
                module, _, name = str(argument).partition(" ")
                module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
                names[f"{module}.{name}"] = None
    file.seek(0)
    return list(names)


def is_plain_name(name: str) -> bool:
    """Tell whether ``torch.save`` writes a name for tensors and plain types."""
    return name in PLAIN_NAMES or STORAGE.fullmatch(name) is not None
