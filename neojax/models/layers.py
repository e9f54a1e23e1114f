"""The parts of a block: layer normalisation, attention and MLP. Facts: gpt-neo's `models/gpt2/gpt2.py`."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from neojax import named
from neojax.config import ModelConfig
from neojax.kernels.attention import attention, visible, weigh
from neojax.named import Constant, Dropout, Normal, Param, einsum

ACTIVATIONS = {
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}

KeyValues = tuple[jax.Array, jax.Array]
"""The cached keys and values of one layer, each [batch, slots, heads, head_dim]: a ring in which the token of
time t is at slot t modulo slots."""


@dataclass(frozen=True)
class Window:
    """Where the tokens of a call stand: what attention needs besides the activations.

    `start` int32 [batch]: the time of each row's first token (padding is on the left), None for 0.
    `time`: int32 scalar, the time of the first token of the call; a Python 0 where no token came before.
    `slots`: the number of cache slots to keep, per attention type; None where there is no cache.
    """

    start: jax.Array | None = None
    time: jax.Array | int = 0
    slots: Mapping[str, int] | None = None


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over embd, computed in float32."""

    def __init__(self, epsilon: float, sizes: Mapping[str, int]):
        self.epsilon = epsilon
        self.scale = Param("embd", Constant(1.0), sizes)
        self.bias = Param("embd", Constant(0.0), sizes)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        return (y * named.use(self.scale, "embd") + named.use(self.bias, "embd")).astype(x.dtype)


class Attention(nnx.Module):
    """Multi-head self-attention; `kind` is global or local (a sliding window).

    Scores are not scaled and queries, keys and values have no bias, as in GPT-Neo, unless the config asks for them.
    """

    def __init__(self, config: ModelConfig, kind: str, sizes: Mapping[str, int]):
        embd, head_dim = config.n_embd, config.head_dim
        self.kind = kind
        self.window = config.window_size if kind == "local" else None
        self.rate = config.attn_dropout if kind == "global" else 0.0
        self.scale = head_dim**-0.5 if config.scale_attention else 1.0
        self.query = Param("embd heads head_dim", Normal(embd**-0.5 * head_dim**-0.5), sizes)
        self.key = Param("embd heads head_dim", Normal(embd**-0.5), sizes)
        self.value = Param("embd heads head_dim", Normal(embd**-0.5), sizes)
        biased = config.attention_bias
        self.query_bias = Param("heads head_dim", Constant(0.0), sizes) if biased else None
        self.key_bias = Param("heads head_dim", Constant(0.0), sizes) if biased else None
        self.value_bias = Param("heads head_dim", Constant(0.0), sizes) if biased else None
        self.out = Param("heads head_dim embd", Normal((config.n_head * head_dim) ** -0.5), sizes)
        self.out_bias = Param("embd", Constant(0.0), sizes)

    def __call__(
        self, x: jax.Array, where: Window, cache: KeyValues | None, dropout_key: jax.Array | None
    ) -> tuple[jax.Array, KeyValues | None]:
        """x [batch, sequence, embd] -> the same shape, and the cache with these tokens in it."""
        q = checkpoint_name(project(x, self.query, self.query_bias) * self.scale, "query")
        k = checkpoint_name(project(x, self.key, self.key_bias), "key")
        v = checkpoint_name(project(x, self.value, self.value_bias), "value")
        if cache is None:
            drop = Dropout(self.rate, dropout_key) if self.rate and dropout_key is not None else None
            y = attention(q, k, v, window=self.window, start=where.start, dropout=drop)
            kept = None if where.slots is None else first_cache(k, v, where.slots[self.kind])
        else:
            kept = append(cache, k, v, where.time)
            y = self.look_back(q, kept, where)
        y = checkpoint_name(y, "attention")
        y = einsum("batch sequence heads head_dim, heads head_dim embd -> batch sequence embd", y, self.out)
        return y + named.use(self.out_bias, "embd", y.dtype), kept

    def look_back(self, q: jax.Array, cache: KeyValues, where: Window) -> jax.Array:
        """Attention of one new token, already in the cache, to all that the cache holds."""
        slots = cache[0].shape[1]
        now = jnp.asarray(where.time)
        times = now - (now - jnp.arange(slots)) % slots
        seen = visible(now[None], times, self.window, where.start)
        seen = seen[:, None] if where.start is not None else seen
        return weigh(q, *cache, seen, "slots")


