"""Cross-entropy, and the log-probability of every token, without the logits: tokens in chunks, gradients made
in the forward pass.

The logits of a chunk are used for its loss and at once for its gradients, then forgotten, so that memory does
not grow with vocabulary x sequence, and nothing is computed twice. Where few tokens are scored, as of masked
ones, these come first and chunks without any are left out. Everything runs under `shard_map`: a
device works on its own tokens and its own part of the vocabulary and of embd, and only sums of tokens' size
travel, but for the gradient of the table, which is summed once.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from neojax.layout import named
from neojax.layout.product import product
from neojax.layout.row_lookup import vary

CHUNK_BYTES = 64 << 20  # of float32 logits on a device; a CPU's products are slow beside its memory, and
LARGE_CHUNK_BYTES = (
    512 << 20
)  # an accelerator's fast: each chunk reads the table and its gradient's sum again
ALIGNED = {
    "gpu": 64
}  # by platform, of what the table's rows are made a multiple: its products want even sizes
FEW = 16  # chunks into which tokens of which few are scored fall at least, where they are not too small then


class _Split(NamedTuple):
    """How one device's part relates to the whole."""

    n_vocab: int
    z_loss: float
    tokens: tuple[str, ...]  # mesh axes that split batch and sequence
    vocab: tuple[str, ...]
    embd: tuple[str, ...]
    rows: int  # of the table on a device; a table that has more ends in rows that stand for no token
    chunk: int  # tokens in a chunk
    platform: str
    is_sparse: bool = False  # whether scored tokens come first, and chunks without any are left out


class _Statistics(NamedTuple):
    """Of a chunk: `logits` [tokens, own vocab], their `ids`, where they `hit` the target; over the whole
    vocabulary the largest logit `top`, the log-partition `log_z` and the logit `picked` of the target,
    [tokens]."""

    logits: jax.Array
    ids: jax.Array
    hit: jax.Array
    top: jax.Array
    log_z: jax.Array
    picked: jax.Array


