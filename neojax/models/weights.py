"""Weights stored narrower than they are computed with: bfloat16, or int8 with a scale for every output channel.

A model of such weights is used as any other, for scoring and for generation, but not for training. Products read the
narrow numbers and scale their result, so that a whole matrix in the compute type never exists (`named.einsum`).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from neojax.arguments import wrong
from neojax.layout.named import Quantized
from neojax.models.transformer import Transformer

WEIGHTS = ("float32", "bfloat16", "int8")

SUMMED: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("embd", "heads", "head_dim"): ("embd",),
    ("heads", "head_dim", "embd"): ("heads", "head_dim"),
    ("embd", "mlp"): ("embd",),
    ("mlp", "embd"): ("mlp",),
    ("vocab", "embd"): ("embd",),
}
"""The matrices that are narrowed, by their dimensions, and which of these a product with them sums over: numbers that
are summed share a scale. All else is small, or a token reads only a row of it."""


def narrowed(model: Transformer, weights: str) -> Transformer:
    """`model` with its matrices as `weights`: bfloat16, int8, or float32, which changes nothing.

    int8 is symmetric: the largest number of an output channel becomes 127 and all are rounded to the nearest
    (https://arxiv.org/abs/2208.07339, section 2). Raises `NeojaxError` for other `weights`.
    """
    check_weights(weights)
    if weights == "float32":
        return model
    dims = model.dims()

    @jax.jit
    def narrow(params: dict[str, jax.Array]) -> dict[str, Any]:
        return {name: narrow_one(value, dims[name]) for name, value in params.items()}

    def narrow_one(value: jax.Array, dims: tuple[str, ...]) -> Any:
        stacked = dims[:1] == ("layers",)
        own = dims[1:] if stacked else dims
        if own not in SUMMED:
            return value
        if weights == "bfloat16":
            return value.astype(jnp.bfloat16)
        return quantize(value, tuple(own.index(dim) + stacked for dim in SUMMED[own]))

    other = model.bind(narrow(model.params()))
    other.tokenizer, other.eos_token_id = model.tokenizer, model.eos_token_id
    return other


def check_weights(weights: str) -> None:
    """Raises `NeojaxError` for a type that weights cannot be kept in."""
    if not isinstance(weights, str) or weights not in WEIGHTS:
        raise wrong("weights", weights, f"{', '.join(WEIGHTS[:-1])} or {WEIGHTS[-1]}")


def quantize(value: jax.Array, summed: tuple[int, ...]) -> Quantized:
    """`value` as int8; numbers along the axes `summed` share a scale, float32 with size 1 along these axes."""
    largest = jnp.max(jnp.abs(value), axis=summed, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1.0).astype(jnp.float32) / 127
    return Quantized(jnp.round(value / scale).astype(jnp.int8), scale)
