"""Attention over rows that are split over devices: keys and values go round a ring, and queries stay.

A device has a part of every row. Its queries look at its own keys first, then at those that come from the
device before it, until it has seen all that it may; softmax is taken piece by piece, so that no more than
a block's scores exist at a time, and nothing grows with the whole row. The backward pass goes round once more
and takes the gradients of keys and values with them. Liu et al. 2023, https://arxiv.org/abs/2310.01889.

Where causal work is balanced (`kernels.parts`), all devices do the same at every step, and nothing for keys
that none of their queries sees.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from neojax.kernels.blocks import on_each_device, row_axes
from neojax.kernels.choice import BLOCK
from neojax.kernels.masks import NEVER, apart, visible
from neojax.kernels.parts import Parts
from neojax.layout import named
from neojax.layout.product import product


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    window: int | None = None,
    start: jax.Array | None = None,
    segments: jax.Array | None = None,
    causal: bool = True,
) -> jax.Array:
    """As `kernels.attention.attention`, of rows that the layout splits."""
    layout, axes = named.current_layout(), row_axes()
    parts = layout.split_over(axes)
    length = q.shape[1] // parts
    steps, halves = parts, 1
    if causal and window is not None:
        steps = min(parts, 1 - (1 - window) // length)
    elif causal and length % 2 == 0:
        halves = 2
    ring = Ring(Parts(axes, parts, halves), steps, window, causal, layout.platform)
    return on_each_device(partial(_attend, ring), q, k, v, start, segments)


class Ring(NamedTuple):
    """How rows lie on the devices and what is asked of them.

    steps: the parts whose keys a device sees, its own among them.
    """

    rows: Parts
    steps: int
    window: int | None
    causal: bool
    platform: str

    def pairs(self, step: int | jax.Array, source: jax.Array) -> Iterator[tuple[Any, Any]]:
        """The pieces of queries and of keys, those of part `source`, that meet in a step."""
        if self.rows.halves == 1:
            yield 0, 0
        elif isinstance(step, int):  # its own keys, the first step
            yield from ((0, 0), (1, 0), (1, 1))
        else:  # late queries see every early key; of the others, those of an earlier part are seen
            yield 1, 0
            both = jnp.where(source < self.rows.own(), 0, 1)
            yield both, both


class Keys(NamedTuple):
    """What goes round: keys and values [halves, batch, tokens, heads, head_dim], and their segments."""

    k: jax.Array
    v: jax.Array
    segments: jax.Array | None


class Queries(NamedTuple):
    """What stays: queries [halves, batch, tokens, heads, group, head_dim], their segments, and the time of
    each row's first token."""

    q: jax.Array
    segments: jax.Array | None
    start: jax.Array


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    ring: Ring, q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, segments: jax.Array | None
) -> jax.Array:
    return _forward(ring, q, k, v, start, segments)[0]


def _forward(ring: Ring, q, k, v, start, segments):
    queries, keys = _operands(ring, q, k, v, start, segments)
    mine = ring.rows.own()
    found: list[Any] = [None] * ring.rows.halves
    for a, b in ring.pairs(0, mine):
        piece = _look(ring, queries, keys, mine, a, b)
        found[a] = piece if found[a] is None else _merged(found[a], piece)
    y, total = jax.tree.map(lambda *x: jnp.stack(x), *found)

    def step(number, carry):
        keys, y, total = carry
        keys = ring.rows.sent(keys)
        source = (mine - number) % ring.rows.number
        for a, b in ring.pairs(number, source):
            piece = _look(ring, queries, keys, source, a, b)
            y_a, total_a = _merged((_at(y, a), _at(total, a)), piece)
            y, total = _with(y, a, y_a), _with(total, a, total_a)
        return keys, y, total

    _, y, total = jax.lax.fori_loop(1, ring.steps, step, (keys, y, total))
    y = ring.rows.joined(y.astype(q.dtype).reshape(*y.shape[:3], *q.shape[2:]))
    y, total = checkpoint_name(y, "attention"), checkpoint_name(total, "attention")
    return y, (q, k, v, start, segments, y, total)


