"""The loss against optax, its padding, and its numerical range."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import layout_of

from neojax.kernels.loss import cross_entropy, logits, reference_cross_entropy
from neojax.layout import named

ONE = layout_of("data:1")


def slope(function):
    """Its value and its gradients by hidden states and table; eagerly, every operation would be a program."""
    return jax.jit(jax.value_and_grad(function, (0, 1), has_aux=True))


def operands(vocab=11, dtype=jnp.float32):
    a, b, c = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(a, (3, 5, 8), dtype)
    table = jax.random.normal(b, (vocab, 8), dtype)
    return hidden, table, jax.random.randint(c, (3, 5), 0, 9)


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("n_vocab", [11, 9])
def test_equals_optax_on_the_true_vocabulary(z_loss, n_vocab):
    """With 9 ids of 11 rows, the padding has no part in values or gradients."""
    hidden, table, targets = operands()
    targets = targets.at[0, 1:4].set(-1).at[2].set(-1)

    def ours(hidden, table):
        with named.use_layout(ONE):
            total, nll, count = cross_entropy(hidden, table, targets, n_vocab, z_loss)
        return total, (nll, count)

    def theirs(hidden, table):
        scores = jnp.einsum("bse,ve->bsv", hidden, table[:n_vocab])
        each = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.maximum(targets, 0))
        penalty = z_loss * jax.nn.logsumexp(scores, axis=-1) ** 2
        scored = targets >= 0
        return jnp.sum((each + penalty) * scored), (jnp.sum(each * scored), scored.sum())

    (total, (nll, count)), grads = slope(ours)(hidden, table)
    (total_2, (nll_2, count_2)), grads_2 = slope(theirs)(hidden, table)
    assert count == count_2 == 7
    np.testing.assert_allclose([total, nll], [total_2, nll_2], rtol=1e-6)
    for a, b in zip(grads, grads_2):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert not np.asarray(grads[1])[n_vocab:].any()


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize(
    "loss", [cross_entropy, reference_cross_entropy, partial(cross_entropy, entmax=True)]
)
def test_a_target_counts_as_often_as_its_weight_says(loss, z_loss):
    """A weight of 2 is a target that is there twice; one of 0, of a target that cannot be, is none at all."""
    hidden, table, targets = operands()
    weights = jnp.array([[2.0, 1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 3.0, 1.0, 1.0], [1.0] * 5])
    targets = targets.at[2, 1].set(-1)
    impossible = targets.at[1, 0].set(10)  # among 10 ids

    def sums(hidden, table, targets, weights):
        with named.use_layout(ONE):
            total, nll, count = loss(hidden, table, targets, 10, z_loss, weights=weights)
        return total, (nll, count)

    def repeated(hidden, table):
        """Every row as often as its largest weight, scored where it still counts."""
        rows = [targets if i == 0 else jnp.where(weights > i, targets, -1) for i in range(3)]
        rows[0] = jnp.where(weights > 0, targets, -1)
        every = jnp.concatenate([hidden] * 3), table, jnp.concatenate(rows), None
        return sums(*every)

    (total, (nll, count)), grads = slope(sums)(hidden, table, impossible, weights)
    (total_2, (nll_2, count_2)), grads_2 = slope(repeated)(hidden, table)
    assert count == count_2 == 14
    np.testing.assert_allclose([total, nll], [total_2, nll_2], rtol=1e-6)
    for a, b in zip(grads, grads_2):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    "layout",
    [
        ONE,
        layout_of("data:2, model:2", "batch:data, vocab:model"),
        layout_of("x:2, y:2", "sequence:x, embd:y"),
    ],
    ids=["one device", "vocabulary", "sequence and embd"],
)
def test_memory_does_not_grow_with_vocabulary_times_sequence(layout):
    """Doubling both adds to the temporaries what doubling each alone adds; with whole logits it adds their
    size."""

    def temporaries(loss, vocab, length):
        def total(hidden, table, targets):
            with named.use_layout(layout):
                return loss(hidden, table, targets, vocab)[0]

        operands = [
            jax.ShapeDtypeStruct(shape, dtype, sharding=layout.sharding(dims, shape))
            for dims, shape, dtype in (
                (("batch", "sequence", "embd"), (2, length, 16), jnp.float32),
                (("vocab", "embd"), (vocab, 16), jnp.float32),
                (("batch", "sequence"), (2, length), jnp.int32),
            )
        ]
        with jax.set_mesh(layout.mesh):
            compiled = jax.jit(jax.value_and_grad(total, (0, 1))).lower(*operands).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def growth(loss):
        at = partial(temporaries, loss)
        return at(2 * V, 2 * T) - at(2 * V, T) - at(V, 2 * T) + at(V, T)

    V, T = 16384, 4096
    own_logits = 4 * V * 2 * T // layout.mesh.size
    assert abs(growth(cross_entropy)) < own_logits / 100
    if layout is ONE:
        assert growth(reference_cross_entropy) > own_logits


def test_padding_has_no_probability():
    hidden, table, _ = operands()
    with named.use_layout(ONE):
        probabilities = jax.nn.softmax(logits(hidden, table.at[9:].set(100.0), 9))
    assert not np.asarray(probabilities)[..., 9:].any()
    np.testing.assert_allclose(np.asarray(probabilities)[..., :9].sum(-1), 1, rtol=1e-6)


def test_large_logits_do_not_overflow():
    hidden, table, targets = operands()
    with named.use_layout(ONE):
        values = jax.jit(cross_entropy, static_argnums=3)(hidden * 1e4, table, targets, 11)
        grads = jax.jit(jax.grad(lambda h: cross_entropy(h * 1e4, table, targets, 11)[0]))(hidden)
    assert np.isfinite(values).all() and np.isfinite(grads).all()


def test_float32_from_bfloat16():
    """Logits of bfloat16 operands are accumulated and kept in float32."""
    hidden, table, targets = operands(dtype=jnp.bfloat16)
    with named.use_layout(ONE):
        scores = logits(hidden, table, 11)
        assert {x.dtype for x in (scores, *cross_entropy(hidden, table, targets, 11))} == {jnp.dtype("f4")}
    exact = np.einsum("bse,ve->bsv", np.asarray(hidden, "f8"), np.asarray(table, "f8"))
    np.testing.assert_allclose(scores, exact, atol=1e-5)
