"""Weight files cannot claim more than they hold, damage is found where there are checksums, and NaN is refused."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch._utils import _rebuild_tensor_v2

from nnunet_transformers.sharing import weights_file
from nnunet_transformers.weights import (
    EncoderCheckpoint,
    TimmCheckpoint,
    file,
    load_checkpoint,
    load_state_dict,
    save_checkpoint,
)
from nnunet_transformers.weights.file import read_state
from nnunet_transformers.weights.limits import MAX_SHARING
from nnunet_transformers.weights.nnunet_checkpoint import read_checkpoint

READERS = [load_checkpoint, load_state_dict, read_state, read_checkpoint]
WEIGHTS = {"a": torch.arange(600.0), "b": torch.ones(2, 3)}
CONTENT = {"network_weights": WEIGHTS, "trainer_name": "t", "init_args": {"configuration": "2d"}}


class Claimed:
    """Pickles as a tensor of any size over a storage of one number."""

    def __init__(self, size, stride):
        self.size, self.stride = size, stride

    def __reduce__(self):
        storage = torch.storage.TypedStorage(
            wrap_storage=torch.ones(1).untyped_storage(), dtype=torch.float32, _internal=True
        )
        return _rebuild_tensor_v2, (storage, 0, self.size, self.stride, False, OrderedDict())


@pytest.mark.parametrize("read", READERS)
def test_stride_of_zero(read, tmp_path):
    """2 KB that claim 4 TB."""
    torch.save({**CONTENT, "network_weights": {"a": Claimed((10**12,), (0,))}}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"forged: its tensors claim 4000000000000 bytes, it holds 4"):
        read(tmp_path / "file.pth")


def test_names_of_one_tensor(tmp_path):
    """As nnU-Net's state dicts have them; a row of numbers expanded to a few is no forgery."""
    for number, is_accepted in ((MAX_SHARING, True), (MAX_SHARING + 1, False)):
        shared = torch.ones(1000)
        save_checkpoint({str(i): shared for i in range(number)}, tmp_path / "file.pth")
        if is_accepted:
            assert len(load_state_dict(tmp_path / "file.pth")) == number
            continue
        with pytest.raises(ValueError, match="its tensors claim"):
            load_state_dict(tmp_path / "file.pth")


@pytest.mark.parametrize(
    "value",
    [torch.eye(3).to_sparse(), torch.ones(3, device="meta"), torch._neg_view(torch.ones(3))],
    ids=["sparse", "meta", "negated"],
)
def test_other_tensors(value, tmp_path):
    torch.save({"a": value}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match="holds a tensor that is not a plain one"):
        load_checkpoint(tmp_path / "file.pth")


def test_nested_content(tmp_path):
    lists = [0]
    for _ in range(30):
        lists = [lists, lists]
    torch.save({"a": lists}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match="expands to more than"):
        load_checkpoint(tmp_path / "file.pth")
    lists.append(lists)
    torch.save({"a": lists}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match="its content contains itself"):
        load_checkpoint(tmp_path / "file.pth")


def rewritten(path, compression=zipfile.ZIP_STORED, replaced=b""):
    """Write the archive of a file again, its largest entry replaced."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    if replaced:
        entries[max(entries, key=lambda name: len(entries[name]))] = replaced
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, value in entries.items():
            archive.writestr(name, value)


@pytest.mark.parametrize("read", READERS)
def test_compressed(read, tmp_path):
    """A megabyte that becomes a gigabyte: refused by the archive's directory, before anything is inflated."""
    save_checkpoint(CONTENT, tmp_path / "file.pth")
    rewritten(tmp_path / "file.pth", zipfile.ZIP_DEFLATED, bytes(100_000_000))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"is compressed and claims 1000\d+ bytes, but torch\.save never"):
        read(tmp_path / "file.pth")
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("read", READERS)
def test_checksums(read, tmp_path):
    path = tmp_path / "file.pth"
    save_checkpoint(CONTENT, path)
    content = bytearray(path.read_bytes())
    content[content.index(WEIGHTS["a"].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"file\.pth is damaged: 'file\.pth/data/0' is not as it was written"):
        read(path)


def test_entries_of_folders(tmp_path):
    """By one bit in the archive's directory PyTorch returns memory that nobody has written to."""
    path = tmp_path / "file.pth"
    save_checkpoint(CONTENT, path)
    content = bytearray(path.read_bytes())
    start = content.rindex(b"PK\x01\x02", 0, content.rindex(b"file.pth/data/0"))
    content[start + 38] |= 0x10
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"'file\.pth/data/0' is not as it was written"):
        load_checkpoint(path)


