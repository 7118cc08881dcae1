"""Free memory, on the machine and in control groups."""

import os

from tiling.jobs.memory import available_bytes

GB = 1024**3


def _machine(root, cgroup, files, free_gb=8):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {free_gb * GB // 1024} kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text))
    return available_bytes(root)


def test_available_memory_is_that_of_the_smallest_control_group(tmp_path):
    v2 = {
        "job/memory.max": 4 * GB,
        "job/memory.current": 3 * GB,
        "job/memory.stat": f"anon 5\ninactive_file {GB}\n",
        "job/step/memory.max": "max",
    }
    assert _machine(tmp_path / "v2", "0::/job/step\n", v2) == 2 * GB
    v1 = {
        "memory/memory.limit_in_bytes": 5 * GB,  # as a container sees its own group
        "memory/memory.usage_in_bytes": 2 * GB,
        "memory/memory.stat": f"total_inactive_file {GB // 2}\n",
    }
    assert _machine(tmp_path / "v1", "5:cpu:/x\n4:memory:/docker/abc\n0::/\n", v1) == 3.5 * GB
    assert _machine(tmp_path / "none", "0::/\n", {}) == 8 * GB
    full = {"memory.max": GB, "memory.current": 2 * GB, "memory.stat": ""}
    assert _machine(tmp_path / "full", "0::/\n", full) == 0
    assert 0 < available_bytes() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
