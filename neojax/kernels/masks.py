"""Which keys a query sees: by time, by a window, by padding, by the segments of a row and their
branches."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

NEVER = float(jnp.finfo(jnp.float32).min)
"""A score that no softmax gives weight: the least float32."""


def visible(
    query: jax.Array, key: jax.Array, window: int | None, start: jax.Array | None, causal: bool = True
) -> jax.Array:
    """Which keys a query sees: those at or before its own time, within `window`, not before `start`.

    Without `causal`, all keys, or those at most `window` before or after.

    `query` [..., sequence] and `key` [..., keys] are times, `start` [batch] is the time of a row's first
    token (or None). Returns bool [..., sequence, keys], or [batch, ..., sequence, keys] with `start`.
    """
    q, k = query[..., :, None], key[..., None, :]
    seen = (k >= 0) & ((k <= q) if causal else (q >= 0))
    if window is not None:
        seen &= (k > q - window) if causal else (abs(k - q) <= window)
    if start is not None:
        seen = seen & (k >= start.reshape(start.shape + (1,) * seen.ndim))
    return seen


def together(query: jax.Array, key: jax.Array) -> jax.Array:
    """Which keys are of a query's own segment: segments [..., sequence] and [..., keys] -> bool [...,
    sequence, keys]."""
    return query[..., :, None] == key[..., None, :]


def apart(query: jax.Array, key: jax.Array, causal: bool = True) -> jax.Array:
    """Which keys a query may see where documents stand apart, of segments [..., sequence] and [..., keys].

    As in transformers, padding (segment 0) of what is not causal is seen by none and sees all else: what it
    makes of that has a share where a softmax is over all positions, as of answers.
    """
    own = together(query, key)
    return own if causal else (own | (query == 0)[..., :, None]) & (key > 0)[..., None, :]


class Branches(NamedTuple):
    """Segments that are trees: of each token, int32 [batch, sequence], the branch `ids`, 0 for the trunk, and
    the `positions`, of which those of a branch follow the trunk's."""

    ids: jax.Array
    positions: jax.Array

    def sees(self, key: "Branches", window: int | None) -> jax.Array:
        """Which keys of its segment, of those before it in the row, a query sees: bool [batch, sequence,
        keys]."""
        seen = (key.ids == 0)[..., None, :] | together(self.ids, key.ids)
        if window is not None:  # in a row, other branches stand between
            seen &= key.positions[..., None, :] > self.positions[..., :, None] - window
        return seen
