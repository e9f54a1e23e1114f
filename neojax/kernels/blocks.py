"""XLA's attention in blocks of queries on every device: what is held of the matrix of scores is a block's."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from neojax.kernels.choice import BLOCK
from neojax.kernels.masks import NEVER, Branches, apart, together, visible
from neojax.layout import each_device, named
from neojax.layout.product import product


def on_each_device(
    kernel: Callable[..., jax.Array],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    start: jax.Array | None,
    given: Any,
    *,
    check_vma: bool = True,
) -> jax.Array:
    """Runs `kernel` (q, k, v, start, given) on every device's own rows, or part of them, and heads; `given`:
    segments and the like, [batch, sequence], in a tuple where there are several."""
    spec = named.sharding("batch sequence heads head_dim").spec
    rows = NamedSharding(named.current_layout().mesh, jax.P(*spec[:2]))
    if start is None:
        start = jnp.zeros((q.shape[0],), jnp.int32)
    given = jax.tree.map(lambda x: jax.reshard(x, rows), given)
    return each_device.shard_map(
        kernel,
        mesh=named.current_layout().mesh,
        in_specs=(spec, spec, spec, named.sharding("batch").spec, rows.spec),
        out_specs=spec,
        check_vma=check_vma,
    )(q, k, v, named.lay(start, "batch"), given)


def blocked(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    window: int | None = None,
    start: jax.Array | None = None,
    segments: jax.Array | None = None,
    branches: Branches | None = None,
) -> jax.Array:
    """As `attention`, in blocks of BLOCK queries that look at all keys before them: the scores that are held
    at a time are [heads, BLOCK, keys], and those after the block are never computed."""

    def by_blocks(q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, rows: Any) -> jax.Array:
        blocks = []
        for i in range(0, q.shape[1], BLOCK):
            end = i + BLOCK
            own = jax.tree.map(lambda x, end=end: x[:, :end], rows)
            blocks.append(_plain(q[:, i:end], k[:, :end], v[:, :end], start, own, i, window))
        return jnp.concatenate(blocks, axis=1)

    return on_each_device(by_blocks, q, k, v, start, (segments, branches))


@partial(jax.checkpoint, static_argnums=(5, 6))
def _plain(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    start: jax.Array,
    rows: tuple[jax.Array | None, Branches | None],
    first: int,
    window: int | None,
) -> jax.Array:
    """Attention of queries of times `first`, ... to keys, and their segments and branches, of times 0, ...,
    on one device."""
    segments, branches = rows
    times = first + jnp.arange(q.shape[1]), jnp.arange(k.shape[1])
    seen = visible(*times, window if branches is None else None, start)
    if segments is not None:
        seen &= together(segments[:, first:], segments)
    if branches is not None:
        seen &= Branches(*(x[:, first:] for x in branches)).sees(branches, window)
    shape = q.shape
    q, g = _by_key_head(q, k.shape[2], 2)
    seen = seen[:, None, None] if g else seen[:, None]
    multiply = partial(product, platform=named.current_layout().platform)
    scores = multiply(f"bqh{g}d,bkhd->bh{g}qk", q, k, dtype=jnp.float32)
    weights = jax.nn.softmax(jnp.where(seen, scores, NEVER), axis=-1).astype(v.dtype)
    return multiply(f"bh{g}qk,bkhd->bqh{g}d", weights, v, dtype=v.dtype).reshape(shape)


def _by_key_head(q: jax.Array, heads: int, axis: int) -> tuple[jax.Array, str]:
    """(q, whose heads along `axis` stand as [heads, group] where keys have fewer; what equations call the
    group)."""
    if q.shape[axis] == heads:
        return q, ""
    return q.reshape(*q.shape[:axis], heads, -1, *q.shape[axis + 1 :]), "g"


def local(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    window: int,
    start: jax.Array | None = None,
    segments: jax.Array | None = None,
    causal: bool = True,
) -> jax.Array:
    """As `attention` with a window, in blocks of `window` queries that look at their own block of keys, the
    one before and, if not causal, the one after, so that time and memory are O(sequence * window) instead of
    O(sequence^2).

    Where rows are split, a device has the keys on either side of its own from those that have them.
    """
    return on_each_device(partial(_local_part, window, row_axes(), causal), q, k, v, start, segments)


def row_axes() -> tuple[str, ...]:
    """The mesh axes that split the rows of queries, keys and values."""
    axes = named.sharding("batch sequence heads head_dim").spec[1] or ()
    return (axes,) if isinstance(axes, str) else axes


def before(x: jax.Array, count: int, axes: tuple[str, ...]) -> jax.Array:
    """The `count` tokens before those of a device's part x [batch, tokens, ...] of rows that `axes` split;
    zeros where the row begins."""
    size = x.shape[1]
    hops = range(-(-count // size), 0, -1)
    pieces = [moved(x[:, max(0, hop * size - count) :], axes, hop) for hop in hops]
    return jnp.concatenate([x[:, :0], *pieces], axis=1)


def after(x: jax.Array, count: int, axes: tuple[str, ...]) -> jax.Array:
    """The `count` tokens after those of a device's part; zeros where the row ends."""
    size = x.shape[1]
    hops = range(1, 1 - -count // size)
    pieces = [moved(x[:, : count - (hop - 1) * size], axes, -hop) for hop in hops]
    return jnp.concatenate([x[:, :0], *pieces], axis=1)


def moved(x: jax.Array, axes: tuple[str, ...], hops: int) -> jax.Array:
    """Arrays of every device on the one that comes so many `hops` after it; zeros where none sends."""
    parts = jax.lax.axis_size(axes) if axes else 1
    way = [(i, i + hops) for i in range(parts) if 0 <= i + hops < parts]
    return jax.lax.ppermute(x, axes, way) if way else jnp.zeros_like(x)


@partial(jax.checkpoint, static_argnums=(0, 1, 2))
def _local_part(
    window: int,
    axes: tuple[str, ...],
    causal: bool,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    start: jax.Array,
    segments: jax.Array | None,
) -> jax.Array:
    batch, length, heads, head_dim = q.shape
    blocks = -(-length // window)
    pad, sides = blocks * window - length, 2 if causal else 3

    def split(x: jax.Array, sides: int = 1) -> jax.Array:
        """[batch, tokens, ...] -> [batch, blocks, sides * window, ...]."""
        x = x.reshape(batch, -1, window, *x.shape[2:])
        return jnp.concatenate([x[:, i : i + blocks] for i in range(sides)], axis=2)

    def padded(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, pad), *((0, 0),) * (x.ndim - 2)))

    def around(x: jax.Array) -> jax.Array:
        own = padded(x) if causal else jnp.concatenate([x, after(x, pad + window, axes)], axis=1)
        return split(jnp.concatenate([before(x, window, axes), own], axis=1), sides)

    def by_head(x: jax.Array) -> jax.Array:
        return x.transpose(0, 3, 1, 2, 4)

    first = jnp.arange(blocks)[:, None] * window + (jax.lax.axis_index(axes) * length if axes else 0)
    times = first - window + jnp.arange(sides * window)
    seen = visible(first + jnp.arange(window), times, window, start, causal)
    if not causal:
        seen &= times[:, None] < length * (jax.lax.axis_size(axes) if axes else 1)
    if segments is not None:
        seen &= apart(split(padded(segments)), around(segments), causal)
    own, g = _by_key_head(by_head(split(padded(q))), k.shape[2], 1)
    seen = seen[:, None, None] if g else seen[:, None]
    multiply = partial(product, platform=named.current_layout().platform)
    keys, values = by_head(around(k)), by_head(around(v))
    scores = multiply(f"bh{g}nqd,bhnkd->bh{g}nqk", own, keys, dtype=jnp.float32)
    weights = jax.nn.softmax(jnp.where(seen, scores, NEVER), axis=-1).astype(v.dtype)
    out = multiply(f"bh{g}nqk,bhnkd->bh{g}nqd", weights, values, dtype=v.dtype)
    out = out.reshape(batch, heads, blocks, window, head_dim)
    return out.transpose(0, 2, 3, 1, 4).reshape(batch, blocks * window, heads, head_dim)[:, :length]
