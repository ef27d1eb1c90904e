"""Files and folders are written whole or not at all, by however many processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nnunet_transformers import _atomic
from nnunet_transformers._atomic import new_folder, replacing, write_text
from nnunet_transformers._lease import FolderInUse, lease

WRITER = """
import sys, torch
from nnunet_transformers._atomic import replacing
number = int(sys.argv[2])
print("ready", flush=True)
for _ in range(200):
    with replacing(sys.argv[1]) as partial:
        torch.save({name: torch.full((50,), number) for name in "abcdefgh"}, partial)
"""
STOPPED = """
import sys, time
from pathlib import Path
from nnunet_transformers._atomic import new_folder, replacing
write = new_folder if sys.argv[2] == "folder" else replacing
with write(Path(sys.argv[1])) as partial:
    if sys.argv[2] == "folder":
        (partial / "half").touch()
    print(partial, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def stopped(tmp_path):
    """Start a process that stops in the middle of writing; return it and what it has written so far."""
    processes = []

    def start(kind):
        command = [sys.executable, "-c", STOPPED, str(tmp_path / kind), kind]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return processes[-1], tmp_path / processes[-1].stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()
        process.wait()


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()


class TestReplacing:
    def test_two_writers_leave_no_mixture(self, tmp_path):
        path = tmp_path / "weights.pth"
        writers = [
            subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(number)], stdout=subprocess.PIPE, text=True)
            for number in (1, 2)
        ]
        for writer in writers:
            assert writer.stdout.readline() == "ready\n"
        seen = set()
        while any(writer.poll() is None for writer in writers):
            if path.exists():
                values = {int(v) for tensor in torch.load(path).values() for v in tensor}
                assert len(values) == 1
                seen |= values
        assert [writer.returncode for writer in writers] == [0, 0]
        assert seen == {1, 2}
        assert list(tmp_path.iterdir()) == [path]

    def test_orphan_is_removed_by_the_next_writer(self, tmp_path, stopped, monkeypatch):
        process, partial = stopped("file")
        monkeypatch.setattr(_atomic, "_searched", set())
        with replacing(tmp_path / "other") as other:
            other.touch()
        assert partial.exists()  # its writer lives
        kill(process)
        monkeypatch.setattr(_atomic, "_searched", set())
        with replacing(tmp_path / "other") as other:
            other.touch()
        assert os.listdir(tmp_path) == ["other"]

    def test_error_leaves_the_file(self, tmp_path):
        path = tmp_path / "file"
        path.write_text("before")
        with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt
        assert path.read_text() == "before"
        assert os.listdir(tmp_path) == ["file"]

    def test_same_content_makes_the_same_file(self, tmp_path):
        """``torch.save`` writes the name of its file into it."""
        written = []
        for _ in range(2):
            with replacing(tmp_path / "weights.pth") as partial:
                torch.save({"weight": torch.ones(3)}, partial)
            written.append((tmp_path / "weights.pth").read_bytes())
        assert written[0] == written[1]

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
    def test_a_pipe_stays(self, tmp_path):
        """And devices: who may write to /dev would lose /dev/null."""
        os.mkfifo(tmp_path / "pipe")
        reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        write_text("text", tmp_path / "pipe")
        assert (os.read(reader, 10), (tmp_path / "pipe").is_fifo()) == (b"text", True)
        os.close(reader)

    def test_permissions_are_those_of_any_new_file(self, tmp_path):
        (tmp_path / "usual").touch()
        with replacing(tmp_path / "file") as partial:
            partial.touch()
        assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode


def fill(path, fails=False):
    with new_folder(path) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").touch()
        (folder / "file").touch()
        if fails:
            raise KeyboardInterrupt


class TestNewFolder:
    @pytest.mark.parametrize("is_there", [False, True])
    def test_whole_or_not_at_all(self, tmp_path, is_there):
        path = tmp_path / "folder"
        if is_there:
            path.mkdir()
        before = [(p, p.stat().st_ino) for p in tmp_path.iterdir()]
        with pytest.raises(KeyboardInterrupt):
            fill(path, fails=True)
        assert [(p, p.stat().st_ino) for p in tmp_path.iterdir()] == before
        assert not is_there or not list(path.iterdir())
        fill(path)
        assert {p.name for p in path.iterdir()} == {"sub", "file"}
        assert os.listdir(tmp_path) == ["folder"]
        # one that is there, which may be a mount, is not replaced
        assert not is_there or path.stat().st_ino == before[0][1]

    def test_second_writer_is_refused_and_leaves_the_work_of_the_first(self, tmp_path, stopped):
        _, partial = stopped("folder")
        with pytest.raises(FolderInUse, match="folder is being written by process"):
            fill(tmp_path / "folder")
        assert (partial / "half").exists()

    def test_what_a_killed_writer_left_is_named_and_removed(self, tmp_path, stopped, capsys):
        process, partial = stopped("folder")
        kill(process)
        fill(tmp_path / "folder")
        assert f"note: removes {partial}, which a process that was killed has left" in capsys.readouterr().out
        assert os.listdir(tmp_path) == ["folder"]
        assert not (tmp_path / "folder" / "half").exists()

    def test_folder_that_appears_in_the_meantime_is_kept(self, tmp_path):
        with pytest.raises(FileExistsError, match="was made by another process"), new_folder(tmp_path / "folder"):
            (tmp_path / "folder").mkdir()
        assert os.listdir(tmp_path) == ["folder"]


def test_windows(monkeypatch, tmp_path):
    """It has no pread, syncs no file that is open for reading, and neither renames nor removes an open one."""
    still_open = set()
    opened, closed, replaced, unlinked, synced = os.open, os.close, os.replace, Path.unlink, os.fsync
    names = {}

    def note(path, *arguments, **options):
        descriptor = opened(path, *arguments, **options)
        names[descriptor] = str(path)
        still_open.add(str(path))
        return descriptor

    def forget(descriptor):
        still_open.discard(names.pop(descriptor, None))
        closed(descriptor)

    def move(source, target):
        assert str(source) not in still_open
        replaced(source, target)

    def remove(path, missing_ok=False):
        assert str(path) not in still_open
        unlinked(path, missing_ok)

    def sync(descriptor):
        os.write(descriptor, b"")
        synced(descriptor)

    monkeypatch.setattr(os, "open", note)
    monkeypatch.setattr(os, "close", forget)
    monkeypatch.setattr(os, "replace", move)
    monkeypatch.setattr(Path, "unlink", remove)
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(sys, "platform", "win32")
    for name in ("pread", "pwrite"):
        monkeypatch.delattr(os, name, raising=False)
    with lease(tmp_path, tmp_path / "a.lease"), replacing(tmp_path / "a.txt") as partial:
        partial.write_text("whole")
        assert json.loads((tmp_path / "a.lease").read_text())["pid"] == os.getpid()
    assert (tmp_path / "a.txt").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
