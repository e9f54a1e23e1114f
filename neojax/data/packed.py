"""Sequences packed into rows: as many in one as fit, none cut, each for itself.

A row holds its sequences one behind the other; each is a segment, which sees no other, and its positions
begin at 0, so that a token is read as it is when its sequence stands alone. Sequences go into rows by best
fit, the longest first (Ding et al. 2024, https://arxiv.org/abs/2404.10830).
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np

from neojax.data.batch import NOT_SCORED, Batch
from neojax.data.examples import Rows
from neojax.data.sources import TokenSource
from neojax.data.store import TokenStore, resolve
from neojax.errors import NeojaxError


class Packed(Rows):
    """The sequences of `tokens`, of which `scored`, a source of as many ones and zeros, says what is learnt,
    in rows of `most` tokens. What is longer is cut at its end (`n_cut` of them); sequences without anything
    that is scored then are left out (`n_empty`)."""

    def __init__(self, name: str, tokens: TokenSource, scored: TokenSource, most: int):
        self.name, self._tokens, self._scored, self._most = name, tokens, scored, most
        starts = tokens.starts
        sizes = np.diff(starts)
        marks = scored.read(0, scored.n_tokens) > 0
        before = np.concatenate([[0], np.cumsum(marks)])
        ends = starts[:-1] + np.minimum(sizes, most + 1)  # a row's last target is no input
        # the first token has none before it
        learnt = before[ends] - before[np.minimum(starts[:-1] + 1, ends)]
        self.n_cut, self.n_empty = int((sizes > most + 1).sum()), int((learnt == 0).sum())
        kept = np.flatnonzero(learnt > 0)
        self.n_sequences, self.n_scored = len(kept), int(learnt[kept].sum())
        self._spans = np.stack([starts[:-1][kept], ends[kept]], axis=1)
        self.rows = best_fit(np.diff(self._spans)[:, 0] - 1, most)
        self.lengths = np.full(len(self.rows), most, np.int64)

    @property
    def filled(self) -> float:
        """The share of all rows that is no padding."""
        return float((np.diff(self._spans) - 1).sum() / max(1, len(self.rows) * self._most))

    def fingerprint(self) -> dict[str, Any]:
        """As `data.fingerprint` has it, of all tokens and which are scored."""
        crc = 0
        for source in (self._tokens, self._scored):
            for start in range(0, source.n_tokens, 1 << 22):
                crc = google_crc32c.extend(crc, source.read(start, start + (1 << 22)).astype("<i4").tobytes())
        return {
            "documents": self._tokens.n_documents,
            "tokens": self._tokens.n_tokens,
            "crc32c": f"{crc:08x}",
        }

    def batch(
        self, chosen: Sequence[int], rows: Sequence[int] | np.ndarray | None = None, multiple: int = 1
    ) -> Batch:
        rows = range(len(chosen)) if rows is None else rows
        shape = len(rows), -(-self._most // multiple) * multiple
        tokens, segments, positions = (np.zeros(shape, np.int32) for _ in range(3))
        targets = np.full(shape, NOT_SCORED, np.int32)
        for row, place in enumerate(rows):
            at = 0
            for number, sequence in enumerate(self.rows[chosen[place]] if chosen[place] >= 0 else (), 1):
                start, stop = map(int, self._spans[sequence])
                own = self._tokens.read(start, stop).astype(np.int32)  # else -1 would become an id
                marks = self._scored.read(start, stop)
                here = slice(at, at + len(own) - 1)
                tokens[row, here], segments[row, here] = own[:-1], number
                positions[row, here] = np.arange(len(own) - 1)
                targets[row, here] = np.where(marks[1:] > 0, own[1:], NOT_SCORED)
                at = here.stop
        return Batch(tokens, targets, segments=segments, positions=positions)


def best_fit(sizes: np.ndarray, room: int) -> list[list[int]]:
    """Which of the things of `sizes`, none above `room`, go into each bin of that `room`: the largest first,
    each where the least is left that takes it."""
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, bin), rising
    for thing in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[thing])
        place = bisect_left(free, (size, -1))
        if place == len(free):
            bins.append([])
            left, number = room, len(bins) - 1
        else:
            left, number = free.pop(place)
        bins[number].append(thing)
        if left > size:
            insort(free, (left - size, number))
    return bins


def packed(path: str, use: str, most: int) -> Packed:
    """What `neojax prepare --format sft` wrote to `path` for `use`, in rows of `most` tokens. Raises
    `NeojaxError`."""
    prefix = resolve(path, use)
    marks = prefix.with_name(f"{prefix.name}_scored")
    if not marks.with_name(f"{marks.name}.idx").is_file():
        raise NeojaxError(
            f"data.{use}: {path} does not say which tokens are learnt; write it with `neojax prepare "
            f"--format sft`"
        )
    tokens, scored = TokenStore(prefix), TokenStore(marks)
    if tokens.n_tokens != scored.n_tokens:
        raise NeojaxError(f"data.{use}: {prefix} and {marks} are not of one preparation; prepare again")
    rows = Packed(str(prefix), tokens, scored, most)
    if not len(rows):
        raise NeojaxError(
            f"data.{use}: in {path}, nothing is left to learn within {most} tokens; raise model.n_ctx "
            "(or data.max_tokens, where it is set)"
        )
    return rows
