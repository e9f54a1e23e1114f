"""Attention on TPUs by Splash, the block-sparse flash attention in Pallas that comes with JAX.

Blocks of scores that the mask leaves empty are skipped, forward and backward, so that a local layer costs
O(sequence * window); no more than one block of scores exists at a time. Scores and softmax are float32.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as pallas

LANES = 128  # sequences are padded to a multiple of it
BLOCK = 512  # queries, and keys, of one block, where the sequence and the window have as many


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: jax.Array | None = None,
    *,
    window: int | None = None,
    interpret: bool = False,
    size: int | None = None,
) -> jax.Array:
    """Causal attention on one device: q, k, v [batch, sequence, heads, head_dim] -> q's shape and type.
    Keys and values may have fewer heads, a divisor of q's.

    `window`: keys a query sees, itself included; `segments`: int32 [batch, sequence], of which it sees its
    own. The result and the logarithm of each row's sum, which the backward kernels need, are named
    "attention" for remat policies. `interpret` runs the kernels without a TPU, slowly. `size`: queries, and
    keys, of one block (default: what `block` chooses); it divides the padded sequence.
    """
    length, heads = q.shape[1:3]
    pad = -length % LANES  # keys that pad stand after all queries, which therefore do not see them
    shape = (length + pad, length + pad)
    mask = pallas.CausalMask(shape) if window is None else pallas.LocalMask(shape, (window - 1, 0), 0)
    size = size or block(length + pad, window)
    kernel = pallas.make_splash_mha(
        pallas.MultiHeadMask([mask] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=pallas.BlockSizes(*[size] * 8),  # type: ignore[arg-type]
        residual_checkpoint_name="attention",
        interpret=interpret,
    )

    def rows(x: jax.Array) -> jax.Array:  # -> [batch, heads, sequence, head_dim]
        return jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))).swapaxes(1, 2)

    own = None
    if segments is not None:
        padded = jnp.pad(segments, ((0, 0), (0, pad)))
        own = pallas.SegmentIds(padded, padded)
    return jax.vmap(kernel)(rows(q), rows(k), rows(v), own).swapaxes(1, 2)[:, :length]


def block(length: int, window: int | None) -> int:
    """The size of a block: one that divides `length`, and no larger than the window needs."""
    wanted = BLOCK
    while window is not None and wanted // 2 >= max(window, LANES):
        wanted //= 2
    return math.gcd(length, wanted)
