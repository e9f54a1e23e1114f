"""The memory of this machine, or of the container that this process runs in."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


def host_memory(root: Path = Path("/")) -> int | None:
    """The bytes of memory and swap that this machine has and this container may use; None where it is not
    told."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        told = {
            name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)
        }
        memory, swap = told["MemTotal"], told.get("SwapTotal", 0)
    except (OSError, ValueError, KeyError, IndexError):
        return None
    return min([memory, *_limits(root)]) + swap


def _limits(root: Path) -> Iterator[int]:
    """What the control groups of this process, of the second or the first version, leave it."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            top = root / "sys/fs/cgroup" / controllers
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            at = Path(group.lstrip("/"))
            for folder in (at, *at.parents):
                with contextlib.suppress(OSError, ValueError):  # not there, or "max"
                    yield int((top / folder / name).read_text())
