"""Cross-entropy without the logits: tokens in chunks, gradients made in the forward pass.

The logits of a chunk are used for its loss and at once for its gradients, then forgotten, so that memory does not grow
with vocabulary x sequence, and nothing is computed twice. Everything runs under `shard_map`: a device works on its own
tokens and its own part of the vocabulary and of embd, and only sums of tokens' size travel, but for the gradient of
the table, which is summed once.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from neojax import named
from neojax.kernels.product import product
from neojax.kernels.row_lookup import vary

CHUNK_BYTES = 64 << 20  # of float32 logits on a device


class _Split(NamedTuple):
    """How one device's part relates to the whole."""

    n_vocab: int
    z_loss: float
    tokens: tuple[str, ...]  # mesh axes that split batch and sequence
    vocab: tuple[str, ...]
    embd: tuple[str, ...]
    chunk: int  # tokens in a chunk
    platform: str


def chunked_cross_entropy(
    hidden: jax.Array,
    table: named.Param | jax.Array,
    targets: jax.Array,
    n_vocab: int,
    z_loss: float = 0.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `loss.reference_cross_entropy`: scalars (objective, nats, scored tokens). With `z_loss` only the
    objective has a gradient.

    hidden [batch, sequence, embd], table [vocab, embd] (rows past `n_vocab` are padding), targets int32
    [batch, sequence] (-1: not scored).
    """
    layout = named.current_layout()
    layout.spec(("batch", "sequence", "vocab"), what="logits")  # raises for an axis that splits two of them
    shards = layout.split("vocab")
    used, summed = named.trained(table, "vocab embd", hidden.dtype)
    rows = CHUNK_BYTES // (4 * used.shape[0] // shards)
    split = _Split(
        n_vocab,
        z_loss,
        (*layout.axes("batch"), *layout.axes("sequence")),
        layout.axes("vocab"),
        layout.axes("embd"),
        max(rows // 128 * 128, 128),
        layout.platform,
    )
    dims = ("batch sequence embd", "vocab embd", "vocab embd", "batch sequence")
    arrays = (hidden, jax.lax.stop_gradient(used), summed, targets)
    parts = [named.lay(x, d) for x, d in zip(arrays, dims)]
    return jax.shard_map(
        partial(_own_part, split),
        mesh=layout.mesh,
        in_specs=tuple(named.sharding(d).spec for d in dims),
        out_specs=(jax.P(), jax.P(), jax.P()),
    )(*parts)


def _own_part(split: _Split, hidden: jax.Array, table: jax.Array, summed: jax.Array, targets: jax.Array):
    flat = hidden.reshape(-1, hidden.shape[-1])
    # The gradient of a table that several devices use is the sum of theirs: made where the table becomes "varying".
    table, summed = vary(table, split.tokens), vary(summed, split.tokens)
    sums = _sums(split, flat, table, summed, targets.reshape(-1))
    return tuple(jax.lax.psum(x, split.tokens) if split.tokens else x for x in sums)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(split: _Split, hidden: jax.Array, table: jax.Array, summed: jax.Array, targets: jax.Array):
    return _scan(split, hidden, table, targets, gradients=False)[0]


def _forward(split: _Split, hidden: jax.Array, table: jax.Array, summed: jax.Array, targets: jax.Array):
    sums, gradients = _scan(split, hidden, table, targets, gradients=True)
    return sums, (*gradients, jnp.zeros(0, summed.dtype))


def _backward(split: _Split, residuals: Any, cotangents: Any):
    d_hidden, d_table, summed = residuals
    objective, nats, _ = cotangents
    scale = objective if split.z_loss else objective + nats  # without z_loss the two are the same sum
    return (
        (d_hidden * scale).astype(d_hidden.dtype),
        None,
        (d_table * scale).astype(summed.dtype),
        None,
    )


_sums.defvjp(_forward, _backward)


def _scan(split: _Split, hidden: jax.Array, table: jax.Array, targets: jax.Array, gradients: bool):
    """((objective, nats, scored), (d_hidden, d_table)) of one device's tokens, hidden [tokens, embd]."""
    tokens = hidden.shape[0]
    chunk = min(split.chunk, tokens)
    chunks = -(-tokens // chunk)
    pad = chunks * chunk - tokens
    pieces = (
        jnp.pad(hidden, ((0, pad), (0, 0))).reshape(chunks, chunk, -1),
        jnp.pad(targets, (0, pad), constant_values=-1).reshape(chunks, chunk),
    )
    step = partial(_chunk, split, table, gradients=gradients)
    everywhere = (*split.tokens, *split.vocab, *split.embd)
    sums = tuple(vary(jnp.zeros(()), split.tokens) for _ in range(3))
    d_table = vary(jnp.zeros(table.shape, jnp.float32), everywhere) if gradients else None
    if chunks == 1:
        carry, d_hidden = step((sums, d_table), jax.tree.map(lambda x: x[0], pieces))
    else:
        carry, d_hidden = jax.lax.scan(step, (sums, d_table), pieces)
    sums, d_table = carry
    if not gradients:
        return sums, None
    return sums, (d_hidden.reshape(chunks * chunk, -1)[:tokens], d_table)


def _chunk(split: _Split, table: jax.Array, carry: Any, piece: Any, gradients: bool):
    """Adds one chunk of tokens to the sums; its hidden states' gradient is the output."""
    (objective, nats, count), d_table = carry
    hidden, targets = piece
    own = table.shape[0]
    first = jax.lax.axis_index(split.vocab) * own if split.vocab else 0
    ids = first + jnp.arange(own)
    multiply = partial(product, dtype=jnp.float32, platform=split.platform)
    logits = multiply("te,ve->tv", hidden, table)
    logits = _sum(logits, split.embd)
    if own * _size(split.vocab) > split.n_vocab:
        logits = jnp.where(ids < split.n_vocab, logits, -jnp.inf)
    hit = ids == targets[:, None]
    top = jnp.max(logits, axis=-1)
    top = jax.lax.pmax(top, split.vocab) if split.vocab else top
    mass = _sum(jnp.sum(jnp.exp(logits - top[:, None]), axis=-1), split.vocab)
    log_z = top + jnp.log(mass)
    picked = _sum(jnp.sum(jnp.where(hit, logits, 0.0), axis=-1), split.vocab)
    scored = targets >= 0
    nll = jnp.sum(jnp.where(scored, log_z - picked, 0.0))
    penalty = split.z_loss * jnp.sum(jnp.where(scored, log_z**2, 0.0))
    sums = objective + nll + penalty, nats + nll, count + jnp.sum(scored, dtype=jnp.float32)
    if not gradients:
        return (sums, None), None
    slope = jnp.where(scored, 1 + 2 * split.z_loss * log_z, 0.0)
    d_logits = jnp.exp(logits - log_z[:, None]) * slope[:, None] - jnp.where(hit & scored[:, None], 1.0, 0.0)
    d_logits = d_logits.astype(hidden.dtype)
    d_hidden = multiply("tv,ve->te", d_logits, table)
    d_table += multiply("tv,te->ve", d_logits, hidden)
    return (sums, d_table), _sum(d_hidden, split.vocab).astype(hidden.dtype)


def _sum(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    return jax.lax.psum(x, axes) if axes else x


def _size(axes: tuple[str, ...]) -> int:
    return jax.lax.axis_size(axes) if axes else 1
