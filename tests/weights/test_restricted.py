"""What files of others hold besides weights is read as inert data, and what goes beyond is refused by its name."""

from __future__ import annotations

import argparse
import io
import sys
import types
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from copy import deepcopy
from datetime import date, datetime, timedelta, timezone
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest
import torch
from forged_pickles import HARMFUL, check_inert, watched

from nnunet_transformers.weights import load_checkpoint, load_encoder, load_state_dict, save_checkpoint
from nnunet_transformers.weights.file import plain_types_only, read_plain_types, read_state
from nnunet_transformers.weights.named import is_plain_name
from nnunet_transformers.weights.nnunet_checkpoint import read_checkpoint
from nnunet_transformers.weights.restricted import CALLABLES, INERT, NAMES
from tests.conftest import HOSTILE

WEIGHTS = {"a": torch.arange(6.0)}
NUMBERS = (np.float16, np.float32, np.float64, np.int8, np.int32, np.int64, np.uint8, np.uint16, np.bool_, np.complex64)
EXTRAS = {
    "namespace": (argparse.Namespace(lr=1, inner=argparse.Namespace(a=[2])), {"lr": 1, "inner": {"a": [2]}}),
    "simple namespace": (types.SimpleNamespace(lr=1), {"lr": 1}),
    "defaultdict": (defaultdict(list, a=[1]), {"a": [1]}),
    "counter": (Counter("aab"), {"a": 2, "b": 1}),
    "ordered": (OrderedDict(a=OrderedDict(b=1)), {"a": {"b": 1}}),
    "deque": (deque([1, 2], 3), [1, 2]),
    "frozenset": (frozenset([1]), frozenset([1])),
    "bytes": ([b"", b"a\xff"], [b"", b"a\xff"]),
    "path": ([PurePosixPath("/a/b"), Path("a")], ["/a/b", "a"]),
    "windows path": (PureWindowsPath("C:/a"), "C:\\a"),
    "datetime": (datetime(2026, 1, 2, tzinfo=timezone.utc), "2026-01-02 00:00:00+00:00"),
    "date": ([date(2026, 1, 2), timedelta(1)], ["2026-01-02", "1 day, 0:00:00"]),
    "version": (torch.torch_version.TorchVersion("2.6.0"), "2.6.0"),
    "numpy type": ([np.dtype("f4"), np.dtype(">i8"), np.float32], ["float32", "int64", "numpy.float32"]),
    "numpy text": (np.str_("CT"), "CT"),
    "types": ([int, dict, str], ["builtins.int", "builtins.dict", "builtins.str"]),
    "torch": ([torch.Size([1, 2]), torch.float16, torch.device("cpu")],) * 2,
    "mapping of types": ({np.float32: 1, (PurePosixPath("a"),): 2}, {"numpy.float32": 1, ("a",): 2}),
    **{f"{t.__name__} scalar": (t(1), t(1).item()) for t in NUMBERS},
    **{f"{t.__name__} array": (np.arange(3).astype(t), torch.from_numpy(np.arange(3).astype(t))) for t in NUMBERS},
    "array of another byte order": (np.arange(3, dtype=">f4"), torch.arange(3.0)),
    "array in Fortran's order": (np.asfortranarray(np.eye(2, 3)), torch.eye(2, 3, dtype=torch.float64)),
    "array without axes": (np.array(2.5), torch.tensor(2.5, dtype=torch.float64)),
    "empty array": (np.ones((0, 2)), torch.ones(0, 2, dtype=torch.float64)),
    "array of texts": (np.array([["CT", "MR"]]), [["CT", "MR"]]),
}


def is_same(found, expected):
    """Compare with types."""
    if isinstance(expected, torch.Tensor):
        return type(found) is torch.Tensor and found.dtype == expected.dtype and torch.equal(found, expected)
    if isinstance(expected, dict):
        return type(found) is dict and is_same([*found, *found.values()], [*expected, *expected.values()])
    if isinstance(expected, list):
        return type(found) is list and len(found) == len(expected) and all(map(is_same, found, expected))
    return type(found) is type(expected) and found == expected


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.pth"


