"""Rows of a batch that is decoded: they join it while it runs, and leave it when they end.

What a row becomes depends on its prompt and its settings alone: not on when it joined, nor on its neighbours.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from neojax.errors import NeojaxError
from neojax.sampling.batching import bucket, power_of_two, rounded
from neojax.sampling.decode import Asked, Decoder, Rows
from neojax.sampling.logits import Controls
from neojax.sampling.requests import Sampling
from neojax.sampling.text import Continuation

FinishReason = Literal["stop", "eos", "length"]
Stream = Callable[[int, str], None]

STEPS = 8  # tokens decoded for one round trip to the host; what is streamed comes in pieces of so many


@dataclass(eq=False)
class Row:
    """One continuation in the making. `index` is its place in the result, `limit` the number of tokens for
    which there is room, `ends` the tokens after which it ends, `key` uint32 [2] what its random numbers come
    from."""

    index: int
    prompt: tuple[int, ...]
    sampling: Sampling
    limit: int
    ends: tuple[int, ...]
    key: np.ndarray
    continuation: Continuation
    stream: Stream | None = field(default=None, repr=False)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def push(self, tokens: Iterable[int], logprobs: Iterable[float]) -> None:
        """Takes new tokens (-1: none) with their log-probabilities, if any, and notes whether they end the
        row."""
        self.logprobs += logprobs
        taken: list[int] = []
        for token in tokens:
            if token < 0 or self.finish_reason:
                break
            if token in self.ends:
                self.finish_reason = "eos"
                break
            taken.append(int(token))
            if len(self.continuation.tokens) + len(taken) >= self.limit:
                self.finish_reason = "length"
        piece = self.continuation.push(taken, last=self.finish_reason is not None)
        if self.continuation.stopped:
            self.finish_reason = "stop"
        if piece and self.stream:
            self.stream(self.index, piece)


class Batch:
    """A running batch. All its rows share a clock, by which the tokens of a row take their slots in the
    caches' rings; the prompts of rows that join are read by themselves, and their rings turned to that clock.

    `slots`: the tokens of one row, prompt and continuation, that the caches of global layers hold.
    `logprobs`: whether rows get the log-probabilities of their tokens.
    """

    def __init__(self, decoder: Decoder, slots: int, *, logprobs: bool = False):
        self.slots = slots
        self._decoder = decoder
        self._logprobs = logprobs
        self._parts = decoder.layout.split("batch")
        self._places: list[Row | None] = []
        self._state: Rows | None = None
        self._time = 0

    @property
    def rows(self) -> list[Row]:
        """The rows that are not finished."""
        return [row for row in self._places if row is not None]

    def join(self, rows: Sequence[Row]) -> None:
        """Reads the prompts of `rows`, draws their first tokens and decodes them with the others from the
        next step on."""
        for row in rows:
            if len(row.prompt) + row.limit > self.slots + 1:  # the last token is not read
                raise NeojaxError(
                    f"a row of {len(row.prompt)} tokens and {row.limit} more does not fit a batch of "
                    f"{self.slots} slots"
                )
        state, time = self._read(rows)
        self._push(rows, state.token, state.logprob)
        if self._state is None or not self.rows:
            self._places = [*rows, *[None] * (len(state.token) - len(rows))]
            self._state, self._time = state, time
        else:
            if time < self._time:
                state = self._decoder.delay(state, self._time - time)
            elif time > self._time:
                self._state, self._time = self._decoder.delay(self._state, time - self._time), time
            self._state = self._decoder.merge(self._state, state, *self._seat(rows))
        self._drop_finished()

    def leave(self, row: Row) -> None:
        """Takes `row` out, finished or not. Its place is free at once."""
        self._places = [None if one is row else one for one in self._places]

    def step(self) -> None:
        """Decodes `STEPS` tokens for every row, or less where it ends; rows that are finished leave."""
        places = [place for place, row in enumerate(self._places) if row is not None]
        if not places or self._state is None:
            return
        if (smaller := rounded(len(places), self._parts)) < len(
            self._places
        ):  # free places should cost nothing
            kept = places + [places[0]] * (smaller - len(places))
            self._state = self._decoder.take(self._state, np.array(kept, np.int32))
            self._places = [self._places[i] for i in places] + [None] * (smaller - len(places))
        done = np.array([row is None for row in self._places])
        tokens, logprobs, self._state = self._decoder.decode(self._state, self._time, done, STEPS)
        self._time += STEPS
        self._push(self._places, tokens, logprobs)
        self._drop_finished()

    def _push(self, rows: Sequence[Row | None], tokens: Any, logprobs: Any) -> None:
        def fetch(array: Any) -> np.ndarray:  # on the host, where the mesh in force does not matter
            return self._decoder.layout.fetch(array).reshape(array.shape[0], -1)

        found = fetch(tokens), fetch(logprobs) if self._logprobs else np.zeros((len(tokens), 0))
        for row, new, their in zip(rows, *found):
            if row is not None:
                row.push(new, map(float, their))

    def _drop_finished(self) -> None:
        self._places = [None if row is None or row.finish_reason else row for row in self._places]

    def _seat(self, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
        """Gives `rows` free places, more of them where these are too few: for every place the number of the
        row that was there, and that of the new one or -1."""
        before = len(self._places)
        size = max(before, rounded(len(self.rows) + len(rows), self._parts))
        self._places += [None] * (size - before)
        old, new = np.arange(size, dtype=np.int32) % before, np.full(size, -1, np.int32)
        free = [place for place, row in enumerate(self._places) if row is None]
        for i, (place, row) in enumerate(zip(free, rows)):
            self._places[place], new[place] = row, i
        return old, new

    def _read(self, rows: Sequence[Row]) -> tuple[Rows, int]:
        """The rows as a batch of their own, and its time."""
        config = self._decoder.config
        prompts = list(dict.fromkeys(row.prompt for row in rows))
        length = min(config.n_ctx, bucket(max(map(len, prompts))))
        count = rounded(len(prompts), self._parts)
        start = np.full(count, length - 1, np.int32)
        tokens = np.zeros((count, length), np.int32)
        for i, prompt in enumerate(prompts):
            start[i] = length - len(prompt)
            tokens[i, start[i] :] = prompt
        padded = [*rows, *[rows[0]] * (rounded(len(rows), self._parts) - len(rows))]

        def column(dtype: Any, value: Callable[[Row], Any]) -> np.ndarray:
            return np.array([value(row) for row in padded], dtype)

        most = power_of_two(max(1, *(len(row.ends) for row in rows)))
        asked = Asked(
            limit=column(np.int32, lambda row: row.limit),
            ends=column(np.int32, lambda row: [*row.ends, *[-1] * (most - len(row.ends))]),
            key=column(np.uint32, lambda row: row.key),
            controls=Controls(
                temperature=column(np.float32, lambda row: row.sampling.temperature),
                top_k=column(np.int32, lambda row: min(row.sampling.top_k, config.n_vocab)),
                top_p=column(np.float32, lambda row: row.sampling.top_p),
                min_p=column(np.float32, lambda row: row.sampling.min_p),
                repetition_penalty=column(np.float32, lambda row: row.sampling.repetition_penalty),
                entmax=column(bool, lambda row: row.sampling.entmax),
            ),
        )
        source = column(np.int32, lambda row: prompts.index(row.prompt))
        slots = {"global": self.slots, "local": min(self.slots, config.attention.window)}
        return self._decoder.prefill(tokens, start, source, asked, slots), length
