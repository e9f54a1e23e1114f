"""Splash on rows that are split over TPUs: each works on its own queries, with the kernel of whole rows.

A local layer has the keys of its window that stand before a device's own sent by the devices before it. A
global layer gathers keys and values of a row, of as many heads at a time as make them no more than half of
the device's own of all heads, at least one, and forgets them: the backward pass gathers them again, and its
gradients of them go back as sums. The queries of these heads come and go with them where causal work is
balanced. A loop has both what it reads and what it makes until its end, so that there are two, of half of the
heads each.
"""

import math
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as pallas
from jax.sharding import NamedSharding

from neojax.kernels.blocks import before, row_axes
from neojax.kernels.parts import Parts
from neojax.kernels.splash import LANES, block
from neojax.layout import each_device, named

HIDDEN = -1  # the segment of keys before the row


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: jax.Array | None = None,
    *,
    window: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """As `splash.attention`, of rows that the layout splits into parts of a multiple of 128 tokens."""
    layout, axes = named.current_layout(), row_axes()
    spec = named.sharding("batch sequence heads head_dim").spec
    rows = NamedSharding(layout.mesh, jax.P(*spec[:2]))
    if segments is not None:
        segments = jax.reshard(segments, rows)
    operands: tuple[Any, ...] = (q, k, v, segments)
    specs: tuple[Any, ...] = (spec, spec, spec, rows.spec)
    parts = layout.split_over(axes)
    length = q.shape[1] // parts
    if window is not None and window < q.shape[1]:
        own = partial(_local, axes, window, interpret)
    else:
        heads = k.shape[2] // layout.split("heads")
        turns = next(n for n in range(min(2 * parts, heads), heads + 1) if heads % n == 0)
        of_turn = q.shape[2] // layout.split("heads") // turns
        halves = 2 if length % (2 * LANES) == 0 else 1
        kernel = _kernel(
            Causal(parts, length, halves), of_turn, block(length // halves, None), interpret, parts
        )
        of_mask = kernel.manual_sharding_spec(NamedSharding(layout.mesh, jax.P(None, axes)))
        kernel = jax.tree.map(
            lambda x, spec: jax.reshard(x, NamedSharding(layout.mesh, spec)), kernel, of_mask
        )
        operands, specs = (kernel, *operands), (of_mask, *specs)
        own = partial(_global, Parts(axes, parts, halves), turns)
    # Pallas says not over which axes its results vary, so there is nothing to check.
    return each_device.shard_map(own, mesh=layout.mesh, in_specs=specs, out_specs=spec, check_vma=False)(
        *operands
    )


def _kernel(mask: pallas.Mask, heads: int, size: int, interpret: bool, parts: int = 1):
    return pallas.make_splash_mha(
        pallas.MultiHeadMask([mask] * heads),
        head_shards=1,
        q_seq_shards=parts,
        block_sizes=pallas.BlockSizes(*[size] * 8),  # type: ignore[arg-type]
        residual_checkpoint_name="attention",
        interpret=interpret,
    )


class Causal(pallas.CausalMask):
    """The causal mask of queries that stand in the order in which devices have them, and keys in theirs."""

    def __init__(self, parts: int, length: int, halves: int):
        super().__init__((parts * length, parts * length))
        pieces = np.arange(parts * length, dtype=np.int32).reshape(parts * halves, -1)
        order = [j for i in range(parts) for j in (i, 2 * parts - 1 - i)]
        self.q_sequence = (pieces if halves == 1 else pieces[order]).reshape(-1)

    def __getitem__(self, index) -> np.ndarray:
        """As the base class, which compares all pairs of a long row: nearly all blocks are of one value."""
        rows, keys = self.q_sequence[index[0]], range(*index[1].indices(self.shape[1]))
        shape = len(rows), len(keys)
        if rows.min() >= keys[-1]:
            return _all(shape, True)
        return _all(shape, False) if rows.max() < keys[0] else super().__getitem__(index)


@cache
def _all(shape: tuple[int, int], value: bool) -> np.ndarray:
    return np.full(shape, value)


def _global(rows: Parts, turns: int, kernel, q, k, v, segments):
    def by_turn(x: jax.Array, first: int, last: int) -> jax.Array:
        """The heads of some turns, [batch, turns, heads, tokens, head_dim]."""
        batch, tokens, heads, width = x.shape
        begin, end = first * heads // turns, last * heads // turns
        if width % LANES:  # XLA would widen all heads to 128 lanes before it cuts, and have both
            own = x.reshape(batch, tokens, heads * width)[..., begin * width : end * width]
        else:
            own = x[:, :, begin:end]
        return own.reshape(batch, tokens, last - first, -1, width).transpose(0, 2, 3, 1, 4)

    def balanced(x: jax.Array) -> jax.Array:
        pieces = rows.taken_apart(x)
        return jnp.moveaxis(pieces, 0, 1).reshape(x.shape)

    gather = partial(jax.lax.all_gather, axis_name=rows.axes, axis=1, tiled=True)
    ids = None if segments is None else pallas.SegmentIds(balanced(segments), gather(segments))

    @partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names("attention"))
    def turn(q: jax.Array, k: jax.Array, v: jax.Array, ids: pallas.SegmentIds | None) -> jax.Array:
        y = kernel(balanced(q), gather(k), gather(v), ids)
        return rows.joined(jnp.moveaxis(y.reshape(y.shape[0], rows.halves, -1, y.shape[2]), 1, 0))

    def row(own):
        *arrays, ids = own
        return jax.lax.map(lambda arrays: turn(*arrays, ids), tuple(arrays))

    def half(first: int, last: int) -> jax.Array:
        y = jax.lax.map(row, (*(by_turn(x, first, last) for x in (q, k, v)), ids))
        return y.transpose(0, 3, 1, 2, 4).reshape(*q.shape[:2], -1, q.shape[3])

    middle = turns // 2
    halves = [(0, middle), (middle, turns)] if middle else [(0, turns)]
    return jnp.concatenate([half(*own) for own in halves], axis=2)


def _local(axes: tuple[str, ...], window: int, interpret: bool, q, k, v, segments):
    length = q.shape[1]
    more = -(-(window - 1) // LANES) * LANES  # keys before the own
    mask = pallas.LocalMask((length, length + more), (window - 1, 0), more)
    kernel = _kernel(mask, q.shape[2], math.gcd(block(length, window), more or length), interpret)
    if segments is None:
        segments = jnp.zeros(q.shape[:2], jnp.int32)

    def keys(x: jax.Array) -> jax.Array:
        return jnp.concatenate([before(x, more, axes), x], axis=1) if more else x

    is_before = jax.lax.axis_index(axes) * length - more + jnp.arange(more + length) < 0
    ids = pallas.SegmentIds(segments, jnp.where(is_before, HIDDEN, keys(segments)))
    by_head = (x.swapaxes(1, 2) for x in (q, keys(k), keys(v)))
    return jax.vmap(kernel)(*by_head, ids).swapaxes(1, 2)
