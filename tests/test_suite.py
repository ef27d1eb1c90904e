"""The suite stays quick: what its processes import, and how many of them there are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
HEAVY = {"hypothesis", "lightning", "nnunetv2", "scipy", "timm", "torch"}


def test_conftest_imports_little():
    """pytest-xdist's own process reads it before it starts the workers, and runs no test."""
    code = f"import sys, tests.conftest; print(sorted({HEAVY} & set(sys.modules)))"
    env = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=env).strip() == "[]"


def test_worker_processes_once_in_a_module():
    """A process imports torch and nnU-Net, which takes more than most tests; others have threads in their place."""
    uses = {path: len(re.findall(r"with worker_processes\(\)", path.read_text())) for path in TESTS.rglob("test_*.py")}
    assert max(uses.values()) == 1, uses
