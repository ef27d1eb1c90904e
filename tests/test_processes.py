"""Workers end with a parent that is killed, and a process counts the cores that it may use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import multiprocessing, sys, time
{importing}

def work(_):
    time.sleep(60)

if __name__ == "__main__":
    {before}
    context = multiprocessing.get_context("{method}")
    workers = [context.Process(target=work, args=(0,)) for _ in range(2)]
    {manager}
    for worker in workers:
        worker.start()
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(60)
"""
WAYS = {
    "spawned by our command": {"method": "spawn", "importing": "import nnunet_transformers.cli"},
    "of a manager": {
        "method": "spawn",
        "importing": "import nnunet_transformers.cli",
        "manager": "manager = context.Manager(); queue = manager.Queue(1)",
    },
    "forked by a trainer": {
        "method": "fork",
        "importing": "from nnunet_transformers._processes import forks_exit_with_parent",
        "before": "forks_exit_with_parent()",
    },
}
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes have other parents on Windows")


def is_alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{process}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
@pytest.mark.parametrize("way", WAYS)
def test_workers_end_with_a_killed_parent(tmp_path, way):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(**{"before": "pass", "manager": "pass", **WAYS[way]}))
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    workers = [int(word) for word in parent.stdout.readline().split()]
    assert len(workers) >= 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    end = time.monotonic() + 30
    while any(map(is_alive, workers)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(is_alive, workers))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no CPU sets")
def test_cores_of_a_job():
    script = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    script += "from nnunet_transformers._processes import available_cores; print(available_cores())"
    assert subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout == "1\n"
