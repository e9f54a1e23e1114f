"""The local and blocked kernels equal the definition, values and gradients, and see exactly the keys they
should."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import layout_of

from neojax.kernels import blocks as kernels
from neojax.kernels.attention import attention, reference
from neojax.kernels.blocks import blocked, local
from neojax.kernels.masks import visible
from neojax.layout import named

ONE = layout_of("data:1")


def operands(batch=2, length=12, heads=2, head_dim=4, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    return tuple(jax.random.normal(k, (batch, length, heads, head_dim), dtype) * 2 for k in keys)


def by_hand(q, k, v, window, start):
    """Softmax over the visible keys, one query at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for b in range(q.shape[0]):
        for i in range(q.shape[1]):
            first = max(0 if window is None else i - window + 1, 0 if start is None else int(start[b]))
            if first > i:
                continue  # a padding token sees nothing; what it gives is never used
            for h in range(q.shape[2]):
                scores = k[b, first : i + 1, h] @ q[b, i, h]
                weights = np.exp(scores - scores.max())
                out[b, i, h] = weights / weights.sum() @ v[b, first : i + 1, h]
    return out


def real_queries(length, start):
    real = np.arange(length)[None] >= np.asarray(start)[:, None]
    return real[..., None, None]


@pytest.mark.parametrize("window", [None, 1, 3, 5, 12, 40])
@pytest.mark.parametrize("start", [None, [0, 4]])
def test_reference_is_a_softmax_over_the_visible_keys(window, start):
    q, k, v = operands()
    start = None if start is None else jnp.array(start)
    with named.use_layout(ONE):
        out = jax.jit(partial(reference, window=window))(q, k, v, start=start)
    real = real_queries(12, [0, 0] if start is None else start)
    np.testing.assert_allclose(out * real, by_hand(q, k, v, window, start) * real, atol=1e-5)


def equals_reference(kernel, length, window, start):
    """In values and in gradients, where queries are real."""
    q, k, v = operands(length=length)
    starts = None if start is None else jnp.array(start)
    real = real_queries(length, [0, 0] if start is None else start)
    pull = jax.random.normal(jax.random.key(1), q.shape) * real

    def both(kernel):
        def total(q, k, v):
            out = kernel(q, k, v, window=window, start=starts)
            return jnp.sum(out * pull), out * real

        with named.use_layout(ONE):
            (_, out), grads = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(q, k, v)
        return out, *grads

    for ours, theirs in zip(both(kernel), both(reference)):
        np.testing.assert_allclose(ours, theirs, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("length, window", [(12, 4), (12, 5), (12, 1), (12, 11), (3, 8), (8, 8), (13, 3)])
@pytest.mark.parametrize("start", [None, [0, 2]])
def test_local_equals_reference_in_values_and_gradients(length, window, start):
    equals_reference(local, length, window, start)


@pytest.mark.parametrize("length, window", [(15, None), (13, None), (13, 3), (3, None)])
@pytest.mark.parametrize("start", [None, [0, 2], [7, 0]])
def test_blocked_equals_reference_in_values_and_gradients(length, window, start, monkeypatch):
    """In whole blocks, with a rest, and with fewer tokens than one; a row may begin after its first block."""
    if start and max(start) >= length:
        start = [length - 1, 0]
    monkeypatch.setattr(kernels, "BLOCK", 5)
    equals_reference(blocked, length, window, start)


@pytest.mark.parametrize("kernel, window", [(local, 5), (blocked, 7)])
def test_heads_of_queries_that_share_a_head_of_keys_see_it_alike(kernel, window, monkeypatch):
    """Against heads of keys and values repeated for each of them, values and gradients."""
    monkeypatch.setattr(kernels, "BLOCK", 5)
    q, k, v = operands(length=13, heads=6)
    k, v, start = k[:, :, :2], v[:, :, :2], jnp.array([0, 2])
    real = real_queries(13, start)

    def both(heads, kernel):
        def total(q, k, v):
            out = kernel(q, *(jnp.repeat(x, heads, 2) for x in (k, v)), window=window, start=start)
            return jnp.sum(jnp.where(real, jnp.sin(out), 0)), out * real

        with named.use_layout(ONE):
            (_, out), grads = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(q, k, v)
        return out, *grads

    for ours, theirs in zip(both(1, kernel), both(3, reference)):
        np.testing.assert_allclose(ours, theirs, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "layout", ["batch:x, heads:y", "batch:x, head_dim:y", "batch:x, sequence:y", "batch:x, memory_length:y"]
)
@pytest.mark.parametrize("window", [None, 5])
def test_every_layout_gives_the_same(layout, window):
    q, k, v = operands()
    with named.use_layout(ONE):
        expected = jax.jit(partial(attention, window=window))(q, k, v)
    split = layout_of("x:2, y:2", layout)
    with named.use_layout(split):
        sharding = named.sharding("batch sequence heads head_dim")
        laid = [jax.device_put(np.asarray(x), sharding) for x in (q, k, v)]
        out = jax.jit(partial(attention, window=window))(*laid)
    assert out.sharding.spec == sharding.spec
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_local_attention_never_holds_the_matrix_of_scores():
    """With 512 tokens and a window of 8, no intermediate is as large as sequence x sequence."""
    q, k, v = operands(batch=1, length=512)
    with named.use_layout(ONE):
        text = jax.jit(partial(attention, window=8)).lower(q, k, v).as_text()
    assert "512x512" not in text
    with named.use_layout(ONE):
        assert "512x512" in jax.jit(partial(reference, window=8)).lower(q, k, v).as_text()


@pytest.mark.parametrize("start", [None, [0, 7]])
@pytest.mark.parametrize("kernel, window", [(reference, None), (local, 5), (blocked, None), (blocked, 5)])
def test_scores_and_softmax_are_float32(kernel, window, start, monkeypatch):
    """With bfloat16 operands, only the operands and the weights are rounded: never the scores."""
    monkeypatch.setattr(kernels, "BLOCK", 5)
    q, k, v = operands(dtype=jnp.bfloat16)
    starts = None if start is None else jnp.array(start)
    with named.use_layout(ONE):
        out = jax.jit(partial(kernel, window=window))(q * 4, k, v, start=starts)
    assert out.dtype == jnp.bfloat16
    exact = by_hand(q * 4, k, v, window, start)
    real = real_queries(12, start or [0, 0])
    assert np.abs((np.asarray(out, "f8") - exact) * real).max() < 0.02


def test_visible_counts():
    """Query i sees min(i + 1, window) keys, less those before the start of its row."""
    time = jnp.arange(10)
    np.testing.assert_array_equal(visible(time, time, None, None).sum(-1), np.arange(10) + 1)
    np.testing.assert_array_equal(visible(time, time, 4, None).sum(-1), np.minimum(np.arange(10) + 1, 4))
    seen = visible(time, time, 4, jnp.array([0, 7]))
    np.testing.assert_array_equal(seen[1].sum(-1), [0] * 7 + [1, 2, 3])
    assert not visible(time, time - 5, None, None)[:, :5].any()  # slots of the time before the first token
