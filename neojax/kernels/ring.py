"""Attention over rows that are split over devices: keys and values go round a ring, and queries stay.

A device has a part of every row. Its queries look at its own keys first, then at those that come from the
device before it, until it has seen all that it may; softmax is taken piece by piece, so that no more than
a block's scores exist at a time, and nothing grows with the whole row. The backward pass goes round once more
and takes the gradients of keys and values with them. Liu et al. 2023, https://arxiv.org/abs/2310.01889.

Where causal work is balanced (`kernels.parts`), all devices do the same at every step, and nothing for keys
that none of their queries sees. Learned keys, which all queries see, are on every device and go nowhere.
What dropout drops is what it drops of the whole matrix of weights (`kernels.dropout`).
"""

from collections.abc import Callable, Iterator
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding

from neojax.kernels.blocks import row_axes
from neojax.kernels.choice import BLOCK
from neojax.kernels.dropout import bits_at
from neojax.kernels.masks import NEVER, Branches, apart, visible
from neojax.kernels.parts import Parts
from neojax.layout import each_device, named
from neojax.layout.product import product


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    window: int | None = None,
    start: jax.Array | None = None,
    segments: jax.Array | None = None,
    branches: Branches | None = None,
    causal: bool = True,
    memory: tuple[named.Param, named.Param] | None = None,
    dropout: named.Dropout | None = None,
) -> jax.Array:
    """As `kernels.attention.attention`, of rows that the layout splits."""
    layout, axes = named.current_layout(), row_axes()
    parts = layout.split_over(axes)
    length = q.shape[1] // parts
    steps, halves = parts, 1
    if causal and window is not None and branches is None:
        steps = min(parts, 1 - (1 - window) // length)
    elif causal and length % 2 == 0:
        halves = 2
    spec = named.sharding("batch sequence heads head_dim").spec
    axes_of = [(names,) if isinstance(names, str) else names or () for names in spec]
    drop = None if dropout is None else Drop(dropout.rate, q.shape[1], q.shape[2], axes_of[0], axes_of[2])
    ring = Ring(Parts(axes, parts, halves), steps, window, causal, layout.platform, drop)
    slots = "slots heads head_dim"
    learned: Learned | None = None
    bits: Bits = ()
    if memory is not None:
        learned = [named.lay(named.use(x, "memory_slots heads head_dim"), slots) for x in memory]
    if dropout is not None:  # the keys that `attend` takes
        keys = dropout.key, jax.random.fold_in(dropout.key, 1)
        bits = tuple(map(jax.random.key_data, keys))
    rows = NamedSharding(layout.mesh, jax.P(*spec[:2]))
    ids = jax.tree.map(lambda x: jax.reshard(x, rows), (segments, branches))
    if start is None:
        start = jnp.zeros((q.shape[0],), jnp.int32)
    return each_device.shard_map(
        partial(_attend, ring),
        mesh=layout.mesh,
        in_specs=(spec, spec, spec, named.sharding(slots).spec, rows.spec, jax.P(spec[0]), jax.P()),
        out_specs=spec,
    )(q, k, v, learned, ids, named.lay(start, "batch"), bits)


class Drop(NamedTuple):
    """What dropout drops: a share `rate` of the weights, told by where they stand among those of all
    `tokens` and `heads` of queries, of which the mesh axes `batch_axes` and `head_axes` give a device its
    part."""

    rate: float
    tokens: int
    heads: int
    batch_axes: tuple[str, ...]
    head_axes: tuple[str, ...]

    def __call__(
        self, weights: jax.Array, key: jax.Array, asking: jax.Array, asked: jax.Array, count: int
    ) -> jax.Array:
        """What is left of `weights` [batch, heads, group, queries, keys] of the queries at times `asking` and
        the keys `asked` of all that there are, `count`."""
        batch, heads, group = weights.shape[:3]
        row = _first(self.batch_axes, batch) + jnp.arange(batch)
        head = _first(self.head_axes, heads * group) + jnp.arange(heads * group).reshape(heads, group)
        places = row[:, None, None, None, None], head[..., None, None], asking[:, None], asked
        return named.dropped(weights, bits_at(key, places, (self.heads, self.tokens, count)), self.rate)


def _first(axes: tuple[str, ...], size: int) -> jax.Array | int:
    """Where a device's part of `size` begins in what `axes` split."""
    return jax.lax.axis_index(axes) * size if axes else 0


class Ring(NamedTuple):
    """How rows lie on the devices and what is asked of them.

    steps: the parts whose keys a device sees, its own among them.
    """

    rows: Parts
    steps: int
    window: int | None
    causal: bool
    platform: str
    drop: Drop | None

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


Ids = tuple[jax.Array | None, Branches | None]
"""Segments and branches of a row's tokens, where there are any."""
Learned = list[jax.Array]
"""Keys and values [slots, heads, head_dim] that all queries see."""
Bits = tuple[jax.Array, ...]
"""The data of the keys of the bits by which weights of tokens and of learned keys are dropped, if any are."""


class Keys(NamedTuple):
    """What goes round: keys and values [halves, batch, tokens, heads, head_dim], and the `ids` of their
    segments and branches."""

    k: jax.Array
    v: jax.Array
    ids: Ids


class Queries(NamedTuple):
    """What stays: queries [halves, batch, tokens, heads, group, head_dim], their ids, the time of each row's
    first token, and the `bits` of dropout."""

    q: jax.Array
    ids: Ids
    start: jax.Array
    bits: Bits


class Pair(NamedTuple):
    """A piece of queries [batch, tokens, heads, group, head_dim] and keys and values [batch, keys, heads,
    head_dim] that it looks at.

    seen: which of these queries from a place on, so many, see: bool, broadcast to [batch, heads, group,
    queries, keys]. left: what dropout leaves of their weights.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    seen: Callable[[jax.Array, int], jax.Array]
    left: Callable[[jax.Array, int, jax.Array], jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    ring: Ring,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    learned: Learned | None,
    ids: Ids,
    start: jax.Array,
    bits: Bits,
) -> jax.Array:
    return _forward(ring, q, k, v, learned, ids, start, bits)[0]


def _forward(ring: Ring, q, k, v, learned, ids, start, bits):
    queries, keys = _operands(ring, q, k, v, ids, start, bits)
    mine = ring.rows.own()
    found: list[Any] = [[] for _ in range(ring.rows.halves)]
    for a, own in enumerate(found):
        if learned is not None:
            own.append(_look(ring, _learned_pair(ring, queries, learned, a)))
    for a, b in ring.pairs(0, mine):
        found[a].append(_look(ring, _pair(ring, queries, keys, mine, a, b)))
    y, total = jax.tree.map(lambda *x: jnp.stack(x), *(reduce(_merged, own) for own in found))

    def step(number, carry):
        keys, y, total = carry
        keys = ring.rows.sent(keys)
        source = (mine - number) % ring.rows.number
        for a, b in ring.pairs(number, source):
            piece = _look(ring, _pair(ring, queries, keys, source, a, b))
            y_a, total_a = _merged((_at(y, a), _at(total, a)), piece)
            y, total = _with(y, a, y_a), _with(total, a, total_a)
        return keys, y, total

    _, y, total = jax.lax.fori_loop(1, ring.steps, step, (keys, y, total))
    y = ring.rows.joined(y.astype(q.dtype).reshape(*y.shape[:3], *q.shape[2:]))
    y, total = checkpoint_name(y, "attention"), checkpoint_name(total, "attention")
    return y, (q, k, v, learned, ids, start, bits, y, total)


def _backward(ring: Ring, kept, slope):
    q, k, v, learned, ids, start, bits, y, total = kept
    queries, keys = _operands(ring, q, k, v, ids, start, bits)
    mine = ring.rows.own()
    heads = partial(_by_key_head, heads=k.shape[2])
    pull = heads(ring.rows.taken_apart(slope))
    shift = jnp.sum(pull.astype(jnp.float32) * heads(ring.rows.taken_apart(y)).astype(jnp.float32), axis=-1)
    shift = shift.transpose(0, 1, 3, 4, 2)  # as `total`: [halves, batch, heads, group, tokens]
    d_q, d_k, d_v = (jnp.zeros_like(x, dtype=jnp.float32) for x in (queries.q, keys.k, keys.v))

    def slopes(pair, a, d_k, d_v):
        return _slopes(ring, pair, (_at(pull, a), _at(shift, a), _at(total, a)), d_k, d_v)

    def work(number, source, keys, d_q, d_k, d_v):
        for a, b in ring.pairs(number, source):
            pair = _pair(ring, queries, keys, source, a, b)
            more_q, d_k_b, d_v_b = slopes(pair, a, _at(d_k, b), _at(d_v, b))
            d_q, d_k, d_v = _with(d_q, a, _at(d_q, a) + more_q), _with(d_k, b, d_k_b), _with(d_v, b, d_v_b)
        return d_q, d_k, d_v

    def step(number, carry):
        keys, d_q, d_k, d_v = carry
        keys, d_k, d_v = ring.rows.sent((keys, d_k, d_v))
        return keys, *work(number, (mine - number) % ring.rows.number, keys, d_q, d_k, d_v)

    d_learned = None
    if learned is not None:
        pairs = [_learned_pair(ring, queries, learned, a) for a in range(ring.rows.halves)]
        own = [jnp.zeros_like(x, dtype=jnp.float32) for x in (pairs[0].k, pairs[0].v)]
        for a, pair in enumerate(pairs):
            more_q, *own = slopes(pair, a, *own)
            d_q = _with(d_q, a, _at(d_q, a) + more_q)
        d_learned = [_of_all(d, x) for d, x in zip(own, learned)]
    first = (keys, *work(0, mine, keys, d_q, d_k, d_v))
    _, d_q, d_k, d_v = jax.lax.fori_loop(1, ring.steps, step, first)
    d_k, d_v = ring.rows.sent((d_k, d_v), 1 - ring.steps)
    d_q = d_q.reshape(*d_q.shape[:3], *q.shape[2:])
    d_q, d_k, d_v = (ring.rows.joined(d.astype(x.dtype)) for d, x in ((d_q, q), (d_k, k), (d_v, v)))
    return d_q, d_k, d_v, d_learned, None, None, None


_attend.defvjp(_forward, _backward)


def _of_all(slope: jax.Array, learned: jax.Array) -> jax.Array:
    """What comes back to learned keys [slots, heads, head_dim] of every row and all devices that have
    them."""
    own = jax.typeof(slope).mat.varying - jax.typeof(learned).mat.varying
    return jax.lax.psum(slope.sum(axis=0), tuple(own)).astype(learned.dtype)


def _operands(ring: Ring, q, k, v, ids, start, bits) -> tuple[Queries, Keys]:
    own = jax.tree.map(ring.rows.taken_apart, ids)
    queries = _by_key_head(ring.rows.taken_apart(q), k.shape[2])
    keys = Keys(ring.rows.taken_apart(k), ring.rows.taken_apart(v), own)
    return Queries(queries, own, start, bits), keys


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


def _look(ring: Ring, pair: Pair):
    """What the queries make of the keys: (mean of values float32 [batch, tokens, heads, group, head_dim],
    logarithm of the sum of weights [batch, heads, group, tokens])."""
    q, k, v = pair.q, pair.k, pair.v
    size = _block(q.shape[1])

    def block(index: jax.Array):
        own = jax.lax.dynamic_slice_in_dim(q, index * size, size, axis=1)
        scores = product("bqhgd,bkhd->bhgqk", own, k, dtype=jnp.float32, platform=ring.platform)
        scores = jnp.where(pair.seen(index * size, size), scores, NEVER)
        top = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1)
        weights = pair.left(index * size, size, weights).astype(v.dtype)
        y = product("bhgqk,bkhd->bqhgd", weights, v, dtype=jnp.float32, platform=ring.platform)
        return y / _of_queries(total), top[..., 0] + jnp.log(total)

    y, total = jax.lax.map(block, jnp.arange(q.shape[1] // size))
    return y.swapaxes(0, 1).reshape(q.shape), jnp.moveaxis(total, 0, -2).reshape(*total.shape[1:4], -1)


def _slopes(ring: Ring, pair: Pair, own: Any, d_k: jax.Array, d_v: jax.Array):
    """The gradients of the queries, and those of the keys and values added to `d_k` and `d_v`, all float32.
    own: what comes back to these queries, its product with what they made, and the logarithm of the sum of
    all their weights."""
    q, k, v = pair.q, pair.k, pair.v
    size = _block(q.shape[1])
    multiply = partial(product, dtype=jnp.float32, platform=ring.platform)

    def block(carry: tuple[jax.Array, jax.Array], index: jax.Array):
        d_k, d_v = carry
        part = partial(jax.lax.dynamic_slice_in_dim, start_index=index * size, slice_size=size)
        left = partial(pair.left, index * size, size)
        queries, pull = part(q, axis=1), part(own[0], axis=1)
        shift, total = (part(x, axis=3)[..., None] for x in own[1:])
        scores = multiply("bqhgd,bkhd->bhgqk", queries, k)
        weights = jnp.exp(jnp.where(pair.seen(index * size, size), scores, NEVER) - total)
        d_v += multiply("bhgqk,bqhgd->bkhd", left(weights).astype(v.dtype), pull)
        d_scores = weights * (left(multiply("bqhgd,bkhd->bhgqk", pull, v)) - shift)
        d_scores = d_scores.astype(q.dtype)
        d_k += multiply("bhgqk,bqhgd->bkhd", d_scores, queries)
        return (d_k, d_v), multiply("bhgqk,bkhd->bqhgd", d_scores, k)

    (d_k, d_v), d_q = jax.lax.scan(block, (d_k, d_v), jnp.arange(q.shape[1] // size))
    return d_q.swapaxes(0, 1).reshape(q.shape), d_k, d_v


def _pair(ring: Ring, queries: Queries, keys: Keys, source: jax.Array, a: Any, b: Any) -> Pair:
    """Piece `a` of the queries and piece `b` of the keys of part `source`."""
    tokens = queries.q.shape[2]
    asking, asked = ring.rows.times(ring.rows.own(), a, tokens), ring.rows.times(source, b, tokens)
    segments, branches = (jax.tree.map(partial(_at, index=a), x) for x in queries.ids)
    other, others = (jax.tree.map(partial(_at, index=b), x) for x in keys.ids)
    window = None if branches is not None else ring.window

    def seen(first: jax.Array, size: int) -> jax.Array:
        part = partial(jax.lax.dynamic_slice_in_dim, start_index=first, slice_size=size)
        found = visible(part(asking), asked, window, queries.start, ring.causal)
        if segments is not None:
            found &= apart(part(segments, axis=1), other, ring.causal)
        if branches is not None:
            found &= Branches(*(part(x, axis=1) for x in branches)).sees(others, ring.window)
        return found[:, None, None]

    left = _left(ring, queries, 0, asking, asked, tokens * keys.k.shape[0] * ring.rows.number)
    return Pair(_at(queries.q, a), _at(keys.k, b), _at(keys.v, b), seen, left)


def _learned_pair(ring: Ring, queries: Queries, learned: Learned, a: int) -> Pair:
    """Piece `a` of the queries and the learned keys, which every query sees."""
    q = _at(queries.q, a)
    slots = learned[0].shape[0]
    place = jnp.zeros_like(q[:, :1, :, 0])  # varies over the devices as q does
    k, v = (place + x.astype(q.dtype) for x in learned)
    asking = ring.rows.times(ring.rows.own(), a, q.shape[1])
    left = _left(ring, queries, 1, asking, jnp.arange(slots), slots)
    return Pair(q, k, v, lambda first, size: jnp.bool(True), left)


def _left(ring: Ring, queries: Queries, which: int, asking: jax.Array, asked: jax.Array, count: int):
    """`Pair.left` of queries and keys at those times, of `count` keys in all."""

    def left(first: jax.Array, size: int, weights: jax.Array) -> jax.Array:
        if ring.drop is None:
            return weights
        part = jax.lax.dynamic_slice_in_dim(asking, first, size)
        return ring.drop(weights, queries.bits[which], part, asked, count)

    return left


def _block(tokens: int) -> int:
    """The queries of a block: the largest divisor of `tokens` that is at most `BLOCK`."""
    return next(size for size in range(min(BLOCK, tokens), 0, -1) if tokens % size == 0)
