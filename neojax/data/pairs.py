"""Rows of two segments, [CLS] A [SEP] B [SEP], from stores that keep sentences, for encoders to learn from.

NSP, as in BERT's data (Devlin et al. 2018, https://arxiv.org/abs/1810.04805): B follows A (label 0), or is
from another document (1). SOP, as in ALBERT's (Lan et al. 2019, https://arxiv.org/abs/1909.11942): A and B
follow one another in this order (0), or have changed places (1). Sentences become segments as in Google's
create_pretraining_data.py, which wrote the rows of some epochs into files; here every epoch makes its own, as
a function of the data, the seed and its number.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from neojax.data.batch import NOT_SCORED, Batch
from neojax.data.draws import Draws, between, bits, uniform
from neojax.data.masking import Masking
from neojax.data.part import Part
from neojax.data.sources import TokenSource
from neojax.data.store import TokenStore
from neojax.errors import NeojaxError

SPECIAL = 3  # [CLS], [SEP] and [SEP]
FOLLOWS, OTHER = 0, 1  # labels
_TRIES = 10  # to find another document
_TARGET, _SPLIT, _LABEL, _ROW, _ORDER = range(5)  # what random bits are for


@dataclass(frozen=True)
class Pairing:
    """What rows are made with: nsp or sop, the ids of special tokens, and what is masked."""

    kind: str
    short_prob: float
    cls: int
    sep: int
    pad: int
    masking: Masking


class Plan(NamedTuple):
    """The rows of an epoch in the order of the source, each field [rows]: the document, the first of its
    sentences, how many they are and how many of them are A, the label, how many tokens there are to be at the
    least, and the random bits that all else is drawn from."""

    document: np.ndarray
    first: np.ndarray
    taken: np.ndarray
    in_a: np.ndarray
    label: np.ndarray
    target: np.ndarray
    key: np.ndarray


class Pairs:
    """The rows of a source, without end: row i is the same whoever asks. The token `end` that ends documents
    is left out; None where they have none. Raises `NeojaxError` where the source keeps no sentences.

    An epoch is as many rows as the first has: all sentences of the source, each once. Of a later one that has
    more, the last in its order are left out, and one that has fewer shows its first rows again, so that row i
    is found without counting the epochs before. Rows are in the order of the source, or where they are
    `shuffled` in another for every epoch.
    """

    def __init__(
        self,
        source: TokenSource,
        n_ctx: int,
        pairing: Pairing,
        end: int | None,
        seed: int,
        shuffled: bool = True,
    ):
        self._source, self._room, self._pairing, self._end = source, n_ctx - SPECIAL, pairing, end
        self._seed, self._shuffled = seed, shuffled
        self._starts, self._bounds = sentences_of(source)
        first, self._ends = self._bounds[:-1], self._bounds[1:]
        sizes = self._starts[self._ends] - self._starts[first]
        if end is not None:  # what is but an end is no sentence, and no document
            last = self._ends - 1
            is_end = (last > first) & (self._starts[self._ends] - self._starts[last] == 1)
            self._ends, sizes = np.where(is_end, last, self._ends), sizes - 1
        self._documents = np.flatnonzero(sizes > 0)
        if not len(self._documents):
            raise NeojaxError(f"{source} holds no token to train on or to score")
        self._epochs: dict[int, tuple[Plan, np.ndarray]] = {}
        self._lock = threading.Lock()
        self.epoch_size = len(self._epoch(0)[1])

    def __getitem__(self, i) -> Batch:
        """Row i [tokens]."""
        epoch, place = divmod(int(i), self.epoch_size)
        plan, order = self._epoch(epoch)
        chosen = order[place % len(order)]
        return self._row(Plan(*(field[chosen] for field in plan)))

    def __repr__(self) -> str:
        return f"Pairs of {self._source}"

    def _epoch(self, epoch: int) -> tuple[Plan, np.ndarray]:
        """The plan of an epoch and the order of its rows. The last two that were asked for are kept: threads
        stand at most an epoch apart."""
        with self._lock:
            if epoch not in self._epochs:
                plan = self.plan(epoch)
                order = np.arange(len(plan.first))
                if self._shuffled:
                    order = np.argsort(bits(self._seed, epoch, _ORDER, order), kind="stable")
                self._epochs = {e: kept for e, kept in self._epochs.items() if abs(e - epoch) == 1}
                self._epochs[epoch] = plan, order
            return self._epochs[epoch]

    def plan(self, epoch: int) -> Plan:
        """Every document from its first sentence on: sentences are taken until they have the tokens that the
        rows of this document are to have, with probability `short_prob` any number, or it ends; some of them,
        at random, are A. Where B is then another document's, its sentences are those of the next row."""
        documents = self._documents
        draw = bits(self._seed, epoch, _TARGET, documents)
        is_short = uniform(draw) < self._pairing.short_prob
        short = between(bits(draw, 1), 2, self._room)
        target = np.where(is_short, short, self._room)
        at, found = self._bounds[documents], []
        while len(documents):
            ends = self._ends[documents]
            enough = np.searchsorted(self._starts, self._starts[at] + target)
            count = np.maximum(np.minimum(enough, ends) - at, 1)
            in_a = between(bits(self._seed, epoch, _SPLIT, at), 1, np.maximum(count - 1, 1))
            label = np.where(uniform(bits(self._seed, epoch, _LABEL, at)) < 0.5, OTHER, FOLLOWS)
            label[count == 1] = OTHER
            key = bits(self._seed, epoch, _ROW, at)
            found.append(Plan(documents, at, count, in_a, label, target, key))
            at = at + (np.where(label == OTHER, in_a, count) if self._pairing.kind == "nsp" else count)
            goes_on = at < ends
            documents, target, at = documents[goes_on], target[goes_on], at[goes_on]
        whole = Plan(*(np.concatenate(part) for part in zip(*found)))
        order = np.argsort(whole.first, kind="stable")
        return Plan(*(field[order] for field in whole))

    def _row(self, plan: Plan) -> Batch:
        """A row of the plan, whose fields are numbers."""
        draws = Draws(plan.key)
        first = int(plan.first)
        middle, last = first + int(plan.in_a), first + int(plan.taken)
        a, b = self._read(first, middle), self._read(middle, last)
        if plan.label == OTHER:
            if self._pairing.kind == "nsp" or plan.taken == 1:
                b = self._other(plan, max(int(plan.target) - len(a), 1), draws)
            else:
                a, b = b, a
        a, b = _cut(a, b, self._room, draws)
        pairing = self._pairing
        tokens = np.concatenate([[pairing.cls], a, [pairing.sep], b, [pairing.sep]]).astype(np.int32)
        second = len(a) + 2
        chosen = pairing.masking.chosen(tokens, [(1, second - 1), (second, len(tokens) - 1)], draws)
        return Batch(
            tokens=pairing.masking.shown(tokens, chosen, draws),
            targets=np.where(chosen, tokens, NOT_SCORED),
            segments=np.ones(len(tokens), np.int32),
            token_types=(np.arange(len(tokens)) >= second).astype(np.int32),
            labels=np.int32(plan.label),
        )

    def _read(self, first: int, last: int) -> np.ndarray:
        """The tokens of sentences [first, last), which are of one document, without its end."""
        tokens = self._source.read(int(self._starts[first]), int(self._starts[last]))
        is_end = len(tokens) > 1 and self._end is not None and tokens[-1] == self._end
        return tokens[:-1] if is_end else tokens

    def _other(self, plan: Plan, length: int, draws: Draws) -> np.ndarray:
        """Sentences of another document, where there is one, from any on until they have `length` tokens."""
        for _ in range(_TRIES):
            document = self._documents[draws.between(0, len(self._documents) - 1)]
            if document != plan.document:
                break
        end = int(self._ends[document])
        first = draws.between(int(self._bounds[document]), end - 1)
        enough = int(np.searchsorted(self._starts, self._starts[first] + length))
        return self._read(first, max(min(enough, end), first + 1))