def _backward(ring: Ring, kept, slope):
    q, k, v, start, segments, y, total = kept
    queries, keys = _operands(ring, q, k, v, start, segments)
    mine = ring.rows.own()
    heads = partial(_by_key_head, heads=k.shape[2])
    pull = heads(ring.rows.taken_apart(slope))
    shift = jnp.sum(pull.astype(jnp.float32) * heads(ring.rows.taken_apart(y)).astype(jnp.float32), axis=-1)
    shift = shift.transpose(0, 1, 3, 4, 2)  # as `total`: [halves, batch, heads, group, tokens]
    d_q, d_k, d_v = (jnp.zeros_like(x, dtype=jnp.float32) for x in (queries.q, keys.k, keys.v))

    def work(number, source, keys, d_q, d_k, d_v):
        for a, b in ring.pairs(number, source):
            own = _at(pull, a), _at(shift, a), _at(total, a)
            more_q, d_k_b, d_v_b = _slopes(ring, queries, keys, source, a, b, own, _at(d_k, b), _at(d_v, b))
            d_q, d_k, d_v = _with(d_q, a, _at(d_q, a) + more_q), _with(d_k, b, d_k_b), _with(d_v, b, d_v_b)
        return d_q, d_k, d_v

    def step(number, carry):
        keys, d_q, d_k, d_v = carry
        keys, d_k, d_v = ring.rows.sent((keys, d_k, d_v))
        return keys, *work(number, (mine - number) % ring.rows.number, keys, d_q, d_k, d_v)

    first = (keys, *work(0, mine, keys, d_q, d_k, d_v))
    _, d_q, d_k, d_v = jax.lax.fori_loop(1, ring.steps, step, first)
    d_k, d_v = ring.rows.sent((d_k, d_v), 1 - ring.steps)
    d_q = d_q.reshape(*d_q.shape[:3], *q.shape[2:])
    return *(ring.rows.joined(d.astype(x.dtype)) for d, x in ((d_q, q), (d_k, k), (d_v, v))), None, None


_attend.defvjp(_forward, _backward)


def _operands(ring: Ring, q, k, v, start, segments) -> tuple[Queries, Keys]:
    own = None if segments is None else ring.rows.taken_apart(segments)
    queries = _by_key_head(ring.rows.taken_apart(q), k.shape[2])
    return Queries(queries, own, start), Keys(ring.rows.taken_apart(k), ring.rows.taken_apart(v), own)


def _by_key_head(x: jax.Array, heads: int) -> jax.Array:
    """x [halves, batch, tokens, heads of queries, head_dim] by the head of keys that they read."""
    return x.reshape(*x.shape[:3], heads, -1, x.shape[-1])


def _at(x: jax.Array | None, index: jax.Array | int) -> Any:
    return None if x is None else jax.lax.dynamic_index_in_dim(x, index, keepdims=False)


