"""How a key of the configuration is declared: its default, its meaning, and the values that it takes."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

LARGEST_COUNT = 2**31 - 1  # sizes, ids and steps are int32 on the devices
LARGEST_FLOAT = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Range:
    """The numbers that a key takes: `least` and `most` are in it, `above` and `below` are not."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def holds(self, number: float) -> bool:
        """Whether `number`, as the device will see it (in float32, where it is no whole number), is in the
        range."""
        seen: float = number if isinstance(number, int) else float(np.float32(number))
        return (
            (self.least is None or seen >= self.least)
            and (self.above is None or seen > self.above)
            and (self.most is None or seen <= self.most)
            and (self.below is None or seen < self.below)
        )

    def __str__(self) -> str:
        words = ("at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below)
        return " and ".join(f"{word} {bound}" for word, bound in words if bound is not None)

    def of_counts(self) -> "Range":
        """The same range for whole numbers, which end where int32 does unless the key says otherwise."""
        return self if self.most is not None else dataclasses.replace(self, most=LARGEST_COUNT)


def key(default: Any, doc: str, *, choices: Iterable[str] = (), **bounds: float) -> Any:
    """Declares a key: its default, its meaning, and what values it takes, a number within the `Range` of
    `bounds`."""
    meta = {"doc": doc, "choices": tuple(choices), "range": Range(**bounds)}
    return dataclasses.field(default=default, metadata=meta)
