"""Multi-head self-attention: global, local (a sliding window) or linear."""

from collections.abc import Mapping, Set

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from neojax.config import ModelConfig
from neojax.kernels import linear_attention
from neojax.kernels.attention import Keys, Memory, attend, attention, memory_keys, token_keys, visible
from neojax.layout import named
from neojax.layout.named import Constant, Dropout, Normal, Param, einsum
from neojax.models.cache import Cache, append, first_cache, slot_times
from neojax.models.compute import Compute
from neojax.models.context import Context
from neojax.models.positions import rotate

PROJECTIONS = ("query", "key", "value")  # the parts of a joined projection, in their order


class Attention(nnx.Module):
    """Multi-head self-attention: global, local (a sliding window) or linear, as the layer that calls it says.

    `kinds` are those of all layers that use these weights. Scores are not scaled and queries, keys and values
    have no bias, as in GPT-Neo, unless the config asks for them.
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
        init = Normal(embd**-0.5)
        three = {**sizes, "projections": 3}
        self.joined = Param("embd projections heads head_dim", init, three) if compute.joined else None
        if not compute.joined:
            self.query = Param("embd heads head_dim", Normal(embd**-0.5 * head_dim**-0.5), sizes)
            self.key = Param("embd heads head_dim", init, sizes)
            self.value = Param("embd heads head_dim", init, sizes)
        biased = settings.bias
        self.query_bias = Param("heads head_dim", Constant(0.0), sizes) if biased else None
        self.key_bias = Param("heads head_dim", Constant(0.0), sizes) if biased else None
        self.value_bias = Param("heads head_dim", Constant(0.0), sizes) if biased else None
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
        q = checkpoint_name(q * self.scale, "query")
        k, v = checkpoint_name(k, "key"), checkpoint_name(v, "value")
        if self.rotary is not None:
            position = context.token_positions(x.shape[1])
            q, k = (rotate(y, position, self.rotary.base, self.rotary.rotary_dims) for y in (q, k))
        if kind == "linear":
            y, kept = self.accumulate(q, k, v, context, cache)
        else:
            rate = self.rate if kind == "global" else 0.0
            dropout = Dropout(rate, dropout_key) if rate and dropout_key is not None else None
            y, kept = self.attend(q, k, v, kind, context, cache, dropout)
        y = einsum("batch sequence heads head_dim, heads head_dim embd -> batch sequence embd", y, self.out)
        return y if self.out_bias is None else named.biased(y, self.out_bias, "embd"), kept

    def project(self, x: jax.Array) -> list[jax.Array]:
        """x [batch, sequence, embd] -> queries, keys and values [batch, sequence, heads, head_dim]."""
        if self.joined is not None:
            three = einsum(
                "batch sequence embd, embd projections heads head_dim -> batch sequence projections heads "
                "head_dim",
                x,
                self.joined,
            )
            parts = [three[:, :, i] for i in range(3)]
        else:
            equation = "batch sequence embd, embd heads head_dim -> batch sequence heads head_dim"
            parts = [einsum(equation, x, weight) for weight in (self.query, self.key, self.value)]
        biases = self.query_bias, self.key_bias, self.value_bias
        return [
            y if bias is None else named.biased(y, bias, "heads head_dim") for y, bias in zip(parts, biases)
        ]

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