def _with(x: jax.Array, index: jax.Array | int, value: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(x, value, index, 0)


def _merged(one: tuple[jax.Array, jax.Array], other: tuple[jax.Array, jax.Array]):
    """What queries make of two sets of keys, each (mean of values, logarithm of the sum of weights), of both
    together."""
    total = jnp.logaddexp(one[1], other[1])
    parts = (y * _of_queries(jnp.exp(own - total)) for y, own in (one, other))
    return sum(parts), total


def _of_queries(x: jax.Array) -> jax.Array:
    """[batch, heads, group, queries] -> [batch, queries, heads, group, 1]."""
    return x.transpose(0, 3, 1, 2)[..., None]


def _look(ring: Ring, queries: Queries, keys: Keys, source: jax.Array, a: Any, b: Any):
    """What piece `a` of the queries makes of piece `b` of the keys of part `source`: (mean of values float32
    [batch, tokens, heads, group, head_dim], logarithm of the sum of weights [batch, heads, group,
    tokens])."""
    k, v = _at(keys.k, b), _at(keys.v, b)

    def look(q: jax.Array, seen: jax.Array):
        scores = product("bqhgd,bkhd->bhgqk", q, k, dtype=jnp.float32, platform=ring.platform)
        scores = jnp.where(seen, scores, NEVER)
        top = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1)
        weights = weights.astype(v.dtype)
        y = product("bhgqk,bkhd->bqhgd", weights, v, dtype=jnp.float32, platform=ring.platform)
        return y / _of_queries(total), top[..., 0] + jnp.log(total)

    seen = _seen(ring, queries, keys, source, a, b)
    q = _at(queries.q, a)
    size = _block(q.shape[1])

    def block(index: jax.Array):
        own = jax.lax.dynamic_slice_in_dim(q, index * size, size, axis=1)
        return look(own, seen(index * size, size))

    y, total = jax.lax.map(block, jnp.arange(q.shape[1] // size))
    return y.swapaxes(0, 1).reshape(q.shape), jnp.moveaxis(total, 0, -2).reshape(*total.shape[1:4], -1)


def _slopes(ring: Ring, queries: Queries, keys: Keys, source: jax.Array, a: Any, b: Any, own, d_k, d_v):
    """The gradients of piece `a` of the queries, and those of piece `b` of the keys and values added to `d_k`
    and `d_v`, all float32. own: what comes back to these queries, its product with what they made, and the
    logarithm of the sum of all their weights."""
    k, v = _at(keys.k, b), _at(keys.v, b)
    seen, q = _seen(ring, queries, keys, source, a, b), _at(queries.q, a)
    size = _block(q.shape[1])
    multiply = partial(product, dtype=jnp.float32, platform=ring.platform)

    def block(carry: tuple[jax.Array, jax.Array], index: jax.Array):
        d_k, d_v = carry
        part = partial(jax.lax.dynamic_slice_in_dim, start_index=index * size, slice_size=size)
        queries, pull = part(q, axis=1), part(own[0], axis=1)
        shift, total = (part(x, axis=3)[..., None] for x in own[1:])
        scores = multiply("bqhgd,bkhd->bhgqk", queries, k)
        weights = jnp.exp(jnp.where(seen(index * size, size), scores, NEVER) - total)
        d_v += multiply("bhgqk,bqhgd->bkhd", weights.astype(v.dtype), pull)
        d_scores = weights * (multiply("bqhgd,bkhd->bhgqk", pull, v) - shift)
        d_scores = d_scores.astype(q.dtype)
        d_k += multiply("bhgqk,bqhgd->bkhd", d_scores, queries)
        return (d_k, d_v), multiply("bhgqk,bkhd->bqhgd", d_scores, k)

    (d_k, d_v), d_q = jax.lax.scan(block, (d_k, d_v), jnp.arange(q.shape[1] // size))
    return d_q.swapaxes(0, 1).reshape(q.shape), d_k, d_v


def _seen(
    ring: Ring, queries: Queries, keys: Keys, source: jax.Array, a: Any, b: Any
) -> Callable[[jax.Array, int], jax.Array]:
    """Which keys of piece `b` of part `source` are seen by the queries of piece `a` from a place on, so many:
    bool, broadcast to [batch, heads, group, queries, keys]."""
    tokens = queries.q.shape[2]
    asking, asked = ring.rows.times(ring.rows.own(), a, tokens), ring.rows.times(source, b, tokens)
    own, other = _at(queries.segments, a), _at(keys.segments, b)

    def seen(first: jax.Array, size: int) -> jax.Array:
        part = partial(jax.lax.dynamic_slice_in_dim, start_index=first, slice_size=size)
        found = visible(part(asking), asked, ring.window, queries.start, ring.causal)
        if own is not None:
            found &= apart(part(own, axis=1), other, ring.causal)
        return found[:, None, None]

    return seen


def _block(tokens: int) -> int:
    """The queries of a block: the largest divisor of `tokens` that is at most `BLOCK`."""
    return next(size for size in range(min(BLOCK, tokens), 0, -1) if tokens % size == 0)
