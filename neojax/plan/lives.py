"""The values of a traced program, or of a loop's body: which of them are stored, where they lie, and from
when to when."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from neojax.plan.graph import Graph


@dataclass
class Value:
    """An array of a frame: `virtual` while nothing needs it stored; `roots` are then the stored ones that it
    is computed from. summed: the number of the transfer that it is the sum of, while it may yet be cut. pad:
    bytes that it takes beside its own, less than none where it lies in another's place; wide: what they are
    where it lies as a kernel of attention asks for it. widened: bytes of a product as it is made, in a wider
    type, until it is first read. is_counted: as traffic of memory. aval: its type."""

    bytes: int
    made: int = 0
    used: int = -1
    virtual: bool = False
    roots: frozenset[int] = frozenset()
    what: str = ""
    summed: int | None = None
    pad: int = 0
    wide: int = 0
    widened: int = 0
    is_counted: bool = False
    aval: Any = None


@dataclass
class Frame:
    """The values of a loop's body, or of the whole program, by their numbers in its graph (one value may have
    several), and the bytes that each operation needs within; inside: of loops, their bodies."""

    graph: Graph
    values: dict[int, Value] = field(default_factory=dict)
    inner: list[int] = field(default_factory=list)
    inside: dict[int, "Frame"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.inner = [0] * (len(self.graph.operations) + 1)

    def each(self) -> Iterable[Value]:
        """All values, once."""
        return {id(value): value for value in self.values.values()}.values()

    def roots(self, number: int) -> list[Value]:
        """The stored values that a value is computed from."""
        return [self.values[n] for n in self.values[number].roots]

    def ready(self, number: int) -> int:
        """When all is there that a value is computed from."""
        return max((root.made for root in self.roots(number)), default=0)

    def is_again(self) -> bool:
        """Whether it is the body of an innermost loop that computes something again."""
        names = {one.name for one in self.graph.operations}
        return "again" in names and "scan" not in names

    def fullest(self) -> tuple[int, int]:
        """(the most bytes that are held, the operation at which they are)."""
        change = [0] * (len(self.inner) + 1)
        for value in self.each():
            if not value.virtual and value.bytes:
                change[value.made] += value.bytes + value.pad
                change[max(value.used, value.made) + 1] -= value.bytes + value.pad
        held, best = 0, (0, 0)
        for at, inner in enumerate(self.inner):
            held += change[at]
            best = max(best, (held + inner, at))
        return best
