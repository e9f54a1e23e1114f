"""The baseline every language model must beat: a smoothed bigram model of the same tokens.

Interpolated Kneser-Ney with one discount per count of 1, 2 and 3 or more: p(b|a) = max(c(a,b) - D, 0) / c(a)
+ backoff(a) * q(b), where q is b's share of distinct pairs, itself mixed with the uniform distribution.
Source: Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling" (1998).
"""

import numpy as np

from neojax.data.store import TokenStore
from neojax.errors import NeojaxError

_CHUNK = 1 << 24  # tokens looked at together


def _pairs(store: TokenStore, n_vocab: int):
    """Every two neighbouring tokens (a, b) of the stream as one number a * n_vocab + b, in chunks."""
    for start in range(0, store.n_tokens - 1, _CHUNK):
        tokens = store.read(start, start + _CHUNK + 1).astype(np.int64)
        yield tokens[:-1] * n_vocab + tokens[1:]


def _count(store: TokenStore, n_vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct pairs of a store, sorted, and how often each occurs."""
    pairs, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for chunk in _pairs(store, n_vocab):
        new, new_counts = np.unique(chunk, return_counts=True)
        merged, where = np.unique(np.concatenate([pairs, new]), return_inverse=True)
        counts = np.bincount(where, np.concatenate([counts, new_counts]), len(merged)).astype(np.int64)
        pairs = merged
    return pairs, counts


def _discounts(counts: np.ndarray) -> np.ndarray:
    """What to take off counts of 0, 1, 2 and 3 or more, from how many pairs occur 1 to 4 times."""
    n1, n2, n3, n4 = (int((counts == c).sum()) for c in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):  # too little text to estimate them
        return np.array([0.0, 0.5, 0.75, 0.75])
    y = n1 / (n1 + 2 * n2)
    found = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    return np.array([0.0, *np.clip(found, 0.05, [0.95, 1.95, 2.95])])


def bigram_loss(train: TokenStore, validation: TokenStore, n_vocab: int) -> float:
    """Mean loss, in nats per token, of a bigram model of `train` on every token of `validation` but the
    first.

    Memory goes with the number of distinct pairs in `train`. Raises `NeojaxError` where a store is too short.
    """
    for store in (train, validation):
        if store.n_tokens < 2:
            raise NeojaxError(f"token store {store.prefix} holds {store.n_tokens} tokens; a bigram needs 2")
    pairs, counts = _count(train, n_vocab)
    before, after = pairs // n_vocab, pairs % n_vocab
    discount = _discounts(counts)[np.minimum(counts, 3)]
    total = np.bincount(before, counts, n_vocab)
    freed = np.bincount(before, discount, n_vocab)
    backoff = np.divide(freed, total, out=np.ones(n_vocab), where=total > 0)

    # Kneser-Ney's lower order: in how many contexts a token occurs, absolutely discounted onto all ids alike.
    contexts = np.bincount(after, minlength=n_vocab).astype(float)
    taken = np.minimum(contexts, 0.75)
    lower = (contexts - taken) / contexts.sum() + taken.sum() / contexts.sum() / n_vocab

    loss = 0.0
    for chunk in _pairs(validation, n_vocab):
        a, b = chunk // n_vocab, chunk % n_vocab
        at = np.minimum(np.searchsorted(pairs, chunk), len(pairs) - 1)
        seen = np.where(pairs[at] == chunk, counts[at] - discount[at], 0.0)
        probability = seen / np.maximum(total[a], 1) + backoff[a] * lower[b]
        loss -= float(np.log(probability).sum())
    return loss / (validation.n_tokens - 1)
