"""Worker processes that end with the process that started them, however it ends."""

from __future__ import annotations

import os
import time
from multiprocessing import parent_process
from threading import Thread

_is_registered = False


def exit_with_parent() -> None:
    """End this worker process of ``multiprocessing`` as soon as its parent is gone: an initialiser of pools."""
    parent = parent_process()
    if parent is not None:
        Thread(target=_exit_after, args=(parent.join,), daemon=True).start()


def forks_exit_with_parent() -> None:
    """End the processes that are forked from this one as soon as it is gone.

    nnU-Net's data loaders fork workers that wait for their queue forever if their parent is killed. Programs that are
    run by ``subprocess`` are not affected.
    """
    global _is_registered
    if not _is_registered and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_watch_fork)
        _is_registered = True


def _watch_fork() -> None:
    parent = os.getppid()

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(1)

    Thread(target=_exit_after, args=(wait,), daemon=True).start()


def _exit_after(wait: object) -> None:
    assert callable(wait)
    wait()
    os._exit(1)
