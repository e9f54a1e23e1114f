"""Linear attention: a running state of one head_dim x head_dim matrix a head instead of all earlier keys and
values.

    y_i = sum over j <= i of w_ij v_j / (sum over j <= i of w_ij + 1e-6),  w_ij = sum over features d of
    softmax(q_i)_d exp(k_j)_d

One denominator a query: y_i is a mean of values. Without `causal` it is one a feature, which makes exp(k) a
softmax over the sequence:

    y_i = sum over j, and features d, of  softmax(q_i)_d * exp(k_j)_d * v_j / (sum over j of exp(k_j)_d)

Everything is in float32. Facts: gpt-neo's `causal_linear_attention` and `linear_attention`, after
https://arxiv.org/abs/2006.16236 and https://arxiv.org/abs/1812.01243.
`key_dim` is head_dim as queries and keys have it, since the state has both; it is never split.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from neojax.kernels.blocks import moved, row_axes
from neojax.kernels.choice import check_linear
from neojax.kernels.masks import together
from neojax.layout import each_device, named

EPSILON = 1e-6
CHUNK = 128  # queries whose scores to their own chunk are computed at once

State = tuple[jax.Array, jax.Array]
"""Sums over the tokens so far: of exp(k) v [batch, heads, key_dim, head_dim], and of exp(k) [batch, heads,
key_dim]."""


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    start: jax.Array | None = None,
    segments: jax.Array | None = None,
    causal: bool = True,
    time: jax.Array | int = 0,
    state: State | None = None,
) -> tuple[jax.Array, State]:
    """Over whole sequences: q, k, v [batch, sequence, heads, head_dim] -> the same shape, and the state after
    them.

    start: int32 [batch], the number of padding tokens at the left of a row. time: that of the first token;
    state: that before it, where the sequence goes on from earlier tokens. segments: int32 [batch, sequence],
    the segment of each token, which sees no token of another; `state` is then of the segment of the first
    token, and what is returned of that of the last; tokens of one stand together. Without `causal`, exp(k) is
    normalised by its sum over the whole sequence. Causal attention runs in chunks, in time linear in the
    sequence; where rows are split, each device has the state of the parts before its own sent (`_before`).
    Raises `NeojaxError` for segments without `causal`.
    """
    check_linear(causal, segments is not None)
    dtype = v.dtype
    present = None if start is None else time + jnp.arange(k.shape[1]) >= start[:, None]
    q, k = features(q, k, present, causal)
    if not causal:
        y, state = everywhere(q, k, v)
        return y.astype(dtype), state
    keys, values, rows, *of_state = (
        named.sharding(dims, beside).spec
        for dims, beside in (
            ("batch sequence heads key_dim", ""),
            ("batch sequence heads head_dim", ""),
            ("batch sequence", "heads"),
            ("batch heads key_dim head_dim", ""),
            ("batch heads key_dim", ""),
        )
    )
    after = tuple(of_state)
    if segments is not None:
        segments = named.lay(segments, "batch sequence", "heads")
    y, state = each_device.shard_map(
        partial(_part, row_axes()),
        mesh=named.current_layout().mesh,
        in_specs=(keys, keys, values, None if state is None else after, rows),
        out_specs=(values, after),
    )(q, k, v.astype(jnp.float32), state, segments)
    return y.astype(dtype), state


def step(q: jax.Array, k: jax.Array, v: jax.Array, state: State) -> tuple[jax.Array, State]:
    """One more token a row: q, k, v [batch, 1, heads, head_dim] and the state before it -> its y, and the
    state."""
    q, k = features(q, k)
    context, total = (old + new for old, new in zip(state, sums(k, v)))
    weights = named.einsum(
        "batch sequence heads key_dim, batch heads key_dim -> batch sequence heads", q, total
    )
    y = named.einsum(
        "batch sequence heads key_dim, batch heads key_dim head_dim -> batch sequence heads head_dim",
        q,
        context,
    )
    return mean(y, weights[..., None]).astype(v.dtype), (context, total)


def features(
    q: jax.Array, k: jax.Array, present: jax.Array | None = None, causal: bool = True
) -> tuple[jax.Array, jax.Array]:
    """softmax(q) over a head's features, and exp(k), which is 0 where a token is not `present` [batch,
    sequence]. Without `causal`, k is less its largest value in the sequence, which cancels: exp(k) overflows
    from 89 on."""
    q, k = (named.use(x, "batch sequence heads key_dim", jnp.float32) for x in (q, k))
    if present is not None:
        k = jnp.where(present[:, :, None, None], k, -jnp.inf)
    if not causal:
        k = k - jax.lax.stop_gradient(k.max(axis=1, keepdims=True))
    return jax.nn.softmax(q, axis=-1), jnp.exp(k)


def mean(weighted: jax.Array, weights: jax.Array) -> jax.Array:
    """Sums of what is `weighted` over the sums of the `weights`. The gradient of a quotient has its
    denominator squared, which overflows where k is about 40: here that is 1."""
    weights = weights + EPSILON
    size = jax.lax.stop_gradient(weights)
    return (weighted / size) / (weights / size)


def sums(k: jax.Array, v: jax.Array) -> State:
    """The state after tokens with features k and values v, from nothing."""
    context = named.einsum(
        "batch sequence heads key_dim, batch sequence heads head_dim -> batch heads key_dim head_dim", k, v
    )
    return context, named.einsum("batch sequence heads key_dim -> batch heads key_dim", k)


def everywhere(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, State]:
    """Every token looks at all tokens."""
    context, total = state = sums(k, v)
    q = q / total[:, None]
    y = named.einsum(
        "batch sequence heads key_dim, batch heads key_dim head_dim -> batch sequence heads head_dim",
        q,
        context,
    )
    return y, state


def _part(
    axes: tuple[str, ...],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    state: State | None,
    segments: jax.Array | None,
) -> tuple[jax.Array, State]:
    """The attention of one device's part of rows that `axes` split, and the state after the whole rows."""
    last = None if segments is None else segments[:, 0]
    if state is None:
        state = _sums(k[:, :0], v[:, :0])
    if not axes:
        return _chunks(q, k, v, segments, state, last)
    y, state = _chunks(q, k, v, segments, *_before(axes, k, v, segments, state, last))
    is_last = jax.lax.axis_index(axes) == jax.lax.axis_size(axes) - 1
    return y, jax.tree.map(lambda x: jax.lax.psum(jnp.where(is_last, x, 0.0), axes), state)


