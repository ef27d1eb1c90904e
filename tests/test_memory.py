"""Free memory as the kernel's files state it."""

from __future__ import annotations

import pytest

from nnunet_transformers._memory import available_bytes

GB = 10**9


@pytest.fixture
def kernel(tmp_path):
    """Return a function that writes files by their paths and computes what is free."""

    def free(**files: str) -> int | None:
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return available_bytes(tmp_path / "proc", tmp_path / "cgroup")

    return free


def test_nothing_reported(kernel):
    assert kernel() is None


def test_without_limits(kernel):
    assert kernel(proc__meminfo="MemTotal: 9 kB\nMemAvailable: 8 kB\n", proc__self__cgroup="0::/\n") == 8 * 1024


def test_cached_files_are_free(kernel):
    files = {"proc__self__cgroup": "0::/\n", "cgroup__memory.max": str(8 * GB), "cgroup__memory.current": str(7 * GB)}
    assert kernel(**files) == GB
    assert kernel(**{"cgroup__memory.stat": f"anon 1\ninactive_file {4 * GB}\nactive_file 9\n"}) == 5 * GB
    assert kernel(**{"cgroup__memory.max": "max\n"}) is None


def test_the_tightest_of_nested_groups(kernel):
    """A job of SLURM's has the limit, its step has none."""
    files = {
        "proc__self__cgroup": "0::/slurm/job_1/step_0\n",
        "cgroup__slurm__job_1__step_0__memory.max": "max\n",
        "cgroup__slurm__job_1__step_0__memory.current": str(GB),
        "cgroup__slurm__job_1__memory.max": str(4 * GB),
        "cgroup__slurm__job_1__memory.current": str(GB),
        "cgroup__slurm__memory.max": str(64 * GB),
        "cgroup__slurm__memory.current": str(32 * GB),
    }
    assert kernel(**files) == 3 * GB


def test_the_first_version(kernel):
    files = {
        "proc__meminfo": f"MemAvailable: {64 * GB // 1024} kB\n",
        "proc__self__cgroup": "9:name=systemd:/x\n4:cpu,memory:/job\n0::/\n",
        "cgroup__memory__job__memory.limit_in_bytes": str(4 * GB),
        "cgroup__memory__job__memory.usage_in_bytes": str(3 * GB),
        "cgroup__memory__job__memory.stat": f"inactive_file 7\ntotal_inactive_file {GB}\n",
        "cgroup__memory__memory.limit_in_bytes": "9223372036854771712",
        "cgroup__memory__memory.usage_in_bytes": str(32 * GB),
    }
    assert kernel(**files) == 2 * GB
