"""The deterministic stream of batches, through Grain.

A source's tokens are cut into windows of n_ctx + 1 tokens, one every n_ctx, so that each token but the first is
a target exactly once; where it was cut into examples of that very size before, these are the windows. Training windows are shuffled anew every epoch, mixed by weight, and repeated for ever:
Grain computes which window stands where by index, so that any batch is found at once and nothing is
remembered between batches.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence

import grain
import numpy as np

from neojax.config import DataConfig, SourceConfig
from neojax.data.sources import TokenSource, open_source
from neojax.errors import NeojaxError

NOT_SCORED = -1  # target of a position that holds no token
_THREADS = 2  # a batch is a few copies from the page cache: more threads only wait for each other

Batch = dict[str, np.ndarray]


class Windows:
    """The windows of a source in order, as Grain reads them: window i is tokens [i * n_ctx, (i + 1) * n_ctx], both
    ends included; the last may be shorter. Where all examples of the source hold n_ctx + 1 tokens, window i is
    example i. Raises `NeojaxError` where the source has no token to predict."""

    def __init__(self, source: TokenSource, n_ctx: int):
        if source.n_tokens < 2:
            raise NeojaxError(
                f"{source} holds {source.n_tokens} tokens; training and evaluation need at least 2"
            )
        self._source = source
        self._size = n_ctx + 1
        self._stride = self._size if source.example_size == self._size else n_ctx

    def __len__(self) -> int:
        shared = self._size - self._stride
        return -(-(self._source.n_tokens - shared) // self._stride)

    def __getitem__(self, i) -> np.ndarray:
        start = int(i) * self._stride
        return self._source.read(start, start + self._size)

    def __repr__(self) -> str:
        return f"Windows({self._source}, n_ctx={self._size - 1})"


def _stack(windows: Sequence[np.ndarray], n_rows: int, n_ctx: int) -> Batch:
    """Windows as a batch {"inputs", "targets"}, each int32 [n_rows, n_ctx]; what they leave is not scored."""
    inputs = np.zeros((n_rows, n_ctx), np.int32)
    targets = np.full((n_rows, n_ctx), NOT_SCORED, np.int32)
    for row, window in enumerate(windows):
        n = len(window) - 1
        inputs[row, :n] = window[:-1]
        targets[row, :n] = window[1:]
    return {"inputs": inputs, "targets": targets}


def train_batches(
    data: DataConfig,
    n_ctx: int,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    *,
    rows: Sequence[int] | np.ndarray | None = None,
) -> Iterator[Batch]:
    """The batches of a run from `start_step` on, without end; `data.prefetch` are read ahead by threads.

    rows: which of a batch's `batch_size` rows to read, in rising order; default all. Yields {"inputs", "targets"},
    each int32 [len(rows), n_ctx]. A row depends only on (data, seed, step, its number), never on who reads it. A target
    is -1 where there is no token to score. Raises `NeojaxError`.
    """
    if not data.train:
        raise NeojaxError("data.train is empty; name at least one token store or TFRecord file")
    rows = range(batch_size) if rows is None else rows
    mixture, weights = [], []
    for i, source in enumerate(data.train):
        if source.weight > 0:
            windows = Windows(open_source(source.path, "train"), n_ctx)
            # Grain shuffles epoch e with seed + e, so seeds that differ by little would share whole epochs.
            source_seed = int(np.random.SeedSequence((seed, i)).generate_state(1)[0])
            mixture.append(grain.MapDataset.source(windows).shuffle(seed=source_seed).repeat())
            weights.append(source.weight)
    if not mixture:
        raise NeojaxError("data.train: every source has weight 0; give one a positive weight")
    if len(mixture) > 1:
        # Grain scales the smallest weight to 100 and cuts off the rest of the fraction; round instead.
        proportions = [round(100 * w / min(weights)) for w in weights]
        stream = grain.MapDataset.mix(mixture, proportions)
    else:
        stream = mixture[0]

    def batch(step: int) -> Batch:
        return _stack([stream[step * batch_size + row] for row in rows], len(rows), n_ctx)

    batches = grain.MapDataset.range(start_step, sys.maxsize // batch_size).map(batch)
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=data.prefetch)
    return iter(batches.to_iter_dataset(options))


def validation_batches(
    source: SourceConfig, n_ctx: int, batch_size: int, *, rows: Sequence[int] | np.ndarray | None = None
) -> Iterator[Batch]:
    """One pass over a source in order, every token but the first (of each example, see `Windows`) a target once.

    rows, and what is yielded, as in `train_batches`. The last batch is filled up with rows of which nothing is scored, so
    that all readers yield the same number of batches. Raises `NeojaxError`.
    """
    rows = range(batch_size) if rows is None else rows
    windows = Windows(open_source(source.path, "validation"), n_ctx)

    def batches() -> Iterator[Batch]:
        for first in range(0, len(windows), batch_size):
            mine = [first + row for row in rows if first + row < len(windows)]
            yield _stack([windows[i] for i in mine], len(rows), n_ctx)

    # Not a generator itself: a wrong path is an error at the call, not at the first batch.
    return batches()


def check_ids(sources: Iterable[TokenSource], n_vocab: int) -> None:
    """Raises `NeojaxError` where a source holds an id that is not in [0, n_vocab). Reads each token store once."""
    for source in sources:
        smallest, largest = source.extremes
        if smallest < 0:
            raise NeojaxError(f"{source} holds the negative id {smallest}; ids start at 0")
        if largest >= n_vocab:
            raise NeojaxError(
                f"{source} holds id {largest}, but model.n_vocab={n_vocab} allows ids below it; "
                f"set model.n_vocab to at least {largest + 1} or prepare the text with this model's tokenizer"
            )