def write_pickle(path, pickle):
    """Write an archive with a pickle of one's own and right checksums."""
    buffer = io.BytesIO()
    torch.save(WEIGHTS, buffer)
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(path, "w") as written:
        for entry in archive.infolist():
            is_pickle = entry.filename.endswith("data.pkl")
            written.writestr(entry.filename, pickle if is_pickle else archive.read(entry))


def pickle_of(path):
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


@pytest.mark.parametrize("is_archive", [True, False], ids=["archive", "before 1.6"])
@pytest.mark.parametrize("extra", EXTRAS)
def test_extras(extra, is_archive, path):
    written, expected = EXTRAS[extra]
    content = {"model": WEIGHTS, "extra": written}
    torch.save(content, path, _use_new_zipfile_serialization=is_archive)
    read = load_checkpoint(path)
    assert is_same(read["extra"], expected)
    assert torch.equal(load_state_dict(path)["a"], WEIGHTS["a"])
    check_inert(read)
    if extra not in ("bytes", "frozenset"):  # which PyTorch reads by name
        save_checkpoint(read, path)
        assert is_same(torch.load(path, weights_only=True)["extra"], expected)


@pytest.mark.parametrize("core", [b"core", b"_core"])
def test_names_of_both_numpys(core, path):
    torch.save({"a": np.float64(0.5), "b": np.arange(2)}, path)
    found = b"numpy._core." if b"numpy._core." in pickle_of(path) else b"numpy.core."
    write_pickle(path, pickle_of(path).replace(found, b"numpy." + core + b"."))
    assert load_checkpoint(path)["a"] == 0.5
    assert torch.equal(load_checkpoint(path)["b"], torch.arange(2))


def test_tensors_lose_gradients_hooks_and_attributes(path):
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.note, tensor = 1, torch.ones(2)
    tensor.note = 2
    torch.save({"a": parameter, "b": tensor, "c": parameter}, path)
    read = load_checkpoint(path)
    check_inert(read)
    assert read["a"] is read["c"]


def test_attributes_of_mappings_are_dropped(path):
    """A file can give a mapping's instance another method."""
    torch.save(OrderedDict(WEIGHTS), path)
    methods = b"}(X\x05\x00\x00\x00itemsK\x01X\x06\x00\x00\x00valuesK\x01ub."
    write_pickle(path, pickle_of(path)[:-1] + methods)
    assert list(load_state_dict(path)) == ["a"]


