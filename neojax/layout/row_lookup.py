"""Rows of a table in a narrow type, whose gradient is summed over tokens in float32.

The gradient of a table adds up what every token gives to its row: in bfloat16, whose numbers have 8 bits, a
row that is looked up some hundred times takes no more. A device adds up its own tokens in float32; the sum
travels in the type of the table's stand-in (see `named.trained`).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding


class Split(NamedTuple):
    """How the rows that are looked up and the table are laid out, and the mesh axes that split each
    dimension."""

    out: NamedSharding
    table: NamedSharding
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    tokens: tuple[str, ...]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def look_up(split: Split, table: jax.Array, summed: jax.Array, index: jax.Array) -> jax.Array:
    """table [rows, columns] at index int32 [..., tokens]: [..., tokens, columns]. Its gradient goes to
    `summed`."""
    return table.at[index].get(out_sharding=split.out)


def _forward(split: Split, table: jax.Array, summed: jax.Array, index: jax.Array):
    nothing = jnp.zeros((0, len(table)), summed.dtype)  # says the type and the number of rows
    return look_up(split, table, summed, index), (nothing, index)


def _backward(split: Split, kept: tuple[jax.Array, jax.Array], slope: jax.Array):
    nothing, index = kept

    def own_part(slope: jax.Array, index: jax.Array) -> jax.Array:
        own = nothing.shape[1]
        if split.rows:
            own //= jax.lax.axis_size(split.rows)
            index = vary(index, split.rows) - jax.lax.axis_index(split.rows) * own
            index = jnp.where(index < 0, own, index)  # a negative one would count from the end
        everywhere = (*split.tokens, *split.rows, *split.columns)
        total = vary(jnp.zeros((own, slope.shape[-1]), jnp.float32), everywhere)
        slope, index = vary(slope.astype(jnp.float32), split.rows), vary(index, split.columns)
        total = total.at[index].add(slope, mode="drop").astype(nothing.dtype)
        return jax.lax.psum(total, split.tokens) if split.tokens else total

    gradient = jax.shard_map(
        own_part,
        mesh=split.out.mesh,
        in_specs=(split.out.spec, jax.P(*split.out.spec[:-1])),
        out_specs=split.table.spec,
    )(slope, index)
    return None, gradient, None


look_up.defvjp(_forward, _backward)


def vary(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Marks x, the same along `axes`, as one that may differ there; the transpose is a sum over them."""
    return jax.lax.pcast(x, axes, to="varying") if axes else x
