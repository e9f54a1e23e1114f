"""Multi-head self-attention: global, local (a sliding window) or linear."""

import math
from collections.abc import Mapping, Set

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from neojax.config import ModelConfig
from neojax.kernels import linear_attention
from neojax.kernels.attention import Keys, Memory, attend, attention, memory_keys, token_keys
from neojax.kernels.masks import visible
from neojax.layout import named
from neojax.layout.named import Constant, Dropout, Normal, Param, einsum
from neojax.models.cache import Cache, append, first_cache, slot_times
from neojax.models.compute import Compute
from neojax.models.context import Context
from neojax.models.positions import frequencies, rotate

JOINED = {"joined": ("query", "key", "value"), "key_value": ("key", "value")}
"""The joined projections, and their parts in their order."""


class Attention(nnx.Module):
    """Multi-head self-attention: global, local (a sliding window) or linear, as the layer that calls it says.

    `kinds` are those of all layers that use these weights. Scores are not scaled and queries, keys and values
    have no bias, as in GPT-Neo, unless the config asks for them. With fewer heads of keys and values than of
    queries (https://arxiv.org/abs/2305.13245), query head i reads head i // (heads / kv_heads) of them.
    """

    def __init__(self, config: ModelConfig, kinds: Set[str], sizes: Mapping[str, int], compute: Compute):
        embd, head_dim = config.n_embd, config.head_dim
        settings = config.attention
        self.kernel = compute.attention_kernel
        self.window = settings.window
        self.rate = settings.dropout
        self.causal = config.causal
        self.rotary = config.positions if config.positions.kind == "rotary" else None
        self.scale = head_dim**-0.5 if settings.scale else 1.0
        self.key_heads = own = "kv_heads" if config.kv_heads < settings.heads else "heads"
        init = Normal(embd**-0.5)
        three, two = {**sizes, "projections": 3}, {**sizes, "projections": 2}
        whole, shared = compute.joined and own == "heads", compute.joined and own == "kv_heads"
        self.joined = Param("embd projections heads head_dim", init, three) if whole else None
        self.key_value = Param("embd projections kv_heads head_dim", init, two) if shared else None
        if not whole:
            self.query = Param("embd heads head_dim", Normal(embd**-0.5 * head_dim**-0.5), sizes)
        if not compute.joined:
            self.key = Param(f"embd {own} head_dim", init, sizes)
            self.value = Param(f"embd {own} head_dim", init, sizes)
        biased = settings.bias
        self.query_bias = Param("heads head_dim", Constant(0.0), sizes) if biased else None
        self.key_bias = Param(f"{own} head_dim", Constant(0.0), sizes) if biased else None
        self.value_bias = Param(f"{own} head_dim", Constant(0.0), sizes) if biased else None
        self.out = Param("heads head_dim embd", Normal((settings.heads * head_dim) ** -0.5), sizes)
        self.out_bias = Param("embd", Constant(0.0), sizes) if settings.out_bias else None
        # All-attention's persistent vectors, https://arxiv.org/abs/1907.01470, beside the tokens' keys and
        # values.
        memory = settings.memory_slots and "global" in kinds
        init = Normal(head_dim**-0.5)
        self.memory_key = Param("memory_slots heads head_dim", init, sizes) if memory else None
        self.memory_value = Param("memory_slots heads head_dim", init, sizes) if memory else None

    def __call__(
        self,
        x: jax.Array,
        kind: str,
        context: Context,
        cache: Cache | None,
        dropout_key: jax.Array | None,
    ) -> tuple[jax.Array, Cache | None]:
        """x [batch, sequence, embd] -> the same shape, and the cache with these tokens in it."""
        q, k, v = self.project(x)
        if self.key_heads == "kv_heads":
            k, v = (self.spread(y, q.shape[2] if kind == "linear" else None) for y in (k, v))
        q = checkpoint_name(q * self.scale, "query")
        k, v = checkpoint_name(k, "key"), checkpoint_name(v, "value")
        if self.rotary is not None:
            position = context.token_positions(x.shape[1])
            turn = frequencies(self.rotary, q.shape[3])
            q, k = (rotate(y, position, turn, self.rotary.interleaved) for y in (q, k))
        if kind == "linear":
            y, kept = self.accumulate(q, k, v, context, cache)
        else:
            rate = self.rate if kind == "global" else 0.0
            dropout = Dropout(rate, dropout_key) if rate and dropout_key is not None else None
            y, kept = self.attend(q, k, v, kind, context, cache, dropout)
        y = einsum("batch sequence heads head_dim, heads head_dim embd -> batch sequence embd", y, self.out)
        return named.biased(y, self.out_bias, "embd"), kept

    def project(self, x: jax.Array) -> list[jax.Array]:
        """x [batch, sequence, embd] -> queries [batch, sequence, heads, head_dim], keys and values [batch,
        sequence, kv_heads, head_dim]."""

        def one(weight: Param, heads: str) -> jax.Array:
            equation = f"batch sequence embd, embd {heads} head_dim -> batch sequence {heads} head_dim"
            return einsum(equation, x, weight)

        def several(weights: Param, heads: str) -> list[jax.Array]:
            several = f"projections {heads} head_dim"
            y = einsum(f"batch sequence embd, embd {several} -> batch sequence {several}", x, weights)
            return [y[:, :, i] for i in range(y.shape[2])]

        if self.joined is not None:
            parts = several(self.joined, "heads")
        elif self.key_value is not None:
            parts = [one(self.query, "heads"), *several(self.key_value, "kv_heads")]
        else:
            parts = [one(self.query, "heads"), *(one(w, self.key_heads) for w in (self.key, self.value))]
        biases = self.query_bias, self.key_bias, self.value_bias
        heads = "heads", self.key_heads, self.key_heads
        return [named.biased(y, bias, f"{own} head_dim") for y, bias, own in zip(parts, biases, heads)]

    def spread(self, x: jax.Array, count: int | None = None) -> jax.Array:
        """Keys or values x [batch, sequence, kv_heads, head_dim], split as the heads of queries that read
        them.

        Each head is repeated as often as that needs: where kv_heads do not divide by the parts of heads, a
        device has those that its own queries read. `count`: the heads to make of them, default the fewest.
        """
        own = x.shape[2]
        count = count or math.lcm(own, named.current_layout().split("heads"))
        if count > own:
            sharding = named.sharding("batch sequence kv_heads head_dim")
            x = jnp.repeat(x, count // own, axis=2, out_sharding=sharding)
        return named.lay(x, "batch sequence heads head_dim")

    def attend(self, q, k, v, kind, context, cache, dropout):
        """Softmax attention to the tokens of the call and, with a cache, to all that it holds."""
        window = self.window if kind == "local" else None
        memory: Memory | None = None
        if kind == "global" and self.memory_key is not None and self.memory_value is not None:
            memory = self.memory_key, self.memory_value
        if cache is None:
            y = attention(
                q,
                k,
                v,
                window=window,
                start=context.start,
                segments=context.segments,
                branches=context.trees(),
                causal=self.causal,
                memory=memory,
                dropout=dropout,
                kernel=self.kernel,
            )
            return y, None if context.slots is None else first_cache(k, v, context.slots[kind])
        now = context.time + jnp.arange(q.shape[1])

        def seen(times: jax.Array) -> jax.Array:
            found = visible(now, times, window, context.start)
            return found if context.start is None else found[:, None]

        before = seen(slot_times(cache, now[0] - 1))
        ring = Keys(cache[0], cache[1], "batch heads head_dim slots", "batch heads slots head_dim", before)
        y = attend(q, ring, token_keys(k, v, seen(now)), *memory_keys(memory))
        if len(now) == 1:
            # What is written depends on what was read, so that XLA writes in place and copies no ring; the
            # CPU's compiler drops an optimization barrier before it decides on copies. A y that is not finite
            # adds nothing, either.
            nothing = jnp.where(jnp.isfinite(y), 0 * y, 0)
            if k.shape[2] < y.shape[2]:
                groups = *k.shape[:3], y.shape[2] // k.shape[2], y.shape[3]
                nothing = named.reshaped(nothing, groups, "batch sequence heads group head_dim").sum(3)
            k, v = k + nothing, v + nothing
        return y, append(cache, k, v, now)

    def accumulate(self, q, k, v, context, cache):
        """Linear attention over the tokens of the call and, with a cache, the state of those before it."""
        if cache is not None and q.shape[1] == 1:
            return linear_attention.step(q, k, v, cache)
        y, state = linear_attention.attention(
            q,
            k,
            v,
            start=context.start,
            segments=context.segments,
            causal=self.causal,
            time=context.time,
            state=cache,
        )
        return checkpoint_name(y, "attention"), None if context.slots is None and cache is None else state
