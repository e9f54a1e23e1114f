"""What the compiler of TPUs makes of the operations around a product or a kernel, and how arrays lie in its
memory. Read from the programs and assignments of buffers of compiled steps (`benchmarks/compiled_memory.py`).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from neojax.plan.graph import Graph, Operation
from neojax.plan.lives import Frame

LANES, SUBLANES = 128, 8  # of the registers of a TPU: arrays are padded to them
# What a sum may pass through on its way to being cut or joined.
FLAT = (
    "reshape", "convert_element_type", "transpose", "squeeze", "broadcast_in_dim", "pad", "mul", "div", "add",
    "add_any", "slice",
)  # fmt: skip
ADDS = ("add", "add_any")
TURNS = ("reshape", "transpose", "squeeze", "convert_element_type", "pad")
ENDS = ("dot_general", "pallas_call", "scan", "while", "cond", "gather", "reduce_sum", "again")


def tiles(shape: Sequence[int]) -> int:
    """The elements that an array takes on a TPU, whose registers its two last dimensions are padded to: the
    fewest of all orders of its dimensions."""
    if len(shape) < 2:
        return math.prod(shape)

    def padded(minor: int, second: int) -> float:
        lanes, rows = -(-shape[minor] // LANES) * LANES, -(-shape[second] // SUBLANES) * SUBLANES
        return math.prod(shape) / shape[minor] / shape[second] * lanes * rows

    pairs = [(i, j) for i in range(len(shape)) for j in range(len(shape)) if i != j]
    return round(min(padded(*pair) for pair in pairs)) if math.prod(shape) else 0


def laid_for_kernels(graph: Graph) -> frozenset[int]:
    """The arrays that lie as a kernel of attention reads them, with lanes in full: what it reads, and what
    that is computed from, back to a product. A product gives its result in any order of dimensions: as such
    it is kept, and a copy is turned for the kernel."""
    by = {n: one for one in graph.operations for n in one.outs}
    ones = {n for key, (n, *_) in graph.known.items() if key[0] == "literal" and key[1] in ("1.0", "1")}
    computed: dict[int, bool] = {}

    def is_computed(n: int) -> bool:
        """Whether an array is more than a product, turned."""
        if n not in computed:
            one = by.get(n)
            if one is None or one.name in ENDS:
                computed[n] = False
            elif one.name in TURNS or (one.name == "mul" and ones.intersection(one.ins)):
                computed[n] = any(map(is_computed, one.ins))
            else:
                computed[n] = True
        return computed[n]

    found: set[int] = set()
    rest = [n for one in graph.operations if one.name == "pallas_call" for n in one.ins]
    while rest:
        n = rest.pop()
        if n not in found and n in by and by[n].name not in ENDS and is_computed(n):
            found.add(n)
            rest += by[n].ins
    return frozenset(found)


def runs_with(frame: Frame, one: Operation, at: int, sums: Sequence[str]) -> int:
    """When a product of the whole program runs that is added to something: with that, in whose place it lies.
    Gradients of a table that is read at both ends are such: what they are computed from stays until then.
    sums: the operations that sum over devices, which may come in between."""
    number, graph = one.outs[0], frame.graph
    while len(graph.reading.get(number, ())) == 1:
        (reader,) = graph.reading[number]
        others = [frame.values.get(n) for n in reader.ins if n != number]
        if reader.name in ADDS and not all(v is not None and v.virtual and not v.roots for v in others):
            return graph.places[id(reader)]
        if reader.name not in (*FLAT, "reshard", *sums):
            break
        number = reader.outs[0]
    return at


def is_rounded(frame: Frame, number: int) -> bool:
    """Whether a value is the rounding of what is computed from a product, element by element: other products
    compute it as they read it, and it is not stored. Such are the gradients of logits."""
    value = frame.values[number]
    made = frame.roots(number)
    return value.virtual and any(v.what == "product" and v.bytes >= 2 * value.bytes for v in made)


def is_piece(frame: Frame, number: int) -> bool:
    """Whether a value is a part of the lanes of what a kernel has made: heads whose positions are turned."""
    value = frame.values[number]
    made = [root.what for root in frame.roots(number)]
    return value.virtual and value.what == "split" and made == ["pallas_call"] and value.wide > 0


def widened(graph: Graph, one: Operation, size: Callable[[Any], int]) -> int:
    """Bytes of a product in the wider type in which a bias is added to it: as such it is stored where more
    than one operation reads the sum, until that is rounded. size: bytes of an array of a type."""
    number, wide, is_added = one.outs[0], 0, False
    while len(graph.reading.get(number, ())) == 1 and (reader := graph.reading[number][0]).name in FLAT:
        number = reader.outs[0]
        own = size(reader.eqn.outvars[0].aval)
        if len(reader.ins) > 1 and all(size(v.aval) == own for v in reader.eqn.invars):
            return 0  # added to what it was made from
        is_added |= reader.name == "add"
        if reader.name == "convert_element_type":
            wide = max(wide, own)
    several = graph.readers[number] > 1
    return wide if is_added and several and wide > size(one.eqn.outvars[0].aval) else 0
