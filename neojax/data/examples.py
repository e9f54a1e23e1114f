"""Examples: rows of tokens of different lengths with what is to be said of them, and batches of these.

A batch is as long as its longest row, rounded up to a power of two, so that few programs are compiled, and to
a multiple of the parts that the layout splits rows into. Which rows it has is a function of (seed, step):
every epoch goes over all of them in an order of its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import google_crc32c
import numpy as np

from neojax.config import ModelConfig
from neojax.data.batch import NOT_SCORED, Batch
from neojax.data.special_tokens import SpecialTokens
from neojax.data.tokenizer import first_tokens, usual_end

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SHORTEST = 16  # tokens of a batch's rows


@dataclass(frozen=True)
class Frame:
    """What stands around the texts of a row: tokens before the first text, between two, and at the end; what
    fills up rows; and whether tokens of the second text are of another type."""

    first: tuple[int, ...]
    between: tuple[int, ...]
    last: tuple[int, ...]
    pad: int
    typed: bool
    causal: bool = False
    """whether a token sees those before it alone"""

    @classmethod
    def of(cls, model: ModelConfig, tokenizer: "Tokenizer", why: str) -> "Frame":
        """Of an encoder [CLS] A [SEP] B [SEP]. Of a causal model, which says of a row what it has seen at its
        last token, A and B, what its tokenizer puts before a text in front, and the end of a document between
        them. Raises `NeojaxError` where a special token lacks; `why` says what needs it."""
        special = SpecialTokens.of(tokenizer)
        end = usual_end(tokenizer)
        if not model.causal:
            cls_, sep = special.need("cls", "sep", why=why)
            pad = sep if special.pad is None else special.pad
            return cls((cls_,), (sep,), (sep,), pad, model.embedding.token_types > 1)
        pad = next((id for id in (special.pad, end) if id is not None), 0)
        return cls(first_tokens(tokenizer), () if end is None else (end,), (), pad, False, causal=True)

    def row(self, texts: Sequence[Sequence[int]], most: int) -> tuple[np.ndarray, np.ndarray, bool]:
        """(tokens, their types, whether texts were cut) of one text or two, as ids. At most so many tokens:
        what is too long is cut at its end, token by token of the longer text, as Google's programs do."""
        sizes = len(texts[0]), len(texts[1]) if len(texts) > 1 else 0
        between = self.between if len(texts) > 1 else ()
        kept = cut(*sizes, max(most - len(self.first) - len(between) - len(self.last), 0))
        head = [*self.first, *texts[0][: kept[0]], *between]
        tail = [*(texts[1][: kept[1]] if len(texts) > 1 else ()), *self.last]
        is_second = len(texts) > 1
        types = np.repeat(np.array([0, int(is_second)], np.int32), (len(head), len(tail)))
        return np.array([*head, *tail], np.int32), types, kept != sizes


def cut(a: int, b: int, room: int) -> tuple[int, int]:
    """The lengths of two texts that share `room`: of the longer one token after another goes, of two that are
    as long the second's."""
    excess = max(a + b - room, 0)
    from_longer = min(excess, abs(a - b))
    a, b = (a - from_longer, b) if a > b else (a, b - from_longer)
    rest = excess - from_longer
    return a - rest // 2, b - (rest - rest // 2)


class Example(NamedTuple):
    """A row: `tokens` and their `types`, int32 [length], and what is to be said of it: its `label`, a scalar
    of int32 or float32, or the `targets` of its tokens, int32 [length]."""

    tokens: np.ndarray
    types: np.ndarray
    label: Any = None
    targets: np.ndarray | None = None


