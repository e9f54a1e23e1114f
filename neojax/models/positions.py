"""Where a token stands: one learned table, two (axial), or queries and keys turned by their position
(rotary)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from neojax.config import ModelConfig
from neojax.layout import named
from neojax.layout.named import Normal, Param

STD = 0.01


class AxialPositions(nnx.Module):
    """Position p is the mean of row p // columns of one table and row p % columns of another.

    Facts: gpt-neo's `axial_pos_emb`. https://arxiv.org/abs/1912.12180
    """

    def __init__(self, sizes: Mapping[str, int]):
        self.columns = sizes["axial_columns"]
        self.row = Param("axial_rows embd", Normal(STD), sizes)
        self.column = Param("axial_columns embd", Normal(STD), sizes)

    def __call__(self, position: jax.Array) -> jax.Array:
        row = look_up(self.row, "axial_rows embd", position // self.columns)
        return (row + look_up(self.column, "axial_columns embd", position % self.columns)) / 2


def position_table(config: ModelConfig, sizes: Mapping[str, int]) -> Param | AxialPositions | None:
    """The position table of `config`; rotary positions have none."""
    match config.positions.kind:
        case "rotary":
            return None
        case "axial":
            rows, columns = config.positions.axial
            return AxialPositions({**sizes, "axial_rows": rows, "axial_columns": columns})
        case _:
            return Param("positions embd", Normal(STD), sizes)


def embedding(table: Param | AxialPositions, position: jax.Array) -> jax.Array:
    """The embedding of positions int32 [sequence] or [batch, sequence], in float32; embd comes last."""
    if isinstance(table, AxialPositions):
        return table(position)
    return look_up(table, "positions embd", position)


def look_up(table: Param, dims: str, index: jax.Array) -> jax.Array:
    """Rows of `table` at `index` [sequence] or [batch, sequence], in float32, as is then the sum over the
    rows of a batch that is their gradient."""
    out = "sequence embd" if index.ndim == 1 else "batch sequence embd"
    return named.look_up(table, dims, index, out, jnp.float32)


def rotate(
    x: jax.Array, position: jax.Array, base: float = 10000.0, rotary_dims: int | None = None
) -> jax.Array:
    """Queries or keys x [batch, sequence, heads, head_dim], rotated by their positions ([sequence] or [batch,
    sequence]).

    Of the first `rotary_dims` features of a head (None: all), feature i of the first half and of the second
    half make a point that is rotated by position * base ** (-2 i / rotary_dims); the others stay.
    https://arxiv.org/abs/2104.09864
    """
    x = named.lay(x, "batch sequence heads key_dim")
    size = rotary_dims or x.shape[-1]
    half = size // 2
    angle = position[..., None] * base ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angle)[..., None, :], jnp.sin(angle)[..., None, :]
    a, b = jnp.split(x[..., :size].astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
    if size < x.shape[-1]:
        rotated = jnp.concatenate([rotated, x[..., size:]], axis=-1)
    return named.lay(rotated, "batch sequence heads head_dim")