def chunked_cross_entropy(
    hidden: jax.Array,
    table: named.Param | jax.Array,
    targets: jax.Array,
    n_vocab: int,
    z_loss: float = 0.0,
    weights: jax.Array | None = None,
    bias: named.Param | jax.Array | None = None,
    *,
    is_sparse: bool = False,
    width: str = "embd",
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """As `loss.reference_cross_entropy`: scalars (objective, nats, scored tokens, how many of these are the
    likeliest). With `z_loss` only the objective has a gradient.

    hidden [batch, sequence, `width`], table [vocab, `width`] (rows past `n_vocab` are padding), bias [vocab]
    or None, targets int32 [batch, sequence] (-1: not scored), weights float32 [batch, sequence], or None for
    1. is_sparse: whether so few tokens are scored that those that are not are best left out; it changes
    nothing else.
    """
    used, summed = named.trained(table, f"vocab {width}", hidden.dtype)
    split = _split(used, n_vocab, z_loss, width)._replace(is_sparse=is_sparse)
    rows, tables = "batch sequence", f"vocab {width}"
    dims = (f"{rows} {width}", tables, tables, rows, rows, "vocab")
    bias = None if bias is None else named.use(bias, "vocab", jnp.float32)
    arrays = (hidden, jax.lax.stop_gradient(used), summed, targets, weights, bias)
    return _on_each_device(partial(_own_part, split), dims, arrays, (jax.P(),) * 4)


def chunked_token_scores(
    hidden: jax.Array,
    table: named.Param | jax.Array,
    targets: jax.Array,
    n_vocab: int,
    bias: named.Param | jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(log-probability of every target in nats, float32; whether it is the likeliest token, of equally likely
    ones the first), both [batch, sequence]; operands as in `chunked_cross_entropy`. Where a target is -1 they
    mean nothing."""
    used = named.use(table, "vocab embd", hidden.dtype)
    split = _split(used, n_vocab)
    dims = ("batch sequence embd", "vocab embd", "batch sequence", "vocab")
    bias = None if bias is None else named.use(bias, "vocab", jnp.float32)
    spec = named.sharding("batch sequence", "vocab").spec
    return _on_each_device(partial(_own_scores, split), dims, (hidden, used, targets, bias), (spec, spec))


def _split(table: jax.Array, n_vocab: int, z_loss: float = 0.0, width: str = "embd") -> _Split:
    """How the layout in force splits a product of hidden states with `table`."""
    layout = named.current_layout()
    layout.spec(("batch", "sequence", "vocab"), what="logits")  # raises for an axis that splits two of them
    rows = table.shape[0] // layout.split("vocab")
    size = CHUNK_BYTES if layout.platform == "cpu" else LARGE_CHUNK_BYTES
    return _Split(
        n_vocab,
        z_loss,
        (*layout.axes("batch"), *layout.axes("sequence", beside=["vocab"])),
        layout.axes("vocab"),
        layout.axes(width),
        rows,
        max(size // (4 * rows) // 128 * 128, 128),
        layout.platform,
    )


def _on_each_device(
    work: Callable[..., Any],
    dims: Sequence[str],
    arrays: Sequence[jax.Array | None],
    out: tuple[jax.P, ...],
) -> Any:
    """`work` on every device's own part of `arrays`, whose dimensions are `dims`; None is left as it is."""
    parts = [x if x is None else named.lay(x, d, "vocab") for x, d in zip(arrays, dims)]
    specs = tuple(named.sharding(d, "vocab").spec for d in dims)
    return jax.shard_map(work, mesh=named.current_layout().mesh, in_specs=specs, out_specs=out)(*parts)


def _own_scores(
    split: _Split, hidden: jax.Array, table: jax.Array, targets: jax.Array, bias: jax.Array | None
):
    flat, wanted = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    table, bias = vary(table, split.tokens), None if bias is None else vary(bias, split.tokens)
    table, bias = _aligned(split, table), None if bias is None else _aligned(split, bias)
    split, order, used = _scored_first(split, wanted, None)
    pieces = _pieces(split, flat[order], wanted[order], None)

    def step(piece):
        own = _statistics(split, table, bias, *piece[:2])
        first = jnp.min(jnp.where(own.logits == own.top[:, None], own.ids, split.n_vocab), axis=-1)
        first = jax.lax.pmin(first, split.vocab) if split.vocab else first
        return own.picked - own.log_z, first == piece[1]

    def nothing(piece):
        return tuple(vary(jnp.zeros(piece[1].shape, kind), split.tokens) for kind in (jnp.float32, bool))

    def guarded(numbered):
        number, piece = numbered
        return jax.lax.cond(number < used, step, nothing, piece)

    found = jax.lax.map(guarded, (jnp.arange(len(pieces[0])), pieces))
    back = jnp.argsort(order)
    return tuple(x.reshape(-1)[: len(flat)][back].reshape(targets.shape) for x in found)


def _own_part(
    split: _Split,
    hidden: jax.Array,
    table: jax.Array,
    summed: jax.Array,
    targets: jax.Array,
    weights: jax.Array | None,
    bias: jax.Array | None,
):
    flat = hidden.reshape(-1, hidden.shape[-1])
    # The gradient of a table that several devices use is the sum of theirs: made where the table becomes
    # "varying".
    table, summed = vary(table, split.tokens), vary(summed, split.tokens)
    bias = None if bias is None else vary(bias, split.tokens)
    table, summed = _aligned(split, table), _aligned(split, summed)
    bias = None if bias is None else _aligned(split, bias)
    weights = None if weights is None else weights.reshape(-1)
    sums = _sums(split, flat, table, summed, targets.reshape(-1), weights, bias)
    return tuple(jax.lax.psum(x, split.tokens) if split.tokens else x for x in sums)


def _aligned(split: _Split, table: jax.Array) -> jax.Array:
    """A table, or what there is for each of its rows, with zeros after it where the platform multiplies other
    sizes faster."""
    more = -split.rows % ALIGNED.get(split.platform, 1)
    return jnp.pad(table, ((0, more), *((0, 0),) * (table.ndim - 1)))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(
    split: _Split,
    hidden: jax.Array,
    table: jax.Array,
    summed: jax.Array,
    targets: jax.Array,
    weights: jax.Array | None,
    bias: jax.Array | None,
):
    return _scan(split, hidden, table, targets, weights, bias, gradients=False)[0]


def _forward(
    split: _Split,
    hidden: jax.Array,
    table: jax.Array,
    summed: jax.Array,
    targets: jax.Array,
    weights: jax.Array | None,
    bias: jax.Array | None,
):
    sums, gradients = _scan(split, hidden, table, targets, weights, bias, gradients=True)
    return sums, (gradients, jnp.zeros(0, summed.dtype))


def _backward(split: _Split, residuals: Any, cotangents: Any):
    (d_hidden, d_table, d_bias), summed = residuals
    objective, nats, _, _ = cotangents
    scale = objective if split.z_loss else objective + nats  # without z_loss the two are the same sum
    return (
        (d_hidden * scale).astype(d_hidden.dtype),
        None,
        (d_table * scale).astype(summed.dtype),
        None,
        None,
        None if d_bias is None else d_bias * scale,
    )


_sums.defvjp(_forward, _backward)


class _Carry(NamedTuple):
    """What is summed over chunks: `objective`, `nats`, `scored` and `hits`, and the gradients of the table
    and of its bias."""

    sums: tuple[jax.Array, ...]
    d_table: jax.Array | None
    d_bias: jax.Array | None


def _scan(
    split: _Split,
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array | None,
    bias: jax.Array | None,
    gradients: bool,
):
    """((objective, nats, scored, hits), (d_hidden, d_table, d_bias)) of one device's tokens, hidden [tokens,
    embd]."""
    tokens = hidden.shape[0]
    order, used = None, None
    if split.is_sparse:
        split, order, used = _scored_first(split, targets, weights)
        hidden, targets = hidden[order], targets[order]
        weights = None if weights is None else weights[order]
    pieces = _pieces(split, hidden, targets, weights)
    chunks = len(pieces[0])
    step: Callable[..., Any] = partial(_chunk, split, table, bias)
    by_vocab = (*split.tokens, *split.vocab)
    carry = _Carry(
        tuple(vary(jnp.zeros(()), split.tokens) for _ in range(4)),
        vary(jnp.zeros(table.shape, jnp.float32), (*by_vocab, *split.embd)) if gradients else None,
        vary(jnp.zeros(bias.shape), by_vocab) if gradients and bias is not None else None,
    )
    inputs: Any = pieces
    if used is not None:
        step, inputs = _while_scored(split, step, used), (jnp.arange(chunks), pieces)
    if chunks == 1:
        carry, d_hidden = step(carry, jax.tree.map(lambda x: x[0], inputs))
    else:
        carry, d_hidden = jax.lax.scan(step, carry, inputs)
    if not gradients:
        return carry.sums, None
    d_hidden = d_hidden.reshape(-1, hidden.shape[1])[:tokens]
    if order is not None:
        d_hidden = d_hidden[jnp.argsort(order)]
    return carry.sums, (d_hidden, carry.d_table, carry.d_bias)


def _scored_first(
    split: _Split, targets: jax.Array, weights: jax.Array | None
) -> tuple[_Split, jax.Array, jax.Array]:
    """(`split` with chunks that fit few tokens, an order of tokens with the scored ones first, the number of
    chunks in which any device has some)."""
    chunk = min(split.chunk, max(128, -(-len(targets) // FEW // 128) * 128))
    scored, _ = scoring(targets, weights)
    used = -(-jnp.sum(scored, dtype=jnp.int32) // chunk)
    # The same number on all devices: where they exchange parts of a chunk's logits, all of them do.
    used = jax.lax.pmax(used, split.tokens) if split.tokens else used
    return split._replace(chunk=chunk), jnp.argsort(~scored, stable=True), used


def _while_scored(split: _Split, step: Callable[..., Any], used: jax.Array) -> Callable[..., Any]:
    """`step` for chunks numbered below `used`; the others change nothing, and are not computed."""

    def guarded(carry: _Carry, numbered: Any):
        number, piece = numbered

        def nothing(carry: _Carry, piece: Any):
            if carry.d_table is None:
                return carry, None
            hidden = piece[0]
            return carry, vary(jnp.zeros(hidden.shape, hidden.dtype), (*split.tokens, *split.embd))

        return jax.lax.cond(number < used, step, nothing, carry, piece)

    return guarded


def _pieces(
    split: _Split, hidden: jax.Array, targets: jax.Array, weights: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """hidden [chunks, chunk, embd], targets and weights [chunks, chunk] of one device's tokens; the last
    chunk is padded."""
    tokens = hidden.shape[0]
    chunk = min(split.chunk, tokens)
    chunks = -(-tokens // chunk)
    pad = chunks * chunk - tokens
    return (
        jnp.pad(hidden, ((0, pad), (0, 0))).reshape(chunks, chunk, -1),
        jnp.pad(targets, (0, pad), constant_values=-1).reshape(chunks, chunk),
        None if weights is None else jnp.pad(weights, (0, pad)).reshape(chunks, chunk),
    )


def _chunk(split: _Split, table: jax.Array, bias: jax.Array | None, carry: _Carry, piece: Any):
    """Adds one chunk of tokens to the sums; its hidden states' gradient is the output."""
    (objective, nats, count, hits), d_table, d_bias = carry
    hidden, targets, weights = piece
    logits, _, hit, top, log_z, picked = _statistics(split, table, bias, hidden, targets)
    scored, weighted = scoring(targets, weights)
    nll = jnp.sum(weighted(log_z - picked))
    penalty = split.z_loss * jnp.sum(weighted(log_z**2))
    hits += jnp.sum(weighted(jnp.where(picked == top, 1.0, 0.0)))
    sums = objective + nll + penalty, nats + nll, count + scored_count(scored, weights), hits
    if d_table is None:
        return _Carry(sums, None, None), None
    slope = weighted(1 + 2 * split.z_loss * log_z)
    each = 1.0 if weights is None else weights[:, None]
    d_logits = jnp.exp(logits - log_z[:, None]) * slope[:, None] - jnp.where(hit & scored[:, None], each, 0.0)
    d_bias = None if d_bias is None else d_bias + jnp.sum(d_logits, axis=0)
    d_logits = d_logits.astype(hidden.dtype)
    multiply = partial(product, dtype=jnp.float32, platform=split.platform)
    d_hidden = multiply("tv,ve->te", d_logits, table)
    d_table += multiply("tv,te->ve", d_logits, hidden)
    return _Carry(sums, d_table, d_bias), _sum(d_hidden, split.vocab).astype(hidden.dtype)


def scoring(
    targets: jax.Array, weights: jax.Array | None
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """(which targets are scored, what makes values of all targets those to sum up: each times its weight, and
    0 where nothing is scored or its weight is 0, whatever the value)."""
    scored = targets >= 0
    if weights is not None:
        scored &= weights != 0
    return scored, lambda x: jnp.where(scored, x if weights is None else weights * x, 0.0)


def scored_count(scored: jax.Array, weights: jax.Array | None) -> jax.Array:
    """The number of scored tokens, float32: the sum of their weights."""
    return jnp.sum(scored if weights is None else jnp.where(scored, weights, 0.0), dtype=jnp.float32)


def _statistics(
    split: _Split, table: jax.Array, bias: jax.Array | None, hidden: jax.Array, targets: jax.Array
) -> _Statistics:
    """What a chunk of tokens, hidden [tokens, embd], gives on this device's part of the vocabulary."""
    first = jax.lax.axis_index(split.vocab) * split.rows if split.vocab else 0
    places = jnp.arange(table.shape[0])
    ids = first + places
    if len(places) > split.rows:
        ids = jnp.where(places < split.rows, ids, split.n_vocab)
    logits = product("te,ve->tv", hidden, table, dtype=jnp.float32, platform=split.platform)
    logits = _sum(logits, split.embd)
    logits = logits if bias is None else logits + bias
    if len(places) * _size(split.vocab) > split.n_vocab:
        logits = jnp.where(ids < split.n_vocab, logits, -jnp.inf)
    hit = ids == targets[:, None]
    top = jnp.max(logits, axis=-1)
    top = jax.lax.pmax(top, split.vocab) if split.vocab else top
    mass = _sum(jnp.sum(jnp.exp(logits - top[:, None]), axis=-1), split.vocab)
    log_z = top + jnp.log(mass)
    picked = _sum(jnp.sum(jnp.where(hit, logits, 0.0), axis=-1), split.vocab)
    return _Statistics(logits, ids, hit, top, log_z, picked)


def _sum(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    return jax.lax.psum(x, axes) if axes else x


def _size(axes: tuple[str, ...]) -> int:
    return jax.lax.axis_size(axes) if axes else 1
