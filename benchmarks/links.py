"""A model of the time that a collective takes over the links of a TPU slice, and over the network between
slices.

It is a model of bandwidths, not a measurement. A chip has two links along every axis of the torus, whose
bandwidths, and that of the network, are those of `neojax.layout.chips`. The scaling book of jax-ml
(sharding.md) computes 560 us for an axis of four v5e chips where 680 were measured. With B the bytes a second
over one link, one way, and V the bytes of the whole array, of which each of N chips holds a part:

- A ring sends both ways, so a gather or a scatter takes V (N-1)/N / 2B: over an axis that closes, and along a
  path through
  several axes. Over an axis that does not close it takes V (N-1)/N / B.
- Over n axes at once, each for a share of the array, it takes one n-th of that. Whether the compiler does so
  it says in
  its notes (colours): for large sums over whole slices it does; gathers and scatters go along one ring.
- A sum on all chips is a scatter and a gather: twice the time. An all-to-all takes a quarter of a gather's
  time on a ring,
  half on an axis that does not close.
- Groups of every s-th chip share their links with s - 1 other groups: s times the time.
- Every hop takes at least a microsecond.
- An axis closes on v5e and v6e where it has 16 chips; on v4 and v5p where all three have multiples of 4.
- What crosses slices takes its bytes on one chip over that chip's share of its host's network cards.

Not modelled: contention of collectives that run at once, the memory's bandwidth, the network's latency.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from neojax.layout.chips import Chip
from neojax.plan.hlo import Collective

HOP = 1e-6  # seconds


@dataclass(frozen=True)
class Span:
    """How a group lies along an axis of the torus: so many chips, one in every `stride`; whether they make a
    ring."""

    chips: int
    stride: int
    closes: bool


def closing(chip: Chip, dims: Sequence[int]) -> list[bool]:
    """Which axes of a slice of `dims` chips close to rings."""
    if chip.closes == "all4":
        return [all(n % 4 == 0 for n in dims)] * len(dims)
    return [n == 16 for n in dims]


def spans(places: Sequence[Sequence[int]], dims: Sequence[int], closes: Sequence[bool]) -> list[Span]:
    """The axes along which a group of chips at `places` reaches."""
    found = []
    for axis, n in enumerate(dims):
        at = sorted({place[axis] for place in places})
        if len(at) > 1:
            stride = math.gcd(*(b - a for a, b in itertools.pairwise(at)))
            found.append(Span(len(at), stride, closes[axis] and len(at) * stride == n))
    return found


def seconds(one: Collective, places: Sequence[Sequence[int]], dims: Sequence[int], chip: Chip) -> float:
    """Seconds of one run of a collective whose (slowest) group lies at `places` in a slice of `dims`
    chips."""
    if one.kind == "transfer":
        return one.bytes / chip.network
    chips = len(places)
    if chips < 2:
        return 0.0
    if one.kind == "collective-permute":
        far = sum(abs(a - b) for a, b in zip(*places[:2]))
        return one.bytes / chip.link + far * HOP
    own = spans(places, dims, closing(chip, dims))
    stride = max(span.stride for span in own)
    closes = all(span.closes for span in own)
    rings = min(one.rings or 1, len(own))
    if rings == 1:
        closes |= len(own) > 1
        hops = chips * stride
    else:
        hops = sum(span.chips * span.stride for span in own)
    gather = one.bytes * (chips - 1) / chips / (rings * chip.link * (2 if closes else 1)) * stride
    gather += HOP * hops / (2 if closes else 1)
    if one.kind == "all-to-all":
        return gather / (4 if closes else 2)
    return gather * (2 if one.kind == "all-reduce" else 1)
