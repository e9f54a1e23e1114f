"""Where a token stands: one learned table, two (axial), or queries and keys turned by their position
(rotary)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from neojax.config import ModelConfig, PositionsConfig
from neojax.layout import named
from neojax.layout.named import Normal, Param, Quantized
from neojax.models.context import Context

STD = 0.01


class AxialPositions(nnx.Module):
    """Position p is the mean of row p // columns of one table and row p % columns of another.

    Facts: gpt-neo's `axial_pos_emb`. https://arxiv.org/abs/1912.12180
    """

    def __init__(self, sizes: Mapping[str, int], width: str):
        self.columns, self.width = sizes["axial_columns"], width
        self.row = Param(f"axial_rows {width}", Normal(STD), sizes)
        self.column = Param(f"axial_columns {width}", Normal(STD), sizes)

    def __call__(self, position: jax.Array) -> jax.Array:
        row = look_up(self.row, f"axial_rows {self.width}", position // self.columns)
        return (row + look_up(self.column, f"axial_columns {self.width}", position % self.columns)) / 2


def position_table(
    config: ModelConfig, sizes: Mapping[str, int], width: str = "embd"
) -> Param | AxialPositions | None:
    """The position table of `config`, as wide as the dimension `width`; rotary positions have none."""
    match config.positions.kind:
        case "rotary":
            return None
        case "axial":
            rows, columns = config.positions.axial
            return AxialPositions({**sizes, "axial_rows": rows, "axial_columns": columns}, width)
        case _:
            return Param(f"positions {width}", Normal(STD), sizes)


def embedding(table: Param | AxialPositions, context: Context, length: int, width: str = "embd") -> jax.Array:
    """The embedding of the positions of a call's `length` tokens, in float32, [sequence, `width`] or [batch,
    sequence, `width`].

    Those of whole rows are the table itself: nothing travels where it is split as they are.
    """
    dims = f"positions {width}"
    if isinstance(table, AxialPositions):
        return table(context.token_positions(length))
    if context.is_whole and table.shape[0] == length and not isinstance(table.get_value(), Quantized):
        return named.lay(named.use(table, dims, jnp.float32), f"sequence {width}")
    return look_up(table, dims, context.token_positions(length))


def look_up(table: Param, dims: str, index: jax.Array) -> jax.Array:
    """Rows of `table` at `index` [sequence] or [batch, sequence], in float32, as is then the sum over the
    rows of a batch that is their gradient."""
    width = dims.split()[-1]
    out = f"sequence {width}" if index.ndim == 1 else f"batch sequence {width}"
    return named.look_up(table, dims, index, out, jnp.float32)


def frequencies(config: PositionsConfig, head_dim: int) -> np.ndarray:
    """By how much the points of a head turn from one position to the next, in radians: float32 [points].

    Point i turns by base ** (-i / points), and by less where these wavelengths are scaled: see the keys of
    `config`. Facts of the scaling: `modeling_rope_utils` of transformers.
    """
    points = (config.rotary_dims or head_dim) // 2
    turn = config.base ** (-np.arange(points) / points)
    if config.scaling == "linear":
        turn = turn / config.scaling_factor
    elif config.scaling == "llama3":
        long, short = config.scaling_long, config.scaling_short
        kept = np.clip((config.scaling_context * turn / (2 * np.pi) - long) / (short - long), 0, 1)
        turn = turn * (kept + (1 - kept) / config.scaling_factor)
    return turn.astype(np.float32)


def rotate(x: jax.Array, position: jax.Array, turn: np.ndarray, interleaved: bool = False) -> jax.Array:
    """Queries or keys x [batch, sequence, heads, head_dim], rotated by their positions ([sequence] or [batch,
    sequence]).

    The first features of a head make as many points as `turn` has, feature i of the first half with that of
    the second or, `interleaved`, neighbours with each other. Point i is rotated by position * turn[i]; other
    features stay. https://arxiv.org/abs/2104.09864
    """
    x = named.lay(x, "batch sequence heads key_dim")
    if position.ndim == 2:
        position = named.lay(position, "batch sequence", "heads")
    size = 2 * len(turn)
    angle = position[..., None] * turn
    cos, sin = jnp.cos(angle)[..., None, :], jnp.sin(angle)[..., None, :]
    own = x[..., :size].astype(jnp.float32)
    a, b = (own[..., ::2], own[..., 1::2]) if interleaved else jnp.split(own, 2, axis=-1)
    points = a * cos - b * sin, b * cos + a * sin
    rotated = jnp.stack(points, -1).reshape(own.shape) if interleaved else jnp.concatenate(points, axis=-1)
    rotated = rotated.astype(x.dtype)
    if size < x.shape[-1]:
        rotated = jnp.concatenate([rotated, x[..., size:]], axis=-1)
    return named.lay(rotated, "batch sequence heads head_dim")
