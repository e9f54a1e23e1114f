"""Random numbers as a function of what they are for: the same on every machine and with every version of
NumPy, wherever one begins, and for whole arrays at once.

The mixing function is that of SplitMix64: Steele, Lea and Flood 2014, https://doi.org/10.1145/2660193.2660195
"""

from typing import Any

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def bits(*parts: Any) -> np.ndarray:
    """64 random bits, uint64, for each combination of `parts`: whole numbers from 0 on, or arrays of them,
    broadcast. The order of the parts matters."""
    mixed = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            mixed = (mixed ^ np.asarray(part).astype(np.uint64)) + _GAMMA
            mixed = (mixed ^ (mixed >> np.uint64(30))) * _FIRST
            mixed = (mixed ^ (mixed >> np.uint64(27))) * _SECOND
            mixed = mixed ^ (mixed >> np.uint64(31))
    return mixed


def uniform(bits: np.ndarray) -> np.ndarray:
    """float64 in [0, 1), of 64 random bits each."""
    return (bits >> np.uint64(11)) * 2.0**-53


def between(bits: np.ndarray, low: Any, high: Any) -> np.ndarray:
    """int64 from `low` to `high`, both included, of 64 random bits each."""
    low, high = np.asarray(low, np.int64), np.asarray(high, np.int64)
    return low + (uniform(bits) * (high - low + 1)).astype(np.int64)


class Draws:
    """The random numbers of one thing, such as a row, one after the other."""

    def __init__(self, key: Any):
        self._key, self._taken = key, 0

    def bits(self, count: int) -> np.ndarray:
        """The next 64 random bits, uint64 [count]."""
        at = np.arange(self._taken, self._taken + count)
        self._taken += count
        return bits(self._key, at)

    def uniform(self, count: int) -> np.ndarray:
        """The next numbers in [0, 1), float64 [count]."""
        return uniform(self.bits(count))

    def between(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return int(between(self.bits(1), low, high)[0])
