"""Run the package's command line in a process that stores the time it has used, so that a killed one's counts too.

    python -m benchmarks.accuracy.timed FILE WORDS ...

FILE is JSON with ``seconds`` and ``processor_seconds``, to which those of the process are added. It ends with the
process that started it, so that the same command can go on at once. Light, as what it imports is counted.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from pathlib import Path
from threading import Event, Thread

from nnunet_transformers._atomic import write_json
from nnunet_transformers._processes import exit_with_parent
from nnunet_transformers._reading import read_json

STORED_EVERY = 10.0


def store_times(file: Path, every: float = STORED_EVERY) -> None:
    """Add the times of this process to those of a file, again and again, and at its end.

    Args:
        file: JSON; its other entries are kept.
        every: seconds between two stores, which a kill loses at most.
    """
    before, start, ended = read_json(file), time.perf_counter(), Event()

    def store() -> None:
        used = {"seconds": time.perf_counter() - start, "processor_seconds": sum(os.times()[:4])}
        write_json({**before, **{key: round(before[key] + value, 1) for key, value in used.items()}}, file)

    def keep_storing() -> None:
        while not ended.wait(every):
            store()

    def end() -> None:
        ended.set()
        thread.join()
        store()

    thread = Thread(target=keep_storing, daemon=True)
    thread.start()
    atexit.register(end)


def main() -> None:
    """Run the command line with the words after the file."""
    from nnunet_transformers.cli import main as run_command

    exit_with_parent()
    store_times(Path(sys.argv[1]))
    sys.argv = ["nnunet-transformers", *sys.argv[2:]]
    run_command()


if __name__ == "__main__":
    main()
