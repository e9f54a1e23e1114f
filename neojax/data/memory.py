"""How long a document may be: what a store can count, and what this process has memory for."""

import resource
from functools import cache

from neojax.host_memory import host_memory

# A store counts the tokens of a document, its end included, in 32 bits, and a token is at least a byte.
STORED = 2**31 - 2
# Copies of a document in memory while it is read and cut: its bytes twice, while they grow, and its text, of
# which a single character may make all need four bytes each (6 measured for 60 MB of such text). The rest is
# for all else.
COPIES = 8
# Bytes that a tokenizer holds for each character of a text that it encodes in one piece: 150 measured where
# nearly every character becomes a token.
ENCODING = 256


@cache
def longest_document() -> int:
    """Bytes of the longest document that is read."""
    return min(STORED, memory() // COPIES)


def longest_piece(workers: int) -> int:
    """Characters that one of `workers` encoding processes has memory to encode in one piece."""
    return memory() // (ENCODING * workers)


def memory() -> int:
    """Bytes that this process may have: of the machine's or its container's, and of its own limits, the
    least."""
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return min((limit for limit in (host_memory(), *limits) if limit and limit > 0), default=COPIES * STORED)
