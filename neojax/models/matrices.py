"""The matrices of a model, what products with them sum over, and the types that they are kept in."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from neojax.layout.named import Quantized

SUMMED: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("embd", "projections", "heads", "head_dim"): ("embd",),
    ("embd", "projections", "kv_heads", "head_dim"): ("embd",),
    ("embd", "heads", "head_dim"): ("embd",),
    ("embd", "kv_heads", "head_dim"): ("embd",),
    ("heads", "head_dim", "embd"): ("heads", "head_dim"),
    ("embd", "mlp"): ("embd",),
    ("mlp", "embd"): ("mlp",),
    ("experts", "embd", "expert_mlp"): ("embd",),
    ("experts", "expert_mlp", "embd"): ("expert_mlp",),
    ("vocab", "embd"): ("embd",),
    ("vocab", "token_embd"): ("token_embd",),
    ("token_embd", "embd"): ("token_embd",),
    ("embd", "features"): ("embd",),
}
"""The matrices, by their dimensions, and which of these a product with them sums over: numbers that are
summed share a scale. All else is small, or a token reads only a row of it, and stays float32."""


def narrow(value: Any, dims: tuple[str, ...], dtype: Any, weights: str) -> Any:
    """One parameter as `weights`, see `for_inference`; those that are no matrices are left as they are."""
    own = tuple(dim for dim in dims if dim != "layers")
    if own not in SUMMED or isinstance(value, Quantized):
        return value
    if weights == "int8":
        return quantized(value, tuple(dims.index(dim) for dim in SUMMED[own]))
    return _cast(value, jnp.dtype(dtype if weights == "auto" else weights))


@partial(jax.jit, static_argnums=1)
def _cast(value: jax.Array, dtype: Any) -> jax.Array:
    return value.astype(dtype)


@partial(jax.jit, static_argnums=1)
def quantized(value: jax.Array, summed: tuple[int, ...]) -> Quantized:
    """`value` as int8, symmetric: the largest number of an output channel becomes 127 and all are rounded to
    the nearest (https://arxiv.org/abs/2208.07339, section 2). Numbers along the axes `summed` share a scale,
    float32 with size 1 along these axes."""
    largest = jnp.max(jnp.abs(value), axis=summed, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1.0).astype(jnp.float32) / 127
    return Quantized(jnp.round(value / scale).astype(jnp.int8), scale)
