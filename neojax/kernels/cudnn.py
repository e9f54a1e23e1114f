"""Attention on NVIDIA GPUs by cuDNN's flash attention, called through JAX."""

from typing import Literal

import jax


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    window: int | None = None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """Causal attention on one device: q, k, v [batch, sequence, heads, head_dim] -> q's shape and type.
    Keys and values may have fewer heads, a divisor of q's.

    `window`: keys a query sees, itself included. `implementation`: JAX's name of the library; "xla" computes
    the same from the same arguments without a GPU.
    """
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=1.0,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation=implementation,
    )
