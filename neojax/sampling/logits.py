"""From logits to the next token: pure functions on float32 [batch, vocab].

The filters mean what Hugging Face's logits processors and warpers of the same names mean. Their settings are
traced, one for all rows or one a row, so that a new temperature does not compile anew; a filter that is off
for every row is skipped, not computed, and one that is off for a row leaves its logits bit for bit.
A filtered token has the logit -inf. Thresholds are found by bisection over the ordered bit patterns of
floats, 32 passes over the row: exact, and many times cheaper than sorting a vocabulary on every platform.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from neojax.kernels.entmax import entmax


class Controls(NamedTuple):
    """How the next token is drawn: scalars, or arrays [batch] with a value for each row. `temperature` 0
    takes the likeliest token; `top_k` 0, `top_p` 1, `min_p` 0 and `repetition_penalty` 1 are off."""

    temperature: Any = 1.0
    top_k: Any = 0
    top_p: Any = 1.0
    min_p: Any = 0.0
    repetition_penalty: Any = 1.0
    entmax: Any = False


def column(setting: Any) -> jax.Array:
    """A setting, beside the logits of its row."""
    return jnp.asarray(setting)[..., None]


def penalise(logits: jax.Array, present: jax.Array, penalty: jax.Array | float) -> jax.Array:
    """Positive logits of tokens in `present` (bool [batch, vocab]) divided by `penalty`, negative ones
    multiplied (CTRL, section 4.1)."""
    penalty = column(penalty)
    return jnp.where(present, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_top_k(logits: jax.Array, k: jax.Array | int) -> jax.Array:
    """The `k` largest logits of a row, and those equal to the smallest of them; all of them for 0."""
    k = column(k)
    k = jnp.where(k > 0, k, logits.shape[-1])

    def too_few_above(bound: jax.Array, order: jax.Array) -> jax.Array:
        return jnp.sum(order > bound, axis=-1, keepdims=True) < k

    return _keep_from(logits, too_few_above)


def keep_top_p(logits: jax.Array, p: jax.Array | float) -> jax.Array:
    """The likeliest tokens whose probability adds up to at least `p` (nucleus sampling), and ties of the
    last; all of them for 1."""
    p = column(p)
    p = jnp.where(p < 1, p, jnp.inf)  # sums are rounded, and may reach 1 before the last
    probs = jax.nn.softmax(logits, axis=-1)

    def too_little_above(bound: jax.Array, order: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(order > bound, probs, 0), axis=-1, keepdims=True) < p

    return _keep_from(logits, too_little_above)


def keep_min_p(logits: jax.Array, p: jax.Array | float) -> jax.Array:
    """The tokens at least `p` times as likely as the likeliest."""
    top = jnp.max(logits, axis=-1, keepdims=True)
    return jnp.where(logits - top >= jnp.log(column(p)), logits, -jnp.inf)


def sparse(logits: jax.Array) -> jax.Array:
    """The logarithms of entmax's probabilities, most of which are zero (`kernels.entmax`)."""
    return jnp.log(entmax(logits))


def warp(logits: jax.Array, controls: Controls) -> jax.Array:
    """Temperature, entmax, then top-k, top-p and min-p in Hugging Face's order; the temperature must be above
    0."""
    logits = logits / column(controls.temperature)
    logits = jax.lax.cond(
        jnp.any(controls.entmax),
        lambda logits: jnp.where(column(controls.entmax), sparse(logits), logits),
        lambda logits: logits,
        logits,
    )
    for keep, value, on in (
        (keep_top_k, controls.top_k, jnp.asarray(controls.top_k) > 0),
        (keep_top_p, controls.top_p, jnp.asarray(controls.top_p) < 1),
        (keep_min_p, controls.min_p, jnp.asarray(controls.min_p) > 0),
    ):
        logits = jax.lax.cond(jnp.any(on), keep, lambda logits, _: logits, logits, value)
    return logits


def next_token(logits: jax.Array, present: jax.Array, keys: jax.Array, controls: Controls) -> jax.Array:
    """Draws int32 [batch] from logits [batch, vocab]; `keys` [batch] are random keys, one a row.

    `present` marks the tokens of the row so far, for the repetition penalty.
    """
    logits = jax.lax.cond(
        jnp.any(jnp.asarray(controls.repetition_penalty) != 1),
        penalise,
        lambda x, *_: x,
        logits,
        present,
        controls.repetition_penalty,
    )

    def draw(logits: jax.Array) -> jax.Array:
        # Gumbel-max: element i of the noise does not depend on how many follow, so padding changes nothing.
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:], jnp.float32))(keys)
        warm = controls._replace(temperature=jnp.where(drawn, temperature, 1.0))
        return jnp.where(column(drawn), warp(logits, warm) + noise, logits)

    temperature = jnp.asarray(controls.temperature)
    drawn = temperature > 0
    scores = jax.lax.cond(jnp.any(drawn), draw, lambda logits: logits, logits)
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def _keep_from(logits: jax.Array, low_enough: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """Keeps the logits from the smallest bound on that is `low_enough`, a test that once true stays true for
    every larger bound. Bounds and logits are compared as integers of the same order."""
    bits = jax.lax.bitcast_convert_type(logits, jnp.int32)
    order = jnp.where(bits < 0, ~bits, bits | jnp.int32(-(2**31))).astype(jnp.uint32)

    def halve(bit: jax.Array, bound: jax.Array) -> jax.Array:
        # Bits from the top down: a bit stays set where clearing it (and setting all below) would be too low.
        step = jnp.uint32(1) << (31 - bit).astype(jnp.uint32)
        return jnp.where(low_enough(bound | (step - 1), order), bound, bound | step)

    lowest = jnp.zeros_like(order[..., :1])
    bound = jax.lax.fori_loop(0, 32, halve, lowest)
    return jnp.where(order >= bound, logits, -jnp.inf)
