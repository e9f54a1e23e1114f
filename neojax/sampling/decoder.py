"""The model as decoding wants it, and the two compiled functions of decoding: prefill and a run of steps."""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from neojax.models import Transformer
from neojax.models.layers import Cache, Window
from neojax.sampling.logits import Controls, next_token

CHUNK = 32  # the most tokens a row gets between two looks of the host


class Rows(NamedTuple):
    """Where every row of a batch stands, on the device."""

    caches: tuple[Cache, ...]
    token: jax.Array  # int32 [batch]: the newest token, not yet in the caches
    time: jax.Array  # int32 scalar: its time, common to all rows
    start: jax.Array  # int32 [batch]: the time of the row's first token
    drawn: jax.Array  # int32 scalar: tokens drawn so far
    present: jax.Array  # bool [batch, vocab]: the tokens of the row so far
    done: jax.Array  # bool [batch]


def decoder_of(model: Transformer) -> Transformer:
    """`model` with a layer's parameters of its own for every layer, matrices in the compute type, and all of them
    kept as they are used: nothing is sliced, cast or gathered while decoding."""
    used = model.layout.without("sequence", "memory_length", "positions", "axial_rows", "axial_columns")
    layout = replace(used, stored=used.used)
    decoder = Transformer(model.config, layout, dtype=model.dtype, stacked=False)
    wanted, dims = decoder.stored(), model.dims()
    group = len(model.kinds)

    def take(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
        taken = {}
        for name, spec in wanted.items():
            value = params[name] if name in params and "layers" not in dims[name] else None
            if value is None:
                blocks, layer, *rest = name.split(".")
                repeat, i = divmod(int(layer), group)
                value = params[".".join((blocks, str(i), *rest))][repeat]
            if value.ndim > 1:
                value = value.astype(model.dtype)
            if value.shape != spec.shape:  # another padding of the vocabulary
                value = jax.reshard(value, jax.P())[: spec.shape[0]]
                value = jnp.pad(value, ((0, spec.shape[0] - value.shape[0]), (0, 0)))
            taken[name] = jax.reshard(value, spec.sharding)
        return taken

    with jax.set_mesh(layout.mesh):  # type: ignore[arg-type]
        return decoder.bind(jax.jit(take)(model.params()))


def _next(model: Transformer, hidden: jax.Array, present: jax.Array, keys: jax.Array, controls: Controls):
    logits = jax.reshard(model.logits(hidden)[:, 0], jax.NamedSharding(model.layout.mesh, jax.P()))
    return next_token(logits, present, keys, controls)


def row_keys(keys: jax.Array, drawn: Any) -> jax.Array:
    """The random keys of the rows' next tokens: of the row's own key and the number of tokens it has drawn."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, drawn)


@partial(jax.jit, static_argnums=(0, 6))
def prefill(
    graphdef: Any,
    state: Any,
    tokens: jax.Array,
    start: jax.Array,
    keys: jax.Array,
    controls: Controls,
    slots: tuple[tuple[str, int], ...],
) -> Rows:
    """Reads the prompts, int32 [batch, sequence] with padding on the left, and draws the first token of each."""
    model = nnx.merge(graphdef, state)
    rows, length = tokens.shape
    hidden, caches = model.hidden(tokens, Window(start, slots=dict(slots)))
    real = jnp.arange(length) >= start[:, None]
    vocab = model.output_table.shape[0]
    present = jnp.zeros((rows, vocab), bool)
    present = present.at[jnp.arange(rows)[:, None], jnp.where(real, tokens, vocab)].set(True, mode="drop")
    token = _next(model, hidden[:, -1:], present, row_keys(keys, 0), controls)
    present = present.at[jnp.arange(rows), token].set(True)
    drawn, time = jnp.int32(1), jnp.int32(length)
    return Rows(caches, token, time, start, drawn, present, jnp.zeros(rows, bool))


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def decode(
    graphdef: Any, state: Any, rows: Rows, keys: jax.Array, controls: Controls, limit: Any, eos: Any
) -> tuple[Rows, jax.Array, jax.Array]:
    """Draws up to `limit` (at most CHUNK) more tokens a row, fewer once every row is done.

    `eos` ends a row (-1: none). Returns the rows, int32 [batch, CHUNK] tokens and how many of them are meant.
    """
    model = nnx.merge(graphdef, state)
    whole = jax.NamedSharding(model.layout.mesh, jax.P())

    def go_on(carry: Any) -> jax.Array:
        count, rows, _ = carry
        return (count < limit) & ~jnp.all(rows.done)

    def step(carry: Any) -> Any:
        count, rows, out = carry
        hidden, caches = model.hidden(rows.token[:, None], Window(rows.start, rows.time), rows.caches)
        token = _next(model, hidden, rows.present, row_keys(keys, rows.drawn), controls)
        each = jnp.arange(token.shape[0])
        rows = Rows(
            caches,
            token,
            rows.time + 1,
            rows.start,
            rows.drawn + 1,
            rows.present.at[each, token].set(True),
            rows.done | (token == eos) | (rows.time + 2 - rows.start >= model.config.n_ctx),
        )
        return count + 1, rows, jax.lax.dynamic_update_slice(out, token[:, None], (0, count))

    out = jax.reshard(jnp.full((rows.token.shape[0], CHUNK), -1, jnp.int32), whole)
    count, rows, out = jax.lax.while_loop(go_on, step, (jnp.int32(0), rows, out))
    return rows, out, count
