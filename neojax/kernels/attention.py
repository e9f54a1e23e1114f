"""Attention over whole sequences: the one function that layers call, and the reference.

Every kernel takes unscaled scores (GPT-Neo has no 1/sqrt(head_dim)) and does the softmax in float32. The
backward pass computes scores again from q, k and v instead of keeping them. `neojax.kernels.choice` says
which kernel runs.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from neojax.kernels import ring
from neojax.kernels.blocks import blocked, local, on_each_device
from neojax.kernels.choice import Call, choose
from neojax.kernels.masks import NEVER, Branches, apart, visible
from neojax.layout import named

ROWS = "batch sequence", "batch memory_length"  # rows of queries, and of keys

Memory = tuple[named.Param, named.Param]
"""Learned keys and values, each [memory_slots, heads, head_dim], that every query sees."""


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
    memory: "Memory | None" = None,
    dropout: "named.Dropout | None" = None,
    kernel: str = "auto",
) -> jax.Array:
    """Self-attention over whole sequences, causal unless told otherwise.

    q, k, v: [batch, sequence, heads, head_dim], laid out as those names say; k and v may have fewer heads, a
    divisor of q's, each read by as many heads of q side by side (grouped-query attention). `window`: keys a
    query sees, itself included (None: all before it); `memory`: more keys and values, seen by all; `start`
    int32 [batch]: number of padding tokens at the left of a row; `segments` int32 [batch, sequence]: the
    segment of each token, which sees no token of another (None: all are of one); `branches`: those of
    segments that are trees, of what is causal; `kernel`: as train.attention_kernel. Returns the shape and
    layout of q, named "attention" for remat policies. Raises `NeojaxError` where the named kernel cannot do
    it.
    """
    call = Call.on(
        named.current_layout(),
        length=q.shape[1],
        head_dim=q.shape[3],
        dtype=q.dtype.name,
        window=window,
        causal=causal,
        memory=memory is not None,
        dropout=dropout is not None,
        segments=segments is not None,
        branches=branches is not None,
        padded=start is not None,
    )
    rows: dict[str, Any] = {"start": start, "segments": segments}
    match choose(kernel, call).kernel:
        case "splash":
            from neojax.kernels import splash, split_splash  # they load Pallas for TPUs

            if call.parts > 1:
                return split_splash.attention(q, k, v, segments, window=window)
            return fused(partial(splash.attention, window=window), q, k, v, **rows)
        case "cudnn":
            from neojax.kernels import cudnn

            y = fused(partial(cudnn.attention, window=window, causal=causal), q, k, v, **rows)
        case "local":
            assert window is not None
            y = local(q, k, v, window=window, causal=causal, **rows)
        case "ring":
            return ring.attention(
                q,
                k,
                v,
                window=window,
                causal=causal,
                branches=branches,
                memory=memory,
                dropout=dropout,
                **rows,
            )
        case "blocked":
            y = blocked(q, k, v, window=window, branches=branches, **rows)
        case _:
            plain = partial(reference, window=window, causal=causal, memory=memory, dropout=dropout)
            rows["branches"] = branches
            y = jax.checkpoint(lambda q, k, v, rows: plain(q, k, v, **rows))(q, k, v, rows)
    return checkpoint_name(y, "attention")


def fused(
    kernel: Callable[..., jax.Array],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    start: jax.Array | None = None,
    segments: jax.Array | None = None,
) -> jax.Array:
    """As `attention`, by a `kernel` (q, k, v, and the segments of the rows where there are any) that works on
    one device and knows no padding.

    Rows with padding at the left are turned until it stands at the right, where causal queries do not look.
    """

    def rolled(q: jax.Array, k: jax.Array, v: jax.Array, begin: jax.Array, own: jax.Array | None):
        rows = (q, k, v) if own is None else (q, k, v, own)
        if start is None:
            return kernel(*rows)
        turn = jax.vmap(partial(jnp.roll, axis=0))
        return turn(kernel(*(turn(x, -begin) for x in rows)), begin)

    # Neither Pallas nor cuDNN says over which axes its results vary, so there is nothing to check.
    return on_each_device(rolled, q, k, v, start, segments, check_vma=False)


def reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    window: int | None = None,
    start: jax.Array | None = None,
    segments: jax.Array | None = None,
    branches: Branches | None = None,
    causal: bool = True,
    memory: "Memory | None" = None,
    dropout: "named.Dropout | None" = None,
) -> jax.Array:
    """As `attention`, by the definition: the whole matrix of scores, masked. Works under every layout."""
    time = jnp.arange(q.shape[1])
    seen = visible(time, time, window if branches is None else None, start, causal)
    if branches is not None:
        own, key = (Branches(*(named.lay(x, dims, "heads") for x in branches)) for dims in ROWS)
        seen = seen & own.sees(key, window)
    if segments is not None:
        of_query, of_key = (named.lay(segments, dims, "heads") for dims in ROWS)
        seen = seen & apart(of_query, of_key, causal)
    seen = seen[:, None] if seen.ndim == 3 else seen
    return attend(q, token_keys(k, v, seen), *memory_keys(memory), dropout=dropout)


def token_keys(k: jax.Array, v: jax.Array, seen: jax.Array) -> "Keys":
    """The keys and values [batch, sequence, heads, head_dim] of a call's own tokens."""
    dims = "batch memory_length heads head_dim"
    return Keys(named.lay(k, dims), named.lay(v, dims), dims, dims, seen)