def _before(
    axes: tuple[str, ...],
    k: jax.Array,
    v: jax.Array,
    segments: jax.Array | None,
    state: State,
    last: jax.Array | None,
) -> tuple[State, jax.Array | None]:
    """The state before a device's part, and the segment of the token before it: each sends the sums of its
    own part on, which are added up in as many hops as the number of parts has binary digits."""
    newest = None
    if segments is not None:
        newest = segments[:, -1]
        k = jnp.where(jnp.equal(segments, newest[:, None])[..., None, None], k, 0.0)
    own = _sums(k, v)
    is_first = jax.lax.axis_index(axes) == 0
    sent = jax.tree.map(lambda x: moved(x, axes, 1), (own, newest))
    state, last = jax.tree.map(partial(jnp.where, is_first), (state, last), sent)
    hops, parts = 1, jax.lax.axis_size(axes)
    while hops < parts:
        more, other = jax.tree.map(partial(moved, axes=axes, hops=hops), (state, last))
        if last is not None:
            more = _of_segment(last == other, more)
        state = jax.tree.map(jnp.add, state, more)
        hops *= 2
    return state, last


def _of_segment(goes_on: jax.Array, state: State) -> State:
    """`state` where it `goes_on` [batch], else nothing."""
    return jax.tree.map(lambda x: jnp.where(goes_on[(..., *(None,) * (x.ndim - 1))], x, 0.0), state)


def _sums(k: jax.Array, v: jax.Array) -> State:
    """As `sums`, of one device's tokens."""
    return jnp.einsum("bkhd,bkhe->bhde", k, v), k.sum(axis=1)


def _chunks(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: jax.Array | None,
    state: State,
    last: jax.Array | None,
) -> tuple[jax.Array, State]:
    """The attention of one device's tokens: scores within a chunk, the state for what came before it. With
    segments, `state` is of that of the `last` token before the chunk."""
    batch, length, heads, _ = q.shape
    chunk = min(CHUNK, length)
    count = -(-length // chunk)

    def split(x: jax.Array) -> jax.Array:  # -> [chunks, batch, heads, chunk, features]
        x = jnp.pad(x, ((0, 0), (0, count * chunk - length), (0, 0), (0, 0)))
        return x.reshape(batch, count, chunk, heads, x.shape[-1]).transpose(1, 0, 3, 2, 4)

    def body(carry: Any, inputs: Any) -> tuple[Any, jax.Array]:
        state, last = carry
        q, k, v, own = inputs
        within = jnp.tril(jnp.einsum("bhqd,bhkd->bhqk", q, k))
        goes_on = state
        if own is not None:
            # Queries of the state's own segment look at it; the next one is of the segment of the chunk's
            # last token.
            newest = own[:, -1]
            goes_on = _of_segment(newest == last, state)
            within = jnp.where(together(own, own)[:, None], within, 0.0)
            q = jnp.where((own == last[:, None])[:, None, :, None], q, 0.0)
            k = jnp.where((own == newest[:, None])[:, None, :, None], k, 0.0)
            last = newest
        context, total = state
        weights = within.sum(axis=-1) + jnp.einsum("bhqd,bhd->bhq", q, total)
        y = mean(within @ v + q @ context, weights[..., None])
        context, total = goes_on
        return ((context + jnp.einsum("bhkd,bhke->bhde", k, v), total + k.sum(axis=2)), last), y

    if segments is not None:
        segments = jnp.pad(segments, ((0, 0), (0, count * chunk - length)), mode="edge")
        segments = segments.reshape(batch, count, chunk).swapaxes(0, 1)
    (state, _), y = jax.lax.scan(body, (state, last), (split(q), split(k), split(v), segments))
    return y.transpose(1, 0, 3, 2, 4).reshape(batch, count * chunk, heads, -1)[:, :length], state
