"""How long a document may be: what a store can count, and what this process has memory for."""

import contextlib
import os
import resource
from functools import cache
from pathlib import Path

STORED = (
    2**31 - 2
)  # tokens of a document, its end included; a store counts them in 32 bits, and a token is a byte or more
# Copies of a document in memory while it is read and cut: its bytes twice, while they grow, and its text, of which a
# single character may make all need four bytes each (6 measured for 60 MB of such text). The rest is for all else.
COPIES = 8
_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@cache
def longest_document() -> int:
    """Bytes of the longest document that is read."""
    return min(STORED, memory() // COPIES)


def memory() -> int:
    """Bytes that this process may have: of the machine's, of its container's, of its own limits the least."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limits += [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    for file in _CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # ValueError: "max", no limit
            limits.append(int(Path(file).read_text()))
    return min(limit for limit in limits if limit > 0)