def memory_keys(memory: "Memory | None") -> list["Keys"]:
    """The learned keys and values, where there are any."""
    dims = "memory_slots heads head_dim"
    return [] if memory is None else [Keys(*memory, dims, dims, None)]


class Keys(NamedTuple):
    """Keys and values that queries look at, whose dimensions stand in the orders `key_dims` and `value_dims`.

    `seen`: bool, broadcast to [batch, heads, sequence, keys]; None where every query sees all of them.
    """

    keys: named.Param | jax.Array
    values: named.Param | jax.Array
    key_dims: str
    value_dims: str
    seen: jax.Array | None


def attend(q: jax.Array, *sources: Keys, dropout: "named.Dropout | None" = None) -> jax.Array:
    """softmax(q k, where seen) v, with one softmax over the keys of all `sources`; q [batch, sequence, heads,
    head_dim], keys and values with as many heads or a divisor.

    They are never joined to one array: each keeps its own order and layout, and none is copied.
    """
    first = sources[0]
    shared = first.keys.shape[first.key_dims.split().index("heads")]
    heads, whole = "heads", q.shape
    if shared < q.shape[2]:
        heads, shape = "heads group", (*q.shape[:2], shared, q.shape[2] // shared, q.shape[3])
        q = named.reshaped(q, shape, "batch sequence heads group head_dim")
    names, scores = [], []
    for keys, _, dims, _, seen in sources:
        (name,) = set(dims.split()) - {"batch", "heads", "head_dim"}
        names.append(f"batch {heads} sequence {name}")
        own = named.einsum(
            f"batch sequence {heads} head_dim, {dims} -> {names[-1]}", q, keys, dtype=jnp.float32
        )
        if seen is not None and seen.ndim == 4 and own.ndim == 5:
            seen = seen[:, :, None]
        scores.append(own if seen is None else jnp.where(seen, own, NEVER))
    if len(scores) == 1:
        weights = [jax.nn.softmax(scores[0], axis=-1)]
    else:
        total = reduce(jnp.logaddexp, map(log_sum, scores))
        weights = [jnp.exp(own - total) for own in scores]
    parts = []
    for i, (source, name, weight) in enumerate(zip(sources, names, weights)):
        weight = weight.astype(q.dtype)
        if dropout is not None:
            key = jax.random.fold_in(dropout.key, i) if i else dropout.key
            weight = named.Dropout(dropout.rate, key)(weight, name)
        equation = f"{name}, {source.value_dims} -> batch sequence {heads} head_dim"
        parts.append(named.einsum(equation, weight, source.values))
    return named.reshaped(reduce(jnp.add, parts), whole, "batch sequence heads head_dim")


def log_sum(scores: jax.Array) -> jax.Array:
    """log of the sum of exp(scores) over the last dimension, which is kept with size 1."""
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    return top + jnp.log(jnp.sum(jnp.exp(scores - top), axis=-1, keepdims=True))
