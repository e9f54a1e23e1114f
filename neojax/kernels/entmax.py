"""Entmax: a softmax that gives most of the vocabulary no probability at all. https://arxiv.org/abs/1905.05702

gpt-neo's alpha is 1.3. Works on a split vocabulary: only sums and maxima over it are taken.
"""

import jax
import jax.numpy as jnp

ALPHA = 1.3
HALVINGS = 30  # of an interval of length 1: beyond the precision of float32


def entmax(scores: jax.Array) -> jax.Array:
    """Probabilities of float32 scores [..., vocab], as many of them zero as the scores say. No gradient is
    defined.

    p = max(0, (alpha - 1) z - t) ** (1 / (alpha - 1)), with the threshold t for which they add up to 1, by
    bisection.
    """
    z = jax.lax.stop_gradient(scores) * (ALPHA - 1)

    def probabilities(threshold: jax.Array) -> jax.Array:
        return jnp.maximum(z - threshold, 0.0) ** (1 / (ALPHA - 1))

    def halve(index: jax.Array, low: jax.Array) -> jax.Array:
        middle = low + 0.5 ** (index + 1.0)
        return jnp.where(probabilities(middle).sum(axis=-1, keepdims=True) >= 1, middle, low)

    # At max - 1 the likeliest token alone has probability 1; at max all have 0.
    threshold = jax.lax.fori_loop(0, HALVINGS, halve, jnp.max(z, axis=-1, keepdims=True) - 1)
    p = probabilities(threshold)
    return p / p.sum(axis=-1, keepdims=True)


def entmax_loss(scores: jax.Array, picked: jax.Array) -> jax.Array:
    """The loss whose gradient is entmax(scores) - one_hot(target): float32 [..., vocab] and the target's
    score [...].

    It is zero where the target has all the probability, and finite where it has none (gpt-neo took -log of
    the probability, which is infinite there): (p - one_hot) . z + (1 - sum(p ** alpha)) / (alpha (alpha -
    1)), the Fenchel-Young loss of https://arxiv.org/abs/1901.02324. p counts as constant in the gradient: it
    maximises.
    """
    p = entmax(scores)
    expected = jnp.sum(p * jnp.where(p > 0, scores, 0.0), axis=-1)
    entropy = (1 - jnp.sum(p**ALPHA, axis=-1)) / (ALPHA * (ALPHA - 1))
    return expected - picked + entropy
