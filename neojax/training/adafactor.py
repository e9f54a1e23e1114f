"""Adafactor over named dimensions: stacked layers are separate matrices, and heads with their features are
one side.

optax's own Adafactor picks the two largest dimensions of an array to factor over, which for stacked layers
can be the stack itself, and takes one RMS over the whole stack. Here the `layers` dimension is never reduced
over, and `heads` and `head_dim` are reduced over together: the update is that of Mesh-TensorFlow's
`AdafactorOptimizer`, whose variables are single layers with all heads side by side. Rows that only pad the
vocabulary count nowhere, so that the update is the same on every mesh.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from neojax.training.true_shape import TrueShape

DECAY_EXPONENT = 0.8
CLIP_RMS = 1.0
MIN_FACTORED = 128  # Mesh-TensorFlow's; a matrix with a shorter side keeps whole second moments

Dims = Mapping[str, tuple[str, ...]]


class AdafactorState(NamedTuple):
    """Steps taken, and the second moments by parameter: whole in `v`, or factored in `row` and `col`."""

    step: jax.Array
    v: dict[str, jax.Array]
    row: dict[str, jax.Array]
    col: dict[str, jax.Array]


def scale_by_adafactor(
    dims: Dims,
    n_vocab: int | None = None,
    decay: float | None = None,
    epsilon: float = 1e-30,
    min_scale: float = 1e-3,
) -> optax.GradientTransformation:
    """Adafactor's direction, to be multiplied by a relative learning rate: without momentum, update clipping
    at RMS 1, times max(`min_scale`, RMS of the parameter). Shazeer and Stern 2018,
    https://arxiv.org/abs/1804.04235.

    n_vocab: what is beyond it along a `vocab` dimension is padding; None where there is none. decay: of the
    second moments, None for the paper's 1 - step^-0.8; epsilon: added to squared gradients.
    A parameter begins factored over its two longest sides if both have at least `MIN_FACTORED` entries; any
    other dimension (and `layers`) is kept in both factors. A side is a dimension, or `heads` and `head_dim`
    together: a stacked query of [layers, embd, heads, head_dim] has factors [layers, embd] and [layers,
    heads, head_dim].
    """

    def init(params):
        return state_of({name: jnp.zeros_like(p) for name, p in params.items()}, dims, n_vocab, 0)

    def update(grads, state, params):
        kept = 1 - (state.step + 1.0) ** -DECAY_EXPONENT if decay is None else decay
        updates, v, row, col = {}, {}, {}, {}
        for name, g in grads.items():
            shape = TrueShape(dims[name], g.shape, n_vocab)
            square = jnp.square(g) + epsilon
            if name in state.v:
                v[name] = kept * state.v[name] + (1 - kept) * square
                direction = g * jax.lax.rsqrt(v[name])
            else:
                a, b = shape.sides()
                row[name] = kept * state.row[name] + (1 - kept) * shape.mean(square, b)
                col[name] = kept * state.col[name] + (1 - kept) * shape.mean(square, a)
                r, c = jnp.expand_dims(row[name], b), jnp.expand_dims(col[name], a)
                direction = g * jax.lax.rsqrt(r / shape.mean(r, a, keepdims=True)) * jax.lax.rsqrt(c)
            direction = shape.without_padding(direction)  # where 0 / 0 is no number if epsilon is 0
            direction /= jnp.maximum(1.0, shape.rms(direction) / CLIP_RMS)
            updates[name] = direction * jnp.maximum(min_scale, shape.rms(params[name]))
        return updates, AdafactorState(state.step + 1, v, row, col)

    return optax.GradientTransformation(init, update)


def state_of(
    squares: Mapping[str, jax.Array],
    dims: Dims,
    n_vocab: int | None,
    step: int,
    factored: Collection[str] = (),
) -> AdafactorState:
    """The state after `step` steps in which the mean squares of the gradients, by parameter, have been
    `squares`; `factored` are factored however short their sides."""
    v, row, col = {}, {}, {}
    for name, square in squares.items():
        shape = TrueShape(dims[name], square.shape, n_vocab)
        if name in factored or shape.is_long(MIN_FACTORED):
            a, b = shape.sides()
            row[name], col[name] = shape.mean(square, b), shape.mean(square, a)
        else:
            v[name] = square
    return AdafactorState(jnp.int32(step), v, row, col)


def as_stored(opt_state: Any, stored: Collection[str], dims: Dims, n_vocab: int | None) -> Any:
    """The abstract `opt_state` with the factors that a checkpoint has, whose arrays have the paths `stored`:
    earlier runs factored sides from 32 entries on, and go on with the factors that they began with."""

    def adapted(node: Any) -> Any:
        if not isinstance(node, AdafactorState):
            return node
        found = (n for n in node.v if n in dims and any(path.endswith(f"/row/{n}") for path in stored))
        began = {name: node.v[name] for name in found}
        own = jax.eval_shape(lambda v: state_of(v, dims, n_vocab, 0, began), began)
        v = {name: whole for name, whole in node.v.items() if name not in began}
        return node._replace(v=v, row=node.row | own.row, col=node.col | own.col)

    return jax.tree.map(adapted, opt_state, is_leaf=lambda node: isinstance(node, AdafactorState))