def project(x: jax.Array, weight: Param, bias: Param | None) -> jax.Array:
    """x [batch, sequence, embd] -> [batch, sequence, heads, head_dim]: queries, keys or values."""
    y = einsum("batch sequence embd, embd heads head_dim -> batch sequence heads head_dim", x, weight)
    return y if bias is None else y + named.use(bias, "heads head_dim", y.dtype)


def first_cache(k: jax.Array, v: jax.Array, slots: int) -> KeyValues:
    """The ring after the first tokens (times 0, 1, ...) with keys k and values v [batch, sequence, heads, head_dim]."""

    def ring(x: jax.Array) -> jax.Array:
        length = x.shape[1]
        if length > slots:  # the last `slots` tokens, each turned to its slot
            return jnp.roll(x[:, length - slots :], length % slots, axis=1)
        return jnp.pad(x, ((0, 0), (0, slots - length), (0, 0), (0, 0)))

    return ring(k), ring(v)


def append(cache: KeyValues, k: jax.Array, v: jax.Array, time: jax.Array | int) -> KeyValues:
    """The ring with one more token, of time `time`; k and v are [batch, 1, heads, head_dim]."""
    slot = jnp.asarray(time) % cache[0].shape[1]
    old_k, old_v = cache
    return (
        jax.lax.dynamic_update_slice_in_dim(old_k, k.astype(old_k.dtype), slot, axis=1),
        jax.lax.dynamic_update_slice_in_dim(old_v, v.astype(old_v.dtype), slot, axis=1),
    )


class MLP(nnx.Module):
    """Two projections with a non-linearity between them."""

    def __init__(self, config: ModelConfig, sizes: Mapping[str, int]):
        std_in = std_out = 0.02
        if config.scale_by_in:
            std_in, std_out = std_in * config.n_embd**-0.5, std_out * config.mlp_dim**-0.5
        if config.scale_by_depth:
            std_out *= config.n_layer**-0.5
        self.activation = config.activation_function
        self.up = Param("embd mlp", Normal(std_in), sizes)
        self.up_bias = Param("mlp", Constant(0.0), sizes)
        self.down = Param("mlp embd", Normal(std_out), sizes)
        self.down_bias = Param("embd", Constant(0.0), sizes)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = einsum("batch sequence embd, embd mlp -> batch sequence mlp", x, self.up)
        y = checkpoint_name(y + named.use(self.up_bias, "mlp", y.dtype), "mlp_up")
        y = ACTIVATIONS[self.activation](y)
        y = einsum("batch sequence mlp, mlp embd -> batch sequence embd", y, self.down)
        return y + named.use(self.down_bias, "embd", y.dtype)


class Block(nnx.Module):
    """Pre-norm residual block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, kind: str, sizes: Mapping[str, int]):
        self.rate = config.res_dropout
        self.norm_1 = LayerNorm(config.layer_norm_epsilon, sizes)
        self.attn = Attention(config, kind, sizes)
        self.norm_2 = LayerNorm(config.layer_norm_epsilon, sizes)
        self.mlp = MLP(config, sizes)

    def __call__(
        self, x: jax.Array, where: Window, cache: KeyValues | None, dropout_key: jax.Array | None
    ) -> tuple[jax.Array, KeyValues | None]:
        keys = [None] * 3 if dropout_key is None else list(jax.random.split(dropout_key, 3))
        y, cache = self.attn(self.norm_1(x), where, cache, keys[0])
        x = x + residual_dropout(y, self.rate, keys[1])
        return x + residual_dropout(self.mlp(self.norm_2(x)), self.rate, keys[2]), cache


def residual_dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Dropout on [batch, sequence, embd]; nothing without a key."""
    return x if key is None or not rate else Dropout(rate, key)(x, "batch sequence embd")