class Foreign:
    """Makes classes of packages that are not installed, which are forgotten before their objects are read."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch

    def __call__(self, full_name, *bases, **attributes):
        module, _, name = full_name.rpartition(".")
        parts = module.split(".")
        for i in range(1, len(parts) + 1):
            self.monkeypatch.setitem(sys.modules, ".".join(parts[:i]), types.ModuleType(".".join(parts[:i])))
        made = type(name, bases, {**attributes, "__module__": module})
        setattr(sys.modules[module], name, made)
        return made

    def save(self, content, path):
        torch.save(content, path)
        self.monkeypatch.undo()


@pytest.fixture
def foreign():
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Foreign(monkeypatch)


MAPPINGS = [name for name, made in CALLABLES.items() if made is CALLABLES["yacs.config.CfgNode"]]
BAGS = [name for name, made in CALLABLES.items() if made is CALLABLES["argparse.Namespace"]]


@pytest.mark.parametrize("name", sorted({*MAPPINGS} - {"collections.defaultdict"}))
def test_configurations(name, foreign, path):
    """Of derived mappings, also with attributes."""
    kind = foreign(name, dict)
    config = kind(lr=0.1, inner=kind(a=1))
    config.immutable = True
    foreign.save({"config": config}, path)
    assert load_checkpoint(path) == {"config": {"lr": 0.1, "inner": {"a": 1}}}


def test_configuration_pickled_as_a_call(foreign, path):
    kind = foreign("mmengine.config.config.ConfigDict", dict, __reduce__=lambda self: (type(self), (dict(self),)))
    foreign.save({"config": kind(a=kind(b=1))}, path)
    assert load_checkpoint(path) == {"config": {"a": {"b": 1}}}


@pytest.mark.parametrize("name", sorted({*BAGS} - {"argparse.Namespace", "types.SimpleNamespace"}))
def test_bags_of_attributes(name, foreign, path):
    outer = foreign(name)()
    inner = deepcopy(outer)
    inner.__dict__.update(a=np.float64(1), _parent=outer)
    outer.__dict__.update(content={"inner": inner}, _parent=None)
    foreign.save({"config": outer}, path)
    assert load_checkpoint(path) == {"config": {"content": {"inner": {"a": 1.0}}}}


def test_slots(foreign, path):
    kind = foreign("omegaconf.base.Metadata", __slots__=("a", "__dict__"))
    bag = kind()
    bag.a, bag.b = 1, 2
    foreign.save({"bag": bag}, path)
    assert load_checkpoint(path) == {"bag": {"b": 2, "a": 1}}


def test_omegaconf_and_yacs(path):
    omegaconf, yacs = pytest.importorskip("omegaconf"), pytest.importorskip("yacs.config")
    config = {"lr": 0.1, "layers": [1, "a"], "opt": {"name": "adam", "path": None}}
    torch.save({"model": WEIGHTS, "cfg": omegaconf.OmegaConf.create(config), "node": yacs.CfgNode(config)}, path)
    read = load_checkpoint(path)
    check_inert(read)
    assert read["node"] == config
    assert read["cfg"] == config


def test_nothing_is_imported(path):
    """What is read in place of a class is made of its name alone, although the package may be installed."""
    before = set(sys.modules)
    for name in (*CALLABLES, *NAMES):
        module, _, attribute = name.rpartition(".")
        write_pickle(path, f"\x80\x02}}X\x01\x00\x00\x00ac{module}\n{attribute}\n)Rs.".encode("latin1"))
        try:
            check_inert(load_checkpoint(path))
        except ValueError as error:
            assert path.name in str(error)
    imported = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert imported <= sys.stdlib_module_names | {"torch", "numpy"}


class Network:
    pass


READERS = [load_checkpoint, load_state_dict, load_encoder, read_state, read_checkpoint]


@pytest.mark.parametrize("is_archive", [True, False], ids=["archive", "before 1.6"])
@pytest.mark.parametrize("read", READERS)
def test_names_of_what_is_refused(read, is_archive, path):
    content = {"model": Network(), "loss": torch.nn.L1Loss(), "sum": sum, "eval": eval, "args": [Network]}
    torch.save(content, path, _use_new_zipfile_serialization=is_archive)
    names = f"{__name__}.Network, torch.nn.modules.loss.L1Loss, builtins.sum and 1 more"
    with pytest.raises(ValueError) as caught:
        read(path)
    assert f"file.pth holds {names} besides weights and plain types, which could run code when" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_way_out(path):
    torch.save({"model": Network()}, path)
    with pytest.raises(ValueError, match=r"; refused\. Where you trust its origin, save its state dict alone"):
        load_checkpoint(path)
    with pytest.raises(ValueError, match=r"when loaded\. Give --trust only if you know who made it"):
        read_checkpoint(path)


def test_names_are_shown_as_texts(path):
    write_pickle(path, b"\x80\x02}X\x01\x00\x00\x00ac\x1b[2J" + b"m" * 1000 + b"\nThing\ns.")
    with pytest.raises(ValueError, match="holds") as caught:
        load_checkpoint(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_states_of_runs_stay_strict(path):
    torch.save({"epoch": 1, "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(ValueError, match=r"holds argparse\.Namespace besides weights and plain types"):
        read_state(path)
    torch.save({"epoch": np.float64(1)}, path)
    with pytest.raises(ValueError, match=r"holds numpy\._?core\.multiarray\.scalar, numpy\.dtype besides"):
        read_state(path)


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("is_archive", [True, False], ids=["archive", "before 1.6"])
def test_later_protocols(protocol, is_archive, path):
    torch.save({"a": WEIGHTS}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=is_archive)
    with pytest.raises(ValueError, match=r"holds parts of a later pickle protocol besides weights.*refused"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "value, said",
    [
        (np.array([{}], dtype=object), "NumPy arrays of objects"),
        (np.zeros(2, dtype=[("a", "f4")]), "structured NumPy values|NumPy values of type 'V4'"),
        (np.array(["2026-01-02"], dtype="M8[D]"), "NumPy values of type 'M8'"),
        (np.zeros(1, dtype=np.longdouble), r"NumPy values of type 'f(16|12)'|float64"),
        (bytearray(b"a"), r"builtins\.bytearray"),
        (slice(1), r"builtins\.slice"),
        (range(3), r"builtins\.range"),
        (torch.nn.Linear, r"torch\.nn\.modules\.linear\.Linear"),
        (OrderedDict, r"collections\.OrderedDict"),
        (torch.Tensor, r"torch\.Tensor"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_goes_beyond(value, said, path):
    torch.save({"model": WEIGHTS, "value": value}, path)
    with pytest.raises(ValueError, match=f"holds ({said}) besides weights and plain types"):
        load_checkpoint(path)


SCALAR, ARRAY = b"cnumpy._core.multiarray\nscalar\n", b"cnumpy._core.multiarray\n_reconstruct\n)R"
BYTES = b"c_codecs\nencode\nX\x08\x00\x00\x0012345678X\x06\x00\x00\x00latin1\x86R"


def numpy_type(code, state=b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"):
    return b"cnumpy\ndtype\nX" + len(code).to_bytes(4, "little") + code.encode() + b"\x85R" + state


@pytest.mark.parametrize(
    "pickle, said",
    [
        # by which NumPy itself would take the bytes for pointers
        (SCALAR + numpy_type("O8") + BYTES + b"\x86R", "NumPy arrays of objects"),
        (ARRAY + b"(K\x01K\x01\x85" + numpy_type("O8") + b"\x89" + BYTES + b"tb", "NumPy arrays of objects"),
        (
            SCALAR + numpy_type("V8", b"(K\x03X\x01\x00\x00\x00|NX\x01\x00\x00\x00a\x85}J\x08tb") + BYTES + b"\x86R",
            "structured NumPy|truncated",
        ),
        # one that has fewer bytes than it claims, more, or none
        (ARRAY + b"(K\x01J\xff\xff\xff\x7f\x85" + numpy_type("f8") + b"\x89" + BYTES + b"tb", "too small"),
        (ARRAY + b"(K\x01)" + numpy_type("f4") + b"\x89" + BYTES + b"tb", "another size than its bytes"),
        (ARRAY + b"(K\x01J\xfe\xff\xff\xff\x85" + numpy_type("f8") + b"\x89" + BYTES + b"tb", "negative"),
        (ARRAY + b"(K\x01)" + numpy_type("f8") + b"\x89]tb", "without bytes"),
        (SCALAR + BYTES + BYTES + b"\x86R", "resolve"),
        (SCALAR + b"cargparse\nNamespace\n)R" + BYTES + b"\x86R", "resolve"),
        # of a number of bytes
        (b"c__builtin__\nbytes\nJ\x00\x00\x00\x7f\x85R", "argument"),
        (b"c__builtin__\nfrozenset\nJ\x00\x00\x00\x7f\x85R", "int in place of a sequence"),
        (b"ctorch.torch_version\nTorchVersion\n]\x85\x81", "list in place of a text"),
        (b"ctyping\nAny\n)R", "not callable"),
        (b"cargparse\nNamespace\n)\x81}cargparse\nNamespace\n)\x81K\x01sb", "unhashable"),
        (b"ctorch\nTensor\nJ\xff\xff\xff\x0f\x85R", "forged: its tensors claim 1073741820 bytes"),
    ],
)
def test_forged(pickle, said, path, hostile):
    write_pickle(path, b"\x80\x02}X\x01\x00\x00\x00a" + pickle + b"s.")
    with pytest.raises(ValueError, match=said) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert "file.pth" in str(caught.value)


def test_arrays_of_the_same_bytes(path):
    """Each refers to them in a few bytes of the file, and would be a tensor of its own."""
    data = bytes(100_000)

    class Array:
        def __reduce__(self):
            made, arguments, state = np.zeros(1).__reduce__()
            return made, arguments, (*state[:1], (len(data) // 8,), *state[2:4], data)

    torch.save({"a": [Array() for _ in range(100)]}, path)
    with pytest.raises(ValueError, match="its arrays claim more than it holds"):
        load_checkpoint(path)


def test_content_in_itself(path):
    arguments = argparse.Namespace()
    arguments.me = [arguments]
    torch.save({"args": arguments}, path)
    with pytest.raises(ValueError, match=r"file\.pth is truncated or not a checkpoint: its content contains itself"):
        load_checkpoint(path)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("is_archive", [True, False], ids=["archive", "before 1.6"])
def test_hostile_pickles(read, is_archive, path, tmp_path):
    """Nothing is called, by none of the ways in which a pickle calls, and inside of inert data neither."""
    with watched(tmp_path) as mark:
        for name, argument in HARMFUL.items():
            module, _, attribute = name.rpartition(".")
            text = argument.format(str(mark)).encode()
            arguments = b"X" + len(text).to_bytes(4, "little") + text + b"\x85"
            named = f"c{module}\n{attribute}\n".encode()
            bag = b"cargparse\nNamespace\n)\x81}X\x0c\x00\x00\x00__setstate__" + named + b"sb" + arguments + b"b"
            for pickle in (named, named + arguments + b"R", named + arguments + b"\x81", named + arguments + b"b", bag):
                pickle = b"\x80\x02}X\x01\x00\x00\x00a" + pickle + b"s."
                if is_archive:
                    write_pickle(path, pickle)
                else:
                    torch.save({}, path, _use_new_zipfile_serialization=False)
                    path.write_bytes(path.read_bytes().replace(b"\x80\x02}q\x00.", pickle))
                with pytest.raises(ValueError, match=f"holds .*{name}") as caught:
                    read(path)
                assert "\n" not in str(caught.value)
                assert not mark.exists()


def test_what_other_code_declares_safe(path, hostile, monkeypatch):
    """Changes nothing, and is kept for that code."""

    class Bomb:
        def __reduce__(self):
            return eval, (f"__import__({HOSTILE!r})",)

    declared = [Network, argparse.Namespace, eval]
    torch.save({"a": WEIGHTS, "args": argparse.Namespace(lr=1)}, path)
    with torch.serialization.safe_globals(declared):
        assert type(load_checkpoint(path)["args"]) is dict
        with pytest.raises(ValueError, match=r"holds argparse\.Namespace"):
            read_state(path)
        torch.save({"a": Bomb()}, path)
        with pytest.raises(ValueError, match=r"holds builtins\.eval"):
            load_checkpoint(path)
        with plain_types_only(INERT), pytest.raises(Exception, match="eval"):
            torch.load(path, weights_only=False)
        assert set(torch.serialization.get_safe_globals()) >= set(declared)
    assert not {*declared} & {*torch.serialization.get_safe_globals()}


def test_names_of_tensors_and_plain_types(path):
    """The list has what torch.save writes, for every type of numbers."""
    kinds = (torch.float64, torch.bfloat16, torch.uint8, torch.uint32, torch.bool, torch.complex64, torch.float8_e5m2)
    content = {str(kind): torch.ones(2).to(kind) for kind in kinds}
    content |= {"kinds": list(kinds), "size": torch.Size([1]), "set": {1}, "complex": 1j, "bytes": b"\xff"}
    content |= {"device": torch.device("cpu"), "counter": Counter("a"), "parameter": torch.nn.Parameter(torch.ones(1))}
    torch.save(content, path)
    assert list(read_plain_types(path)) == list(content)
    assert is_plain_name("torch.cuda.FloatStorage")
    assert not is_plain_name("torch.storage._load_from_bytes")
    assert not is_plain_name("torch.hub.load.FloatStorage")
