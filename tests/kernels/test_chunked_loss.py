"""The loss over several chunks of tokens, as every real vocabulary takes it, is the definition's on every
layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import layout_of

from neojax.kernels import chunked_loss
from neojax.kernels.loss import cross_entropy, reference_cross_entropy
from neojax.layout import named

BATCH, LENGTH, EMBD, ROWS, N_VOCAB = 4, 150, 8, 12, 9  # rows past N_VOCAB pad the vocabulary
LAYOUTS = {
    "one device": layout_of("data:1"),
    "vocabulary": layout_of("data:2, model:2", "batch:data, vocab:model"),
    "vocabulary over two axes": layout_of("x:2, y:2", "vocab:x+y"),
    "sequence and embd": layout_of("x:2, y:2", "sequence:x, embd:y"),
}


def operands(dtype=jnp.float32):
    a, b, c, d = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(a, (BATCH, LENGTH, EMBD), dtype)
    table = jax.random.normal(b, (ROWS, EMBD), dtype)
    targets = jax.random.randint(c, (BATCH, LENGTH), 0, N_VOCAB)
    return hidden, table, jnp.where(jax.random.bernoulli(d, 0.3, targets.shape), -1, targets)


def weights():
    """Of any size, and many of them 0."""
    drawn = np.random.default_rng(3).uniform(0, 2, (BATCH, LENGTH))
    return np.maximum(drawn - 0.5, 0).astype(np.float32)


def measured(loss, layout, operands, z_loss):
    """(objective, nats, scored tokens), the gradients of the objective, and the program that makes them."""

    def total(hidden, table, targets, weights=None):
        with named.use_layout(layout):
            objective, nats, scored = loss(hidden, table, targets, N_VOCAB, z_loss, weights=weights)
        return objective, (nats, scored)

    dims = (["batch", "sequence", "embd"], ["vocab", "embd"], ["batch", "sequence"], ["batch", "sequence"])
    laid = [jax.device_put(np.asarray(x), layout.sharding(d, x.shape)) for x, d in zip(operands, dims)]
    with jax.set_mesh(layout.mesh):
        run = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
        (objective, (nats, scored)), grads = run(*laid)
        text = str(run.trace(*laid).jaxpr)
    return np.array([objective, nats, scored]), [np.asarray(g, np.float32) for g in grads], text


@pytest.mark.parametrize(
    "layout, z_loss, extra",
    [
        *((name, 0.0, ()) for name in LAYOUTS),
        ("vocabulary", 0.1, ()),
        ("vocabulary", 0.1, (weights(),)),
        ("sequence and embd", 0.0, (weights(),)),
    ],
    ids=lambda value: "weights" if value and isinstance(value, tuple) else None,
)
def test_values_and_gradients_over_several_chunks_are_those_of_the_definition(
    layout, z_loss, extra, monkeypatch
):
    monkeypatch.setattr(
        chunked_loss, "CHUNK_BYTES", 1
    )  # the least: 128 tokens, so that the last chunk is padded
    layout = LAYOUTS[layout]
    arrays = *operands(), *extra
    values, grads, text = measured(cross_entropy, layout, arrays, z_loss)
    chunks = -(-BATCH * LENGTH // layout.split("batch") // layout.split("sequence") // 128)
    assert chunks > 2 and f"length={chunks}" in text
    expected, by_definition, _ = measured(reference_cross_entropy, LAYOUTS["one device"], arrays, z_loss)
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    for ours, theirs in zip(grads, by_definition):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    assert not grads[1][N_VOCAB:].any()


@pytest.mark.parametrize(
    "layout, share",
    [("one device", 1.0), ("one device", 0.0), ("vocabulary", 0.2), ("sequence and embd", 0.2)],
)
def test_leaving_out_chunks_of_which_nothing_is_scored_changes_nothing(layout, share, monkeypatch):
    """With a bias of the table, and its gradient. Rows differ in how many of their tokens are scored."""
    monkeypatch.setattr(chunked_loss, "CHUNK_BYTES", 1)
    hidden, table, targets = map(np.asarray, operands())
    rows = np.random.default_rng(1).uniform(size=targets.shape) < share * np.array([[0.1], [0.5], [1], [2]])
    targets, bias = np.where(rows, targets, -1), np.linspace(-1, 1, ROWS, dtype=np.float32)

    def measured(name, **options):
        layout = LAYOUTS[name]
        loss = chunked_loss.chunked_cross_entropy if options else reference_cross_entropy

        def total(hidden, table, bias):
            with named.use_layout(layout):
                sums = loss(hidden, table, targets, N_VOCAB, 0.1, weights=weights(), bias=bias, **options)
            return sums[0], sums

        dims = (["batch", "sequence", "embd"], ["vocab", "embd"], ["vocab"])
        arrays = [layout.put(x, *d) for x, d in zip((hidden, table, bias), dims)]
        with jax.set_mesh(layout.mesh):
            gradients, sums = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*arrays)
        return [np.asarray(x) for x in (*sums[:3], *gradients)], sums[3:]

    ours, (hits,) = measured(layout, is_sparse=True)
    expected, _ = measured("one device")
    for a, b in zip(ours, expected):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
    likeliest = (hidden @ table.T + bias)[..., :N_VOCAB].argmax(-1)
    np.testing.assert_allclose(hits, np.sum(weights(), where=(likeliest == targets)), rtol=1e-5)


@pytest.mark.parametrize("layout", ["one device", "vocabulary"])
def test_rows_added_for_the_sake_of_products_change_nothing(layout, monkeypatch):
    """Neither sums nor gradients nor the scores of tokens, with a bias of the table."""
    hidden, table, targets = operands()
    bias, layout = jnp.linspace(-1, 1, ROWS), LAYOUTS[layout]

    def found():
        def total(hidden, table, bias):
            with named.use_layout(layout):
                sums = chunked_loss.chunked_cross_entropy(hidden, table, targets, N_VOCAB, 0.1, bias=bias)
            return sums[0], sums

        def scores(hidden, table, bias):
            with named.use_layout(layout):
                return chunked_loss.chunked_token_scores(hidden, table, targets, N_VOCAB, bias)

        dims = (["batch", "sequence", "embd"], ["vocab", "embd"], ["vocab"])
        arrays = [layout.put(x, *d) for x, d in zip((hidden, table, bias), dims)]
        with jax.set_mesh(layout.mesh):
            return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*arrays), jax.jit(scores)(*arrays)

    expected = found()
    monkeypatch.setattr(chunked_loss, "ALIGNED", {"cpu": 7})
    assert ROWS // layout.split("vocab") % 7
    for ours, theirs in zip(jax.tree.leaves(found()), jax.tree.leaves(expected), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_chunks_of_bfloat16_differ_from_the_definition_by_its_rounding(monkeypatch):
    """Values are float32's; a gradient is rounded as its operands are, however many chunks it is the sum
    of."""
    monkeypatch.setattr(chunked_loss, "CHUNK_BYTES", 1)
    values, grads, _ = measured(cross_entropy, LAYOUTS["vocabulary"], operands(jnp.bfloat16), 0.0)
    exact = [x.astype(jnp.float32) for x in operands(jnp.bfloat16)[:2]]
    expected, by_definition, _ = measured(
        reference_cross_entropy, LAYOUTS["one device"], (*exact, operands()[2]), 0.0
    )
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    for ours, theirs in zip(grads, by_definition):
        assert np.linalg.norm(ours - theirs) < 0.01 * np.linalg.norm(theirs)
