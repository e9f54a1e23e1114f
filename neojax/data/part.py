"""A part of a token store: its documents from one to another, as GPT-NeoX and Megatron cut one pair of files
into what is trained on, what is held out and what is kept for tests."""

import math
from pathlib import Path

import numpy as np

from neojax.data.store import SPLITS, TokenStore
from neojax.errors import NeojaxError

PARTS = 3  # the third, for tests, is read by nothing here


def shares(split: str, source: str) -> list[float]:
    """The three shares that a text such as "969,30,1" or "9/1" names, as given; one that is left out is 0.
    Raises `NeojaxError`, which begins with `source`."""
    words = split.split("," if "," in split else "/")
    try:
        found = [float(word) for word in words]
    except ValueError:
        found = []
    good = 0 < len(found) <= PARTS and all(math.isfinite(x) and x >= 0 for x in found)
    if not good or not sum(found):
        raise NeojaxError(
            f"{source}: expected up to three shares, of training, validation and testing, such as 969,30,1; "
            f"got {split!r}"
        )
    return found + [0.0] * (PARTS - len(found))


def bounds(split: str, count: int, source: str = "split") -> list[int]:
    """Where the parts of `count` sequences begin and end: four numbers from 0 to `count`.

    Facts: `get_train_valid_test_split_` of GPT-NeoX; what rounding leaves over or lacks is the first part's.
    """
    given = shares(split, source)
    index = [0]
    for share in given:
        index.append(index[-1] + round(share / sum(given) * count))
    excess = index[-1] - count
    return [0, *(max(0, bound - excess) for bound in index[1:])]


class Part:
    """The sequences of `store` that `split` gives to `use` ("train", "validation"), as a source of tokens."""

    example_size = None

    def __init__(self, store: TokenStore, split: str, use: str):
        self._store, self._split, self._use = store, split, use
        place = SPLITS.index(use)
        cut = bounds(split, store.n_sequences, f"data.{use}: split of {store.prefix}")
        self._start, self._stop = (store.sequence_start(cut[i]) for i in (place, place + 1))
        self.n_tokens = self._stop - self._start
        self.n_documents = len(self.starts) - 1

    def __str__(self) -> str:
        return f"the {self._use} part (split {self._split}) of {self._store}"

    @property
    def extremes(self) -> tuple[int, int]:
        """Those of the whole store, which is scanned once for all its parts."""
        return self._store.extremes

    @property
    def folder(self) -> Path:
        """Where the files of the store lie."""
        return self._store.folder

    @property
    def starts(self) -> np.ndarray:
        """int64 [documents + 1]: where every document begins, and where the last ends."""
        return np.append(self.starts_within(0, self.n_tokens), self.n_tokens)

    def starts_within(self, start: int, stop: int) -> np.ndarray:
        """int64: where documents begin, at or behind `start` and before `stop`; the part begins with one."""
        start, stop = max(start, 0), min(stop, self.n_tokens)
        found = self._store.starts_within(start + self._start, stop + self._start) - self._start
        begins = start == 0 < stop and (not len(found) or found[0])
        return np.concatenate([[0], found]).astype(np.int64) if begins else found

    def read(self, start: int, stop: int) -> np.ndarray:
        """Token ids [start, stop) of the part, clipped to it."""
        start, stop = max(start, 0), min(stop, self.n_tokens)
        return self._store.read(start + self._start, max(start, stop) + self._start)
