"""Adafactor over named dimensions: stacked layers are separate matrices.

optax's own Adafactor picks the two largest dimensions of an array to factor over, which for stacked layers can be
the stack itself, and takes one RMS over the whole stack. Here the `layers` dimension is never reduced over, so that
stacking layers does not change the update.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

DECAY_EXPONENT = 0.8
EPSILON = 1e-30  # added to squared gradients
MIN_SCALE = 1e-3  # least RMS of a parameter, so that one that starts at zero can move
CLIP_RMS = 1.0


class AdafactorState(NamedTuple):
    """Steps taken, and the second moments by parameter: whole in `v`, or factored in `row` and `col`."""

    step: jax.Array
    v: dict[str, jax.Array]
    row: dict[str, jax.Array]
    col: dict[str, jax.Array]


def scale_by_adafactor(dims: dict[str, tuple[str, ...]]) -> optax.GradientTransformation:
    """Adafactor's direction, to be multiplied by a relative learning rate: without momentum, update clipping at
    RMS 1, times max(1e-3, RMS of the parameter). Shazeer and Stern 2018, https://arxiv.org/abs/1804.04235.

    A parameter with at least two dimensions besides `layers` is factored over its two largest, the others (and
    `layers`) being kept in both factors: a stacked query of [layers, embd, heads, head_dim] has factors
    [layers, heads, head_dim] and [layers, embd, heads].
    """

    def init(params):
        return state_of({name: jnp.zeros_like(p) for name, p in params.items()}, dims, 0)

    def update(grads, state, params):
        decay = 1 - (state.step + 1.0) ** -DECAY_EXPONENT
        updates, v, row, col = {}, {}, {}, {}
        for name, g in grads.items():
            square = jnp.square(g) + EPSILON
            match _factored_axes(dims[name], g.shape):
                case (a, b):
                    row[name] = decay * state.row[name] + (1 - decay) * square.mean(b)
                    col[name] = decay * state.col[name] + (1 - decay) * square.mean(a)
                    r, c = jnp.expand_dims(row[name], b), jnp.expand_dims(col[name], a)
                    direction = g * jax.lax.rsqrt(r / r.mean(a, keepdims=True)) * jax.lax.rsqrt(c)
                case None:
                    v[name] = decay * state.v[name] + (1 - decay) * square
                    direction = g * jax.lax.rsqrt(v[name])
            axes = tuple(i for i, d in enumerate(dims[name]) if d != "layers")
            direction /= jnp.maximum(1.0, _rms(direction, axes) / CLIP_RMS)
            updates[name] = direction * jnp.maximum(MIN_SCALE, _rms(params[name], axes))
        return updates, AdafactorState(state.step + 1, v, row, col)

    return optax.GradientTransformation(init, update)


def state_of(squares: dict[str, jax.Array], dims: dict[str, tuple[str, ...]], step: int) -> AdafactorState:
    """The state after `step` steps in which the mean squares of the gradients, by parameter, have been `squares`."""
    v, row, col = {}, {}, {}
    for name, square in squares.items():
        match _factored_axes(dims[name], square.shape):
            case (a, b):
                row[name], col[name] = square.mean(b), square.mean(a)
            case None:
                v[name] = square
    return AdafactorState(jnp.int32(step), v, row, col)


def _factored_axes(dims: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, int] | None:
    axes = [i for i, d in enumerate(dims) if d != "layers"]
    if len(axes) < 2:
        return None
    a, b = sorted(axes, key=lambda i: shape[i])[-2:]
    return a, b


def _rms(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x), axes, keepdims=True))
