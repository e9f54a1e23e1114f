import math

import numpy as np
import pytest

from neojax.data.store import StoreWriter, TokenStore
from neojax.errors import NeojaxError
from neojax.evaluate.bigram import bigram_loss


def store(path, tokens, n_vocab=50_000) -> TokenStore:
    with StoreWriter(path, n_vocab) as writer:
        writer.add(np.asarray(tokens), np.array([len(tokens)]))
    return TokenStore(path)


def markov(seed, n, transition):
    rng = np.random.default_rng(seed)
    cumulative, draws, tokens = transition.cumsum(1), rng.random(n), [0]
    for u in draws:
        tokens.append(min(int(np.searchsorted(cumulative[tokens[-1]], u)), len(transition) - 1))
    return np.array(tokens)


def test_the_loss_of_a_markov_chain_is_its_entropy_rate(tmp_path):
    transition = np.random.default_rng(0).dirichlet(np.full(12, 0.5), 12)
    train = store(tmp_path / "t", markov(1, 60_000, transition))
    held_out = markov(2, 30_000, transition)
    exact = -np.log(transition[held_out[:-1], held_out[1:]]).mean()
    assert abs(bigram_loss(train, store(tmp_path / "v", held_out), 12) - exact) < 0.005


def test_probabilities_after_every_token_sum_to_one(tmp_path):
    n_vocab = 7
    train = store(tmp_path / "t", [0, 1, 2, 0, 1, 3, 0, 0, 0, 1, 4, 2, 2, 0, 1, 2])  # 5 and 6 never occur
    for a in range(n_vocab):
        losses = [bigram_loss(train, store(tmp_path / "v", [a, b]), n_vocab) for b in range(n_vocab)]
        assert math.isclose(sum(math.exp(-x) for x in losses), 1.0, rel_tol=1e-9)


def test_pairs_counted_in_chunks_are_counted_alike(tmp_path, monkeypatch):
    from neojax.evaluate import bigram

    tokens = np.random.default_rng(0).zipf(1.3, 5000) % 300
    train, held_out = store(tmp_path / "t", tokens[:4000]), store(tmp_path / "v", tokens[4000:])
    whole = bigram_loss(train, held_out, 300)
    monkeypatch.setattr(bigram, "_CHUNK", 333)
    assert math.isclose(bigram_loss(train, held_out, 300), whole, rel_tol=1e-12)


def test_a_store_without_a_pair_is_an_error(tmp_path):
    train = store(tmp_path / "t", [1, 2, 3])
    with pytest.raises(NeojaxError, match="v holds 1 tokens"):
        bigram_loss(train, store(tmp_path / "v", [1]), 10)
