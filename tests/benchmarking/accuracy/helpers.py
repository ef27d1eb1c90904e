"""A drawn dataset of the benchmark's, a run on it, and what its tests share."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from benchmarks.accuracy import tables
from benchmarks.accuracy.runs import Run
from benchmarks.accuracy.tables import Data

FOLDER = Path(tables.__file__).parent
BALLS = Data("Dataset900_Balls", "3d_fullres", largest_batch=2)
STOCK = Run("hippocampus", "stock", "quarter", 0, 0)


def write_queue(path, *runs):
    path.write_text("".join(json.dumps(vars(run)) + "\n" for run in runs))
    return path


def never():
    return False


def wait_for_a_signal(words):
    """Work of a process: its file, which says that a signal ended it."""
    file = Path(words[0], str(os.getpid()))
    signal.signal(signal.SIGTERM, lambda number, frame: file.write_text("ended"))
    file.touch()
    end = time.time() + 30
    while not file.read_text() and time.time() < end:
        time.sleep(0.05)
