"""One process writes to a folder at a time; a dead one is noticed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from nnunet_transformers import _lease
from nnunet_transformers._lease import FolderInUse, lease

HOLDER = """
import sys, time
from nnunet_transformers._lease import lease
with lease(sys.argv[1], sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="locks of files are POSIX's")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "run" / "run.lease"


@pytest.fixture
def holder(file):
    """Another process that holds the lease."""
    command = [sys.executable, "-c", HOLDER, str(file.parent), str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_second_run_is_refused(file, holder):
    message = rf"run is being written by process {holder.pid} on .*; wait until it ends"
    with pytest.raises(FolderInUse, match=message), lease(file.parent, file):
        raise AssertionError("two holders")
    assert json.loads(file.read_text())["pid"] == holder.pid


def test_second_holder_in_one_process(file):
    message = "by this process already"
    with lease(file.parent, file), pytest.raises(FolderInUse, match=message), lease(file.parent, file):
        raise AssertionError("two holders")


def test_killed_holder_is_replaced_at_once(file, holder, capsys):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lease(file.parent, file):
        assert json.loads(file.read_text())["pid"] == os.getpid()
    assert f"takes over {file.parent} from process {holder.pid} on" in capsys.readouterr().out
    assert not file.exists()


def test_process_ids_prove_nothing(file):
    """In another container the holder can have the number of a process here."""
    file.parent.mkdir()
    file.write_text(json.dumps({"host": _lease.socket.gethostname(), "pid": os.getpid(), "since": "yesterday"}))
    with lease(file.parent, file):
        pass


@pytest.mark.parametrize("is_alive", [False, True])
def test_holder_elsewhere_is_alive_while_it_renews(file, monkeypatch, is_alive):
    """On another machine, whose locks are not seen here."""
    monkeypatch.setattr(_lease, "EXPIRES_AFTER", 0.5)
    file.parent.mkdir()
    file.write_text(json.dumps({"host": "node7", "pid": 12, "since": "yesterday"}))
    renewal = subprocess.Popen(
        [sys.executable, "-c", "import os, sys, time\nwhile True: os.utime(sys.argv[1]); time.sleep(0.05)", str(file)]
        if is_alive
        else [sys.executable, "-c", ""]
    )
    try:
        before = file.stat().st_mtime_ns
        while is_alive and file.stat().st_mtime_ns == before:
            time.sleep(0.01)
        if is_alive:
            with pytest.raises(FolderInUse, match="by process 12 on node7"), lease(file.parent, file):
                pass
        else:
            with lease(file.parent, file):
                pass
    finally:
        renewal.kill()
        renewal.wait()


def test_holder_renews(file, monkeypatch):
    monkeypatch.setattr(_lease, "RENEWED_EVERY", 0.01)
    with lease(file.parent, file):
        os.utime(file, (0, 0))
        while file.stat().st_mtime == 0:
            time.sleep(0.01)


def test_lock_is_not_inherited_by_workers(file, holder):
    """Forked workers that outlive a killed holder for some seconds do not keep its lease."""
    with lease(file.parent.parent / "other", file.with_name("other.lease")):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
    try:
        with lease(file.parent.parent / "other", file.with_name("other.lease")):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
