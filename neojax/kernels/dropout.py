"""Dropout of attention weights a block at a time: which are dropped depends on where they stand in the whole
matrix, not on the blocks or devices that work on it.

`jax.random.bits` of the partitionable threefry generator has the bits at index i of the flat array from the
64-bit count i, so that those of any block can be had alone: the same as of the whole.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p


def bits_at(key: jax.Array, places: Sequence[jax.Array], sizes: Sequence[int]) -> jax.Array:
    """The bits of `jax.random.bits(key, shape)` at `places`, an index in each dimension, which are broadcast.

    key: its data, uint32 [2]; sizes: `shape` without its first. Returns uint32.
    """
    high = low = jnp.zeros(jnp.broadcast_shapes(*(x.shape for x in places)), jnp.uint32)
    for i, place in enumerate(places):
        upper, lower = _times(place.astype(jnp.uint32), math.prod(sizes[i:]))
        low = low + lower
        high = high + upper + (low < lower).astype(jnp.uint32)  # what is carried
    first, second = (jnp.zeros_like(low) + half for half in key)
    one, other = threefry2x32_p.bind(first, second, high, low)
    return one ^ other


def _times(x: jax.Array, by: int) -> tuple[jax.Array, jax.Array]:
    """The upper and the lower 32 bits of uint32 x times `by`, of 64 bits: TPUs have no integers of 64."""
    a, b, c, d = x >> 16, x & 0xFFFF, (by >> 16) & 0xFFFF, by & 0xFFFF
    cross = a * d + (b * d >> 16)
    other = b * c + (cross & 0xFFFF)
    upper = a * c + (cross >> 16) + (other >> 16)
    return upper + x * jnp.uint32(by >> 32), x * jnp.uint32(by & 0xFFFFFFFF)
