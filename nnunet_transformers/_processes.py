"""The cores that a process may use, and worker processes that end with the process that started them."""

from __future__ import annotations

import os
import sys
import time
from multiprocessing import parent_process
from threading import Thread

_is_registered = False


def available_cores() -> int:
    """Number of cores that this process may run on: a cluster binds a job to a part of the machine's."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def exit_with_parent() -> None:
    """End this worker process as soon as its parent is gone: an initialiser of pools."""
    Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def exit_with_parent_if_spawned() -> None:
    """End this process with its parent if it is a worker that ``multiprocessing`` has spawned; else do nothing.

    A spawned worker imports the module of its parent's command. Called there, this reaches the workers of other
    libraries too: nnU-Net's wait for their queues forever if their parent is killed.
    """
    if "--multiprocessing-fork" in sys.orig_argv:
        exit_with_parent()


def forks_exit_with_parent() -> None:
    """End the processes that are forked from this one as soon as it is gone.

    nnU-Net's data loaders fork workers that wait for their queue forever if their parent is killed. Programs that are
    run by ``subprocess`` are not affected.
    """
    global _is_registered
    if not _is_registered and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=exit_with_parent)
        _is_registered = True


def _watch(process: int) -> None:
    # A parent that is dead already is known by the sentinel of multiprocessing alone, which a worker gets while it
    # starts. Of forks it can be held open by others.
    while os.getppid() == process and ((parent := parent_process()) is None or parent.is_alive()):
        time.sleep(1)
    os._exit(1)
