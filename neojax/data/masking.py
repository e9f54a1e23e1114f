"""Which tokens of a row are to be told by a masked-language model, and what stands in their places.

Devlin et al. 2018, https://arxiv.org/abs/1810.04805; whole words and n-grams as in the data of ALBERT (Lan et
al. 2019, https://arxiv.org/abs/1909.11942) and in Google's code for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neojax.data.draws import Draws


def shown(
    tokens: Any, how: Any, what: Any, same: float, random: float, mask: Any, n_vocab: int, xp: Any
) -> Any:
    """What is shown of chosen `tokens`: themselves with probability `same`, any of `n_vocab` ids with
    `random`, and otherwise `mask`. how, what: uint32 random bits of their shape; xp: numpy, or jax.numpy."""
    other = (what % n_vocab).astype(tokens.dtype)
    hidden = xp.where(how < share(same + random), other, mask)
    return xp.where(how < share(same), tokens, hidden)


def share(probability: float) -> np.uint32:
    """The bound that 32 random bits are below with `probability`."""
    return np.uint32(min(probability * 2**32, 2**32 - 1))


@dataclass(frozen=True)
class Masking:
    """How the tokens of rows are chosen and hidden; see the keys `train.mlm_*`."""

    mask_id: int
    n_vocab: int
    """ids that a random token may be"""
    prob: float = 0.15
    same: float = 0.1
    random: float = 0.1
    word_starts: np.ndarray | None = None
    """bool [n_vocab], whether a piece begins a word, where whole words are masked; None: single tokens"""
    max_ngram: int = 1
    max_predictions: int = 0
    """at most in a row; 0: no bound"""
    never: tuple[int, ...] = ()
    """ids that are never masked"""

    def chosen(self, tokens: np.ndarray, segments: Sequence[tuple[int, int]], draws: Draws) -> np.ndarray:
        """bool [length]: which of `tokens`, int [length], are to be told; only such as are in `segments`,
        ranges of places.

        About `prob` of all tokens, at least one, in spans of 1 to `max_ngram` words within a segment, n words
        with a probability in proportion to 1 / n; a span that is too long for what is left becomes shorter,
        and one that meets another is left out.
        """
        count = max(1, round(len(tokens) * self.prob))
        left = min(count, self.max_predictions or count)
        begins, ends, following = self._words(tokens, segments)
        order = np.argsort(draws.bits(len(begins)), kind="stable")
        sizes = self._n_words(draws.uniform(len(begins)), np.minimum(following, self.max_ngram))
        found = np.zeros(len(tokens), bool)
        first, stop, sizes = begins.tolist(), ends.tolist(), sizes.tolist()
        for word in order.tolist():
            if not left:
                break
            n = sizes[word]
            while n and stop[word + n - 1] - first[word] > left:
                n -= 1
            span = slice(first[word], stop[word + n - 1]) if n else slice(0)
            if n and not found[span].any():
                found[span] = True
                left -= span.stop - span.start
        return found

    def shown(self, tokens: np.ndarray, chosen: np.ndarray, draws: Draws) -> np.ndarray:
        """`tokens` with what stands in the places of the `chosen`."""
        how, what = ((draws.bits(len(tokens)) >> np.uint64(32)).astype(np.uint32) for _ in range(2))
        hidden = shown(tokens, how, what, self.same, self.random, self.mask_id, self.n_vocab, np)
        return np.where(chosen, hidden, tokens)

    def _words(
        self, tokens: np.ndarray, segments: Sequence[tuple[int, int]]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where words that may be masked begin and end, and how many follow one another from each on, itself
        included, without a gap."""
        begins, ends = [], []
        for first, stop in segments:
            own = (
                np.ones(stop - first, bool)
                if self.word_starts is None
                else self.word_starts[tokens[first:stop]]
            )
            starts = first + np.flatnonzero(own | (np.arange(stop - first) == 0))
            begins.append(starts)
            ends.append(np.append(starts[1:], stop))
        begin, end = np.concatenate(begins), np.concatenate(ends)
        if self.never:
            before = np.append(0, np.cumsum(np.isin(tokens, self.never)))  # how many are before each place
            allowed = before[begin] == before[end]
            begin, end = begin[allowed], end[allowed]
        if not len(begin):
            return begin, end, begin
        index = np.arange(len(begin))
        last = np.flatnonzero(np.append(begin[1:] != end[:-1], True))  # word of each run
        return begin, end, last[np.searchsorted(last, index)] - index + 1

    @staticmethod
    def _n_words(draws: np.ndarray, most: np.ndarray) -> np.ndarray:
        """1 to `most` each, n with a probability in proportion to 1 / n."""
        if not len(most):
            return most
        shares = np.cumsum(1 / np.arange(1, most.max() + 1))
        return 1 + np.searchsorted(shares, draws * shares[most - 1], side="right")
