"""The key-value cache of a layer: a ring in which the token of time t is at slot t modulo slots."""

import jax
import jax.numpy as jnp

from neojax.kernels import linear_attention

KeyValues = tuple[jax.Array, jax.Array]
"""The cached keys [batch, heads, head_dim, slots] and values [batch, heads, slots, head_dim] of one layer, in
the orders in which decoding multiplies them. Keys of rotary positions are rotated already; learned keys are
not in it."""

Cache = KeyValues | linear_attention.State | tuple[()]
"""What one layer keeps of the tokens so far; empty for a layer without attention."""


def first_cache(k: jax.Array, v: jax.Array, slots: int) -> KeyValues:
    """The ring after the first tokens (times 0, 1, ...) with keys k and values v [batch, sequence, heads,
    head_dim]."""

    def ring(x: jax.Array) -> jax.Array:
        length = x.shape[1]
        if length > slots:  # the last `slots` tokens, each rolled to its slot
            return jnp.roll(x[:, length - slots :], length % slots, axis=1)
        return jnp.pad(x, ((0, 0), (0, slots - length), (0, 0), (0, 0)))

    return as_cached(ring(k), ring(v))


def as_cached(k: jax.Array, v: jax.Array) -> KeyValues:
    """Keys and values [batch, sequence, heads, head_dim] in the orders of the cache."""
    return k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)


def slot_times(cache: KeyValues, last: jax.Array) -> jax.Array:
    """int32 [slots]: the time of the token in each slot when that of the newest is `last`; negative for
    none."""
    slots = cache[1].shape[2]
    return last - (last - jnp.arange(slots)) % slots


def delayed(cache: KeyValues, by: jax.Array) -> KeyValues:
    """The ring as it is where every token came `by` later."""
    slots = cache[1].shape[2]
    place = (jnp.arange(slots) - by) % slots
    return (
        cache[0].at[..., place].get(out_sharding=jax.typeof(cache[0]).sharding),
        cache[1].at[:, :, place].get(out_sharding=jax.typeof(cache[1]).sharding),
    )


def append(cache: KeyValues, k: jax.Array, v: jax.Array, now: jax.Array) -> KeyValues:
    """The ring with more tokens, of times `now`; k and v are [batch, sequence, heads, head_dim]."""
    k, v = as_cached(k, v)
    slots = cache[1].shape[2]
    if len(now) == 1:  # in place: what decoding does for every token

        def put(old: jax.Array, new: jax.Array, axis: int) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), now[0] % slots, axis)

        return put(cache[0], k, 3), put(cache[1], v, 2)
    wanted, first = slot_times(cache, now[-1]), now[0]  # what is older than `first` is in its slot already
    place = jnp.where(wanted >= first, slots + wanted - first, jnp.arange(slots))
    keys, values = jnp.concatenate([cache[0], k], 3), jnp.concatenate([cache[1], v], 2)
    return (
        keys.at[..., place].get(out_sharding=jax.typeof(cache[0]).sharding),
        values.at[:, :, place].get(out_sharding=jax.typeof(cache[1]).sharding),
    )
