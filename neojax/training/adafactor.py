"""Adafactor over named dimensions: stacked layers are separate matrices, and heads with their features are one side.

optax's own Adafactor picks the two largest dimensions of an array to factor over, which for stacked layers can be
the stack itself, and takes one RMS over the whole stack. Here the `layers` dimension is never reduced over, and
`heads` and `head_dim` are reduced over together: the update is that of Mesh-TensorFlow's `AdafactorOptimizer`, whose
variables are single layers with all heads side by side.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

DECAY_EXPONENT = 0.8
CLIP_RMS = 1.0
MIN_FACTORED = 32  # a matrix with a shorter side has little to save, and keeps whole second moments

Axes = tuple[int, ...]


class AdafactorState(NamedTuple):
    """Steps taken, and the second moments by parameter: whole in `v`, or factored in `row` and `col`."""

    step: jax.Array
    v: dict[str, jax.Array]
    row: dict[str, jax.Array]
    col: dict[str, jax.Array]


def scale_by_adafactor(
    dims: dict[str, tuple[str, ...]],
    decay: float | None = None,
    epsilon: float = 1e-30,
    min_scale: float = 1e-3,
) -> optax.GradientTransformation:
    """Adafactor's direction, to be multiplied by a relative learning rate: without momentum, update clipping at
    RMS 1, times max(`min_scale`, RMS of the parameter). Shazeer and Stern 2018, https://arxiv.org/abs/1804.04235.

    decay: of the second moments, None for the paper's 1 - step^-0.8; epsilon: added to squared gradients.
    A parameter is factored over its two longest sides if both have at least `MIN_FACTORED` entries; any other
    dimension (and `layers`) is kept in both factors. A side is a dimension, or `heads` and `head_dim` together: a
    stacked query of [layers, embd, heads, head_dim] has factors [layers, embd] and [layers, heads, head_dim].
    """

    def init(params):
        return state_of({name: jnp.zeros_like(p) for name, p in params.items()}, dims, 0)

    def update(grads, state, params):
        kept = 1 - (state.step + 1.0) ** -DECAY_EXPONENT if decay is None else decay
        updates, v, row, col = {}, {}, {}, {}
        for name, g in grads.items():
            square = jnp.square(g) + epsilon
            match _factored_sides(dims[name], g.shape):
                case (a, b):
                    row[name] = kept * state.row[name] + (1 - kept) * square.mean(b)
                    col[name] = kept * state.col[name] + (1 - kept) * square.mean(a)
                    r, c = jnp.expand_dims(row[name], b), jnp.expand_dims(col[name], a)
                    direction = g * jax.lax.rsqrt(r / r.mean(a, keepdims=True)) * jax.lax.rsqrt(c)
                case None:
                    v[name] = kept * state.v[name] + (1 - kept) * square
                    direction = g * jax.lax.rsqrt(v[name])
            axes = tuple(i for i, d in enumerate(dims[name]) if d != "layers")
            direction /= jnp.maximum(1.0, _rms(direction, axes) / CLIP_RMS)
            updates[name] = direction * jnp.maximum(min_scale, _rms(params[name], axes))
        return updates, AdafactorState(state.step + 1, v, row, col)

    return optax.GradientTransformation(init, update)


def state_of(squares: dict[str, jax.Array], dims: dict[str, tuple[str, ...]], step: int) -> AdafactorState:
    """The state after `step` steps in which the mean squares of the gradients, by parameter, have been `squares`."""
    v, row, col = {}, {}, {}
    for name, square in squares.items():
        match _factored_sides(dims[name], square.shape):
            case (a, b):
                row[name], col[name] = square.mean(b), square.mean(a)
            case None:
                v[name] = square
    return AdafactorState(jnp.int32(step), v, row, col)


def _factored_sides(dims: tuple[str, ...], shape: tuple[int, ...]) -> tuple[Axes, Axes] | None:
    """The axes of the second longest side and of the longest."""
    sides: dict[str, Axes] = {}
    for axis, dim in enumerate(dims):
        if dim != "layers":
            side = "heads" if dim == "head_dim" else dim
            sides[side] = (*sides.get(side, ()), axis)

    def length(side: Axes) -> int:
        return math.prod(shape[axis] for axis in side)

    match sorted(sides.values(), key=length)[-2:]:
        case (a, b) if length(a) >= MIN_FACTORED:
            return a, b
    return None


def _rms(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x), axes, keepdims=True))
