"""How much memory is left to this process."""

from pathlib import Path


def available_bytes(root: Path = Path("/")) -> int:
    """What this process may still take: of the machine's memory and within each control group (v1 and v2) it is in.

    File pages that nobody used lately count as free, as in the kernel's MemAvailable.
    """
    meminfo = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
    left = [int(meminfo["MemAvailable"].split()[0]) * 1024]
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names, mount = ("memory.max", "memory.current", "inactive_file"), root / "sys/fs/cgroup"
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            mount = root / "sys/fs/cgroup/memory"
        else:
            continue
        own = Path(path.lstrip("/"))  # in a container it may not be there, but the mount itself is the group then
        left += [found for group in (own, *own.parents) if (found := _left_in(mount / group, *names)) is not None]
    return max(0, min(left))


def _left_in(group: Path, limit: str, usage: str, reclaimable: str) -> int | None:
    """None where the group has no limit or is not there."""
    try:
        most = (group / limit).read_text().strip()
        if most == "max":
            return None
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(most) - int((group / usage).read_text()) + int(stat.get(reclaimable, 0))
    except OSError:
        return None