def _cut(a: np.ndarray, b: np.ndarray, room: int, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    """Both within `room` tokens: the longer loses tokens until they are equally long, then B and A in turn,
    each from its front or its back."""
    excess = max(len(a) + len(b) - room, 0)
    first = min(excess, abs(len(a) - len(b)))
    cuts = [(excess - first) // 2, (excess - first + 1) // 2]
    cuts[int(len(b) > len(a))] += first

    def within(tokens: np.ndarray, cut: int) -> np.ndarray:
        front = int((draws.uniform(cut) < 0.5).sum())
        return tokens[front : len(tokens) - (cut - front)]

    return within(a, cuts[0]), within(b, cuts[1])


def sentences_of(source: TokenSource) -> tuple[np.ndarray, np.ndarray]:
    """The sentences of a source, see `TokenStore.sentences`. Raises `NeojaxError` where it keeps none."""
    if isinstance(source, TokenStore):
        if not source.n_tokens:
            raise NeojaxError(f"{source} holds no token to train on or to score")
        starts, bounds = source.sentences
        if len(starts) > len(bounds):
            return starts, bounds
    if isinstance(source, Part):
        raise NeojaxError(
            f"{source}: data.pairs takes whole stores; leave split out, and prepare what is held out apart "
            "(`neojax prepare` does)"
        )
    raise NeojaxError(
        f"{source} does not keep where sentences end, which data.pairs needs, or no document in it has two; "
        "prepare the text with `neojax prepare ... --sentences marks`"
    )


def stacked(rows: Sequence[Batch], shape: tuple[int, int], pad: int) -> Batch:
    """Rows of pairs as a batch of `shape` [batch, sequence]; what they leave is padding, and nothing of it is
    scored."""
    fields = {
        name: np.full(shape, filling, np.int32)
        for name, filling in (("tokens", pad), ("targets", NOT_SCORED), ("segments", 0), ("token_types", 0))
    }
    labels = np.full(shape[:1], NOT_SCORED, np.int32)
    for number, row in enumerate(rows):
        for name, whole in fields.items():
            own = getattr(row, name)
            whole[number, : len(own)] = own
        labels[number] = row.labels
    return Batch(**fields, labels=labels)
