"""Every filter equals its definition in numpy; the order is Hugging Face's; what is filtered is never
drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neojax.kernels.entmax import entmax
from neojax.sampling.logits import Controls, keep_min_p, keep_top_k, keep_top_p, next_token, penalise, warp

VOCAB = 101


@pytest.fixture
def logits():
    rows = np.random.default_rng(0).normal(size=(5, VOCAB)).astype(np.float32) * 3
    rows[1] = -np.abs(rows[1])
    rows[2, :50] = 0.0  # ties
    rows[3, 7] = 80.0  # one token has all the probability
    rows[:, -3:] = -np.inf  # padded vocabulary
    return rows


def softmax(row):
    weights = np.exp(row.astype(np.float64) - row.max())
    return weights / weights.sum()


def only(row, kept):
    return np.where(kept, row, -np.inf)


def top_k(row, k):
    return only(row, row >= np.sort(row)[-k])


def top_p(row, p):
    order = np.argsort(-row, kind="stable")
    before = np.cumsum(softmax(row)[order]) - softmax(row)[order]
    last = row[order][before < p][-1]
    return only(row, row >= last)


def min_p(row, p):
    return only(row, softmax(row) >= p * softmax(row).max())


@pytest.mark.parametrize("k", [1, 2, 17, VOCAB])
def test_top_k(logits, k):
    np.testing.assert_array_equal(keep_top_k(logits, k), [top_k(row, k) for row in logits])


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.77, 0.95])
def test_top_p(logits, p):
    np.testing.assert_array_equal(keep_top_p(logits, p), [top_p(row, p) for row in logits])


@pytest.mark.parametrize("p", [0.01, 0.2, 0.9])
def test_min_p(logits, p):
    np.testing.assert_array_equal(keep_min_p(logits, p), [min_p(row, p) for row in logits])


def test_a_repetition_penalty_lowers_tokens_that_are_present(logits):
    present = np.random.default_rng(1).random(logits.shape) < 0.3
    expected = logits.copy()
    for place in zip(*np.nonzero(present)):
        expected[place] = logits[place] / 1.7 if logits[place] > 0 else logits[place] * 1.7
    np.testing.assert_allclose(penalise(logits, present, np.float32(1.7)), expected, rtol=1e-6)


def test_filters_apply_one_after_the_other_at_the_temperature(logits):
    controls = Controls(0.7, 20, 0.8, 0.05)
    expected = [min_p(top_p(top_k(row / np.float32(0.7), 20), 0.8), 0.05) for row in logits]
    np.testing.assert_allclose(jax.jit(warp)(logits, controls), expected, rtol=1e-6)


def test_filters_that_are_off_change_nothing(logits):
    np.testing.assert_array_equal(warp(logits, Controls()), logits)


def draws(logits, controls, count=4000, present=None):
    many = jnp.broadcast_to(logits, (count, *logits.shape))
    marks = jnp.zeros(many.shape, bool) if present is None else jnp.broadcast_to(present, many.shape)
    return np.asarray(jax.jit(next_token)(many, marks, jax.random.split(jax.random.key(0), count), controls))


def test_frequencies_are_the_filtered_probabilities():
    row = np.log(np.array([0.05, 0.5, 0.15, 0.3], np.float32))
    counts = np.bincount(draws(row, Controls(top_p=0.9)), minlength=4) / 4000
    np.testing.assert_allclose(counts, np.array([0, 0.5, 0.15, 0.3]) / 0.95, atol=0.03)


def test_entmax_draws_from_the_sparse_distribution_after_the_temperature():
    row = np.array([2.0, 1.5, 0.0, -6.0, -7.0], np.float32)
    expected = np.asarray(entmax(jnp.asarray(row / 0.5)))
    assert (expected == 0).sum() >= 2 and (expected > 0.05).sum() >= 2
    counts = np.bincount(draws(row, Controls(0.5, entmax=True)), minlength=5) / 4000
    np.testing.assert_allclose(counts, expected, atol=0.03)
    assert not counts[expected == 0].any()


def test_temperature_zero_takes_the_likeliest_after_the_penalty():
    row = np.array([1.0, 3.0, 2.0, -1.0], np.float32)
    seen = np.array([False, True, False, False])
    assert set(draws(row, Controls(0.0), 5)) == {1}
    assert set(draws(row, Controls(0.0, repetition_penalty=2.0), 5, seen)) == {2}


def test_padding_of_the_vocabulary_is_never_drawn_and_changes_no_draw():
    row = np.zeros(10, np.float32)
    padded = np.append(row, np.full(6, -np.inf, np.float32))
    controls = Controls(5.0, 14, 0.999)
    np.testing.assert_array_equal(draws(row, controls), draws(padded, controls))
