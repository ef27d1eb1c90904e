"""Processes that measure rows: one that hangs or dies costs the row at hand."""

from __future__ import annotations

import os
import time
import traceback
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

# a process that was told to end gets so many seconds before it is killed
GRACE = 2.0


class RowFailed(Exception):
    """A row has no result; the message says why."""


def _serve(connection: Connection) -> None:
    """Answer jobs, (function as "module:name", row), until there are no more."""
    while True:
        try:
            function, row = connection.recv()
        except EOFError:
            return
        module, name = function.split(":")
        try:
            answer = (True, getattr(import_module(module), name)(row))
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            # the last line says what; CUDA's messages and compilers' have many more
            lines = str(error).strip().splitlines() or [""]
            answer = (
                False,
                f"{type(error).__name__}: {lines[0][:400]} ({os.path.basename(where.filename)}:{where.lineno})",
            )
            del error
        connection.send(answer)


class Worker:
    """One process, started at the first job and again after one that it does not survive."""

    def __init__(self) -> None:
        self._process: Any = None
        self._connection: Any = None
        self._end = 0.0

    def start(self, function: str, row: object, seconds: float) -> None:
        """Hand out a job, which has so many seconds, the start of the process included."""
        if self._process is None:
            context = get_context("spawn")
            self._connection, other = context.Pipe()
            self._process = context.Process(target=_serve, args=(other,), daemon=False)
            self._process.start()
            other.close()
        self._end = time.monotonic() + seconds
        self._connection.send((function, row))

    def result(self) -> dict[str, Any]:
        """Wait for the job's result.

        Raises:
            RowFailed: if it raised, ran out of time or the process died.
        """
        try:
            if not self._connection.poll(max(0.0, self._end - time.monotonic())):
                self.stop()
                raise RowFailed("ran out of time")
            works, answer = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join(GRACE)
            code = self._process.exitcode
            self.stop()
            raise RowFailed(f"the process ended with {code}") from None
        if not works:
            if "CUDA error" in answer or "AcceleratorError" in answer:
                self.stop()  # the device's context cannot be used any more
            raise RowFailed(answer)
        result: dict[str, Any] = answer
        if isinstance(answer, dict) and any(name.endswith("_error") for name in answer):
            self.stop()  # likewise, after a capture that failed
        return result

    def run(self, function: str, row: object, seconds: float) -> dict[str, Any]:
        """``start`` and ``result``."""
        self.start(function, row, seconds)
        return self.result()

    def stop(self) -> None:
        """End the process, with the compilers that it started."""
        if self._process is None:
            return
        self._connection.close()
        self._process.terminate()
        self._process.join(GRACE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