def test_entries_larger_than_the_file(tmp_path):
    path = tmp_path / "file.pth"
    save_checkpoint(CONTENT, path)
    content, size = path.read_bytes(), (2400).to_bytes(4, "little")
    path.write_bytes(content.replace(size * 2, (2_400_000).to_bytes(4, "little") * 2))
    with pytest.raises(ValueError, match="its entries claim 24"):
        load_checkpoint(path)


def test_files_without_checksums_are_read(tmp_path):
    """Of PyTorch before 1.6, and of those who switched checksums off."""
    torch.save(WEIGHTS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(WEIGHTS, tmp_path / "none.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    for name in ("old.pth", "none.pth"):
        assert torch.equal(load_state_dict(tmp_path / name)["a"], WEIGHTS["a"])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2])
def test_nan(value, dtype, tmp_path):
    weights = {**WEIGHTS, "norm.weight": torch.tensor([1.0, value]).to(dtype)}
    save_checkpoint({**CONTENT, "network_weights": weights}, tmp_path / "file.pth")
    for read in (load_state_dict, read_checkpoint):
        with pytest.raises(ValueError, match=r"file\.pth is damaged, or .* diverged: norm\.weight holds NaN or inf"):
            read(tmp_path / "file.pth")


def test_single_numbers_may_be_infinite(tmp_path):
    for value, is_accepted in ((torch.inf, True), (torch.nan, False)):
        save_checkpoint({**WEIGHTS, "lowest_val_loss": torch.tensor(value)}, tmp_path / "file.pth")
        if is_accepted:
            assert load_state_dict(tmp_path / "file.pth")["lowest_val_loss"] == torch.inf
            continue
        with pytest.raises(ValueError, match="lowest_val_loss holds NaN"):
            load_state_dict(tmp_path / "file.pth")


@pytest.mark.parametrize("module", [file, weights_file])
def test_weights_stay_when_their_file_changes(module, tmp_path):
    """Tensors of safetensors are views of the file."""
    path = tmp_path / "file.safetensors"
    weights_file.save_weights(WEIGHTS, path)
    loaded = getattr(module, "load_weights", file.load_checkpoint)(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(loaded["a"], WEIGHTS["a"])


def test_state_without_pytorchs_advice(tmp_path):
    """PyTorch's own message for a damaged file recommends weights_only=False, over many lines."""
    path = tmp_path / "last.ckpt"
    torch.save({"epoch": 1}, path)
    for content in (path.read_bytes()[:500], b"\x80\x02h\x00.", b"hello", b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"last\.ckpt is truncated or not a checkpoint: ") as caught:
            read_state(path)
        assert "\n" not in str(caught.value)
        assert "weights_only" not in str(caught.value)
    torch.save([1], path)
    with pytest.raises(ValueError, match=r"last\.ckpt holds a list, not the state of a run"):
        read_state(path)


def test_descriptions_of_other_networks(tmp_path):
    """A forger can compute the hash, but no network is built that the weights are not of."""
    timm = TimmCheckpoint({"conv1.weight": torch.ones(2)}, "resnet18", (64, 64), 3)
    with pytest.raises(ValueError, match="describes another network than that of its weights"):
        timm.build_network()
    encoder = EncoderCheckpoint({"stem.proj.weight": torch.ones(2, 3)}, "qt_unet_tiny", (32, 32), 1)
    with pytest.raises(ValueError, match=r"of \d+ weights in stem and encoder, but holds 6"):
        encoder.build_network()
    for overrides, message in (
        ({"depths": [100_000, 1, 1, 1]}, "depths must be 0 to 256 blocks in total, got 100003"),
        ({"embed_dim": 10**12}, "describes no network that can be built"),
        ({"embed_dim": "x"}, "describes no network that can be built"),
    ):
        with pytest.raises(ValueError, match=message):
            EncoderCheckpoint(WEIGHTS, "qt_unet_tiny", (32, 32), 1, overrides=overrides).build_network()


def test_buffer_instead_of_a_file():
    """What reads the checksums leaves the file at its beginning."""
    from nnunet_transformers.weights.limits import check_archive

    buffer = io.BytesIO()
    torch.save(WEIGHTS, buffer)
    check_archive(buffer, "buffer")
    assert buffer.tell() == 0
