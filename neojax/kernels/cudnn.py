"""Attention on NVIDIA GPUs by cuDNN's flash attention, called through JAX."""

from typing import Literal

import jax

from neojax.kernels.masks import apart


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: jax.Array | None = None,
    *,
    window: int | None = None,
    causal: bool = True,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """Attention on one device: q, k, v [batch, sequence, heads, head_dim] -> q's shape and type. Keys and
    values may have fewer heads, a divisor of q's.

    `segments` int32 [batch, sequence]: as in `attention`, which documents stand apart. `window`: keys a
    causal query sees, itself included. `implementation`: JAX's name of the library; "xla" computes the same
    from the same arguments without a GPU.
    """
    mask = None if segments is None else apart(segments, segments, causal)[:, None]
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=mask,
        scale=1.0,
        is_causal=causal,
        local_window_size=None if window is None else (window - 1, 0),
        implementation=implementation,
    )