class Rows(ABC):
    """Rows of one source, in order, and `lengths`, int [rows], of each: batches of them for training, and
    once for evaluation. Rows have at most `most` tokens; `n_cut` were longer."""

    name: str
    lengths: np.ndarray
    width: int = 1
    """how many rows of tokens each has"""
    n_cut: int = 0
    most: int

    def __len__(self) -> int:
        return len(self.lengths)

    @abstractmethod
    def batch(
        self, chosen: Sequence[int], rows: Sequence[int] | np.ndarray | None = None, multiple: int = 1
    ) -> Batch:
        """The rows `chosen` as a batch, all of them or the `rows` among them; one that is -1 is a row of
        padding, of which nothing is scored. Their length is a multiple of `multiple`."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What tells them from other data, as `data.fingerprint` has it."""

    def train_batches(
        self,
        batch_size: int,
        seed: int,
        start_step: int,
        rows: Sequence[int] | np.ndarray,
        multiple: int = 1,
    ) -> Iterator[Batch]:
        """The batches of a run from `start_step` on, without end: of each of `batch_size` examples the
        `rows`, see `batch`."""
        epoch, order = -1, np.zeros(0, np.int64)
        step = start_step
        while True:
            chosen = []
            for place in range(step * batch_size, (step + 1) * batch_size):
                if place // len(self) != epoch:
                    epoch = place // len(self)
                    order = np.random.default_rng((seed, epoch)).permutation(len(self))
                chosen.append(int(order[place % len(self)]))
            yield self.batch(chosen, rows, multiple)
            step += 1

    def held_out(self, batch_size: int) -> Iterator[list[int]]:
        """Every example once, those of a length together, as batches for `batch`; -1 fills up the last."""
        order = np.argsort(self.lengths, kind="stable").tolist()
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            yield chosen + [-1] * (batch_size - len(chosen))


class Examples(Rows):
    """The examples of one file, in order, and what fills up their rows. `n_cut` of them were longer than
    `most` tokens."""

    def __init__(self, name: str, examples: Sequence[Example], frame: Frame, most: int, n_cut: int = 0):
        self.name, self.n_cut = name, n_cut
        self.examples, self._frame, self.most = examples, frame, most
        self.lengths = np.array([len(example.tokens) for example in examples], np.int64)

    @property
    def labels(self) -> np.ndarray:
        """[examples]: the label of each."""
        return np.stack([example.label for example in self.examples])

    def fingerprint(self) -> dict[str, Any]:
        crc = 0
        for example in self.examples:
            said = example.label if example.targets is None else example.targets
            for part in (example.tokens, said):
                crc = google_crc32c.extend(crc, np.ascontiguousarray(part).tobytes())
        return {"documents": len(self), "tokens": int(self.lengths.sum()), "crc32c": f"{crc:08x}"}

    def batch(
        self, chosen: Sequence[int], rows: Sequence[int] | np.ndarray | None = None, multiple: int = 1
    ) -> Batch:
        most = max((self.lengths[i] for i in chosen if i >= 0), default=1)
        shape = (len(chosen) if rows is None else len(rows), rounded(int(most), self.most, multiple))
        tokens = np.full(shape, self._frame.pad, np.int32)
        segments, types = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        targets = np.full(shape, NOT_SCORED, np.int32)
        labels = None
        if self.examples[0].label is not None:
            like = np.asarray(self.examples[0].label)
            nothing = np.nan if np.issubdtype(like.dtype, np.floating) else NOT_SCORED
            labels = np.full((shape[0], *like.shape), nothing, like.dtype)
        for row, place in enumerate(range(len(chosen)) if rows is None else rows):
            if chosen[place] < 0:
                continue
            own = self.examples[chosen[place]]
            size = len(own.tokens)
            tokens[row, :size], segments[row, :size], types[row, :size] = own.tokens, 1, own.types
            if labels is not None:
                labels[row] = own.label
            if own.targets is not None:
                targets[row, :size] = own.targets
        kinds = types if self._frame.typed else None
        return Batch(tokens, targets, segments=segments, token_types=kinds, labels=labels)


def rounded(length: int, most: int, multiple: int = 1) -> int:
    """A length of rows, rounded up to a power of two of at most `most`, and then to a multiple of
    `multiple`."""
    length = min(most, max(SHORTEST, 1 << (length - 1).bit_length()))
    return -(-length // multiple) * multiple
