"""The deterministic stream of batches, through Grain.

A source's tokens are cut into windows of n_ctx + 1 tokens, one every n_ctx, so that each token but the first
is a target exactly once; where it was cut into examples of that very size before, these are the windows.
Training windows are shuffled anew every epoch, mixed by weight, and repeated for ever: Grain computes which
window stands where by index, so that any batch is found at once and nothing is remembered between batches.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from neojax.config import DataConfig, SourceConfig
from neojax.data.batch import NOT_SCORED, Batch
from neojax.data.documents import Documents, end_id
from neojax.data.pairs import Pairing, Pairs, stacked
from neojax.data.ranges import THREADS
from neojax.data.sources import TokenSource, open_source
from neojax.errors import NeojaxError
from neojax.storage.remote import is_remote

_THREADS = 2  # a batch is a few copies from the page cache: more threads only wait for each other


class Windows:
    """The windows of a source in order, as Grain reads them: window i is tokens [i * n_ctx, (i + 1) * n_ctx],
    both ends included; the last may be shorter. Where all examples of the source hold n_ctx + 1 tokens,
    window i is example i. Each is a row [sequence] of a batch, with segments and positions where `data`
    isolates documents. Raises `NeojaxError` where the source has no token to predict, or does not tell its
    documents apart."""

    def __init__(self, source: TokenSource, n_ctx: int, data: DataConfig):
        if source.n_tokens < 2:
            raise NeojaxError(
                f"{source} holds {source.n_tokens} tokens; training and evaluation need at least 2"
            )
        self._source = source
        self._documents = Documents(source, data) if data.isolate_documents else None
        self._size = n_ctx + 1
        self._stride = self._size if source.example_size == self._size else n_ctx

    def __len__(self) -> int:
        shared = self._size - self._stride
        return -(-(self._source.n_tokens - shared) // self._stride)

    def __getitem__(self, i) -> Batch:
        source, start, stop = self.place(int(i))
        window = source.read(start, stop)
        if self._documents is not None:
            return self._documents.row(start, window)
        return Batch(window[:-1], window[1:])

    def place(self, i: int) -> "Place":
        """The tokens of window `i`, those that there are."""
        start = i * self._stride
        return Place(self._source, start, min(start + self._size, self._source.n_tokens))

    def __repr__(self) -> str:
        return f"Windows({self._source}, n_ctx={self._size - 1})"


def _stack(data: DataConfig, shape: tuple[int, int], rows: Sequence[Batch]) -> Batch:
    """Rows [sequence] of windows as a batch of `shape` [batch, sequence]; what they leave is padding."""

    def field(padding: np.ndarray, *own: np.ndarray) -> np.ndarray:
        whole = np.full(shape, padding, np.int32)
        for row, part in zip(whole, own, strict=False):
            row[: len(part)] = part
        return whole

    zero = np.zeros((), np.int32)
    apart = zero if data.isolate_documents else None
    return jax.tree.map(field, Batch(zero, zero + NOT_SCORED, segments=apart, positions=apart), *rows)


def _stacking(
    data: DataConfig, shape: tuple[int, int], pairing: Pairing | None
) -> Callable[[Sequence[Batch]], Batch]:
    """What makes a batch of rows."""
    if pairing is None:
        return partial(_stack, data, shape)
    return partial(stacked, shape=shape, pad=pairing.pad)


class Place(NamedTuple):
    """Where a row of a batch comes from: tokens [start, stop) of `source`, all but the last of them its
    inputs."""

    source: TokenSource
    start: int
    stop: int


class _Places:
    """The places of windows, in their order."""

    def __init__(self, windows: Windows):
        self._windows = windows

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, i) -> Place:
        return self._windows.place(int(i))

    def __repr__(self) -> str:
        return f"Places of {self._windows}"


def train_places(data: DataConfig, n_ctx: int, batch_size: int, seed: int, step: int) -> list[Place]:
    """Where the rows of the batch come from that `train_batches` yields first for `start_step` = `step`."""
    stream = _stream(data, n_ctx, seed, _Places)
    return [stream[step * batch_size + row] for row in range(batch_size)]


def _stream(
    data: DataConfig, n_ctx: int, seed: int, of: Callable[[Windows], Any], pairing: Pairing | None = None
) -> grain.MapDataset:
    """The endless training mixture, of what `of` makes of the windows of each source: as many, in the same
    order; or of pairs."""
    if not data.train:
        raise NeojaxError("data.train is empty; name at least one token store or TFRecord file")
    mixture, weights = [], []
    for i, source in enumerate(data.train):
        if source.weight > 0:
            opened = open_source(source.path, "train", source.split)
            # Grain shuffles epoch e with seed + e, so seeds that differ by little would share whole epochs.
            source_seed = int(np.random.SeedSequence((seed, i)).generate_state(1)[0])
            if pairing is None:
                windows = grain.MapDataset.source(of(Windows(opened, n_ctx, data)))
                mixture.append(windows.shuffle(seed=source_seed).repeat())
            else:
                pairs = Pairs(opened, n_ctx, pairing, end_id(opened, data), source_seed)
                mixture.append(grain.MapDataset.range(sys.maxsize).map(pairs.__getitem__))
            weights.append(source.weight)
    if not mixture:
        raise NeojaxError("data.train: every source has weight 0; give one a positive weight")
    if len(mixture) > 1:
        # Grain scales the smallest weight to 100 and cuts off the rest of the fraction; round instead.
        proportions = [round(100 * w / min(weights)) for w in weights]
        return grain.MapDataset.mix(mixture, proportions)
    return mixture[0]


def train_batches(
    data: DataConfig,
    n_ctx: int,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    *,
    rows: Sequence[int] | np.ndarray | None = None,
    pairing: Pairing | None = None,
) -> Iterator[Batch]:
    """The batches of a run from `start_step` on, without end; `data.prefetch` are read ahead by threads.

    rows: which of a batch's `batch_size` rows to read, in rising order; default all. Yields batches
    [len(rows), n_ctx]. A row depends only on (data, seed, step, its number), never on who reads it. A target
    is -1 where there is no token to score. Segments and positions are there where `data` isolates documents,
    see `neojax.data.documents`. With `pairing`, rows are pairs of segments, see `neojax.data.pairs`. Raises
    `NeojaxError`.
    """
    stream = _stream(data, n_ctx, seed, lambda windows: windows, pairing)
    rows = range(batch_size) if rows is None else rows
    stack = _stacking(data, (len(rows), n_ctx), pairing)

    def batch(step: int) -> Batch:
        return stack([stream[step * batch_size + row] for row in rows])

    batches = grain.MapDataset.range(start_step, sys.maxsize // batch_size).map(batch)
    remote = any(is_remote(source.path) for source in data.train)
    threads = THREADS if remote else _THREADS
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(data.prefetch, threads if remote else 0)
    )
    return iter(batches.to_iter_dataset(options))


def validation_batches(
    data: DataConfig,
    source: SourceConfig,
    n_ctx: int,
    batch_size: int,
    *,
    rows: Sequence[int] | np.ndarray | None = None,
    pairing: Pairing | None = None,
) -> Iterator[Batch]:
    """One pass over a source in order, every token but the first (of each example, see `Windows`) a target
    once.

    rows, pairing, and what is yielded, as in `train_batches`; of `data` it matters how documents are told
    apart. Pairs and their masks are the same every time, whatever the seed of the run is. The last batch is
    filled up with rows of which nothing is scored, so that all readers yield the same number of batches.
    Raises `NeojaxError`.
    """
    rows = range(batch_size) if rows is None else rows
    opened = open_source(source.path, "validation", source.split)
    held: Any
    if pairing is None:
        held = Windows(opened, n_ctx, data)
        count = len(held)
    else:
        held = Pairs(opened, n_ctx, pairing, end_id(opened, data), seed=0, shuffled=False)
        count = held.epoch_size
    stack = _stacking(data, (len(rows), n_ctx), pairing)

    def batches() -> Iterator[Batch]:
        for first in range(0, count, batch_size):
            mine = [first + row for row in rows if first + row < count]
            yield stack([held[i] for i in mine])

    # Not a generator itself: a wrong path is an error at the call, not at the first batch.
    return batches()


def check_ids(sources: Iterable[TokenSource], n_vocab: int) -> None:
    """Raises `NeojaxError` where a source holds an id that is not in [0, n_vocab). Reads a
    token store that nobody has read before."""
    for source in sources:
        smallest, largest = source.extremes
        if smallest < 0:
            raise NeojaxError(f"{source} holds the negative id {smallest}; ids start at 0")
        if largest >= n_vocab:
            raise NeojaxError(
                f"{source} holds id {largest}, but model.n_vocab={n_vocab} allows ids below it; "
                f"set model.n_vocab to at least {largest + 1} or prepare the text with this model's tokenizer"
            )
