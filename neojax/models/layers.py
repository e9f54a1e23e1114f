"""A block and its attention and MLP. Facts: gpt-neo's `models/gpt2/gpt2.py`."""

from collections.abc import Mapping, Set
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from neojax.config import ModelConfig
from neojax.kernels import linear_attention
from neojax.kernels.attention import Keys, Memory, attention, learned, tokens, visible, weigh
from neojax.layout import named
from neojax.layout.named import Constant, Dropout, Normal, Param, einsum
from neojax.models.activations import ACTIVATIONS, LEARNED
from neojax.models.norms import Identity, after_branch, before_branch
from neojax.models.positions import rotate

KeyValues = tuple[jax.Array, jax.Array]
"""The cached keys [batch, heads, head_dim, slots] and values [batch, heads, slots, head_dim] of one layer, in the
orders in which decoding multiplies them: a ring in which the token of time t is at slot t modulo slots. Keys of rotary
positions are turned already; learned keys are not in it."""

Cache = KeyValues | linear_attention.State | tuple[()]
"""What one layer keeps of the tokens so far; empty for a layer without attention."""


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

    def positions(self, length: int) -> jax.Array:
        """The positions of the call's `length` tokens: int32 [sequence], or [batch, sequence] with `start`."""
        time = self.time + jnp.arange(length)
        if self.start is None:
            return time
        return named.lay(jnp.maximum(time - self.start[:, None], 0), "batch sequence")


class Attention(nnx.Module):
    """Multi-head self-attention: global, local (a sliding window) or linear, as the layer that calls it says.

    `kinds` are those of all layers that use these weights; `kernel` is train.attention_kernel. Scores are not scaled
    and queries, keys and values have no bias, as in GPT-Neo, unless the config asks for them. With `joined` the matrices
    of queries, keys and values are one parameter, for one large product in place of three.
    """

    def __init__(
        self,
        config: ModelConfig,
        kinds: Set[str],
        sizes: Mapping[str, int],
        kernel: str = "auto",
        *,
        joined: bool = False,
    ):
        embd, head_dim = config.n_embd, config.head_dim
        self.kernel = kernel
        self.window = config.attention.window
        self.rate = config.attention.dropout
        self.causal = config.causal
        self.rotary = config.positions.kind == "rotary"
        self.scale = head_dim**-0.5 if config.attention.scale else 1.0
        three = {**sizes, "projections": 3}
        init = Normal(embd**-0.5)
        self.joined = Param("embd projections heads head_dim", init, three) if joined else None
        if not joined:
            self.query = Param("embd heads head_dim", Normal(embd**-0.5 * head_dim**-0.5), sizes)
            self.key = Param("embd heads head_dim", init, sizes)
            self.value = Param("embd heads head_dim", init, sizes)
        biased = config.attention.bias
        self.query_bias = Param("heads head_dim", Constant(0.0), sizes) if biased else None
        self.key_bias = Param("heads head_dim", Constant(0.0), sizes) if biased else None
        self.value_bias = Param("heads head_dim", Constant(0.0), sizes) if biased else None
        self.out = Param("heads head_dim embd", Normal((config.attention.heads * head_dim) ** -0.5), sizes)
        self.out_bias = Param("embd", Constant(0.0), sizes)
        # All-attention's persistent vectors, https://arxiv.org/abs/1907.01470, beside the tokens' keys and values.
        memory = config.attention.memory_slots and "global" in kinds
        init = Normal(head_dim**-0.5)
        self.memory_key = Param("memory_slots heads head_dim", init, sizes) if memory else None
        self.memory_value = Param("memory_slots heads head_dim", init, sizes) if memory else None

    def __call__(
        self,
        x: jax.Array,
        kind: str,
        where: Window,
        cache: Cache | None,
        dropout_key: jax.Array | None,
    ) -> tuple[jax.Array, Cache | None]:
        """x [batch, sequence, embd] -> the same shape, and the cache with these tokens in it."""
        q, k, v = self.project(x)
        q = checkpoint_name(q * self.scale, "query")
        k, v = checkpoint_name(k, "key"), checkpoint_name(v, "value")
        if self.rotary:
            position = where.positions(x.shape[1])
            q, k = rotate(q, position), rotate(k, position)
        if kind == "linear":
            y, kept = self.accumulate(q, k, v, where, cache)
        else:
            rate = self.rate if kind == "global" else 0.0
            dropout = Dropout(rate, dropout_key) if rate and dropout_key is not None else None
            y, kept = self.look(q, k, v, kind, where, cache, dropout)
        y = einsum("batch sequence heads head_dim, heads head_dim embd -> batch sequence embd", y, self.out)
        return named.biased(y, self.out_bias, "embd"), kept

    def project(self, x: jax.Array) -> list[jax.Array]:
        """x [batch, sequence, embd] -> queries, keys and values [batch, sequence, heads, head_dim]."""
        if self.joined is not None:
            three = einsum(
                "batch sequence embd, embd projections heads head_dim -> batch sequence projections heads head_dim",
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

    def look(self, q, k, v, kind, where, cache, dropout):
        """Softmax attention to the tokens of the call and, with a cache, to all that it holds."""
        window = self.window if kind == "local" else None
        memory: Memory | None = None
        if kind == "global" and self.memory_key is not None and self.memory_value is not None:
            memory = self.memory_key, self.memory_value
        if cache is None:
            y = attention(
                *(q, k, v),
                window=window,
                start=where.start,
                causal=self.causal,
                memory=memory,
                dropout=dropout,
                kernel=self.kernel,
            )
            return y, None if where.slots is None else first_cache(k, v, where.slots[kind])
        now = where.time + jnp.arange(q.shape[1])

        def seen(times: jax.Array) -> jax.Array:
            found = visible(now, times, window, where.start)
            return found if where.start is None else found[:, None]

        before = seen(slot_times(cache, now[0] - 1))
        ring = Keys(cache[0], cache[1], "batch heads head_dim slots", "batch heads slots head_dim", before)
        y = weigh(q, ring, tokens(k, v, seen(now)), *learned(memory))
        if len(now) == 1:
            # What is written depends on what was read, so that XLA writes in place and copies no ring; the CPU's compiler
            # drops an optimization barrier before it decides on copies. A y that is not finite adds nothing, either.
            nothing = jnp.where(jnp.isfinite(y), 0 * y, 0)
            k, v = k + nothing, v + nothing
        return y, append(cache, k, v, now)

    def accumulate(self, q, k, v, where, cache):
        """Linear attention over the tokens of the call and, with a cache, the state of those before it."""
        if cache is not None and q.shape[1] == 1:
            return linear_attention.step(q, k, v, cache)
        y, state = linear_attention.attention(
            *(q, k, v), start=where.start, causal=self.causal, time=where.time, state=cache
        )
        return checkpoint_name(y, "attention"), None if where.slots is None and cache is None else state


def first_cache(k: jax.Array, v: jax.Array, slots: int) -> KeyValues:
    """The ring after the first tokens (times 0, 1, ...) with keys k and values v [batch, sequence, heads, head_dim]."""

    def ring(x: jax.Array) -> jax.Array:
        length = x.shape[1]
        if length > slots:  # the last `slots` tokens, each turned to its slot
            return jnp.roll(x[:, length - slots :], length % slots, axis=1)
        return jnp.pad(x, ((0, 0), (0, slots - length), (0, 0), (0, 0)))

    return as_cached(ring(k), ring(v))


def as_cached(k: jax.Array, v: jax.Array) -> KeyValues:
    """Keys and values [batch, sequence, heads, head_dim] in the orders of the cache."""
    return k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)


def slot_times(cache: KeyValues, last: jax.Array) -> jax.Array:
    """int32 [slots]: the time of the token in each slot when that of the newest is `last`; negative for none."""
    slots = cache[1].shape[2]
    return last - (last - jnp.arange(slots)) % slots


def delayed(cache: KeyValues, by: jax.Array) -> KeyValues:
    """The ring as it is where every token came `by` later."""
    slots = cache[1].shape[2]
    place = (jnp.arange(slots) - by) % slots
    return (
        cache[0].at[..., place].get(out_sharding=jax.typeof(cache[0]).sharding),
        cache[1].at[:, :, place].get(out_sharding=jax.typeof(cache[1]).sharding),
    )


def append(cache: KeyValues, k: jax.Array, v: jax.Array, now: jax.Array) -> KeyValues:
    """The ring with more tokens, of times `now`; k and v are [batch, sequence, heads, head_dim]."""
    k, v = as_cached(k, v)
    slots = cache[1].shape[2]
    if len(now) == 1:  # in place: what decoding does for every token

        def put(old: jax.Array, new: jax.Array, axis: int) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), now[0] % slots, axis)

        return put(cache[0], k, 3), put(cache[1], v, 2)
    wanted, first = slot_times(cache, now[-1]), now[0]  # what is older than `first` is in its slot already
    place = jnp.where(wanted >= first, slots + wanted - first, jnp.arange(slots))
    keys, values = jnp.concatenate([cache[0], k], 3), jnp.concatenate([cache[1], v], 2)
    return (
        keys.at[..., place].get(out_sharding=jax.typeof(cache[0]).sharding),
        values.at[:, :, place].get(out_sharding=jax.typeof(cache[1]).sharding),
    )


class MLP(nnx.Module):
    """Two projections with a non-linearity between them, or with `mlp_glu` up(x) * activation(gate(x)) between.

    Gated units: https://arxiv.org/abs/2002.05202.
    """

    def __init__(self, config: ModelConfig, sizes: Mapping[str, int]):
        std_in = std_out = 0.02
        if config.init.scale_by_in:
            std_in, std_out = std_in * config.n_embd**-0.5, std_out * config.mlp_dim**-0.5
        if config.init.scale_by_depth:
            std_out *= config.n_layer**-0.5
        self.activation = config.mlp.activation
        scalars = LEARNED.get(self.activation, {})
        self.curve = nnx.Dict({name: Param("", Constant(value), sizes) for name, value in scalars.items()})
        self.up = Param("embd mlp", Normal(std_in), sizes)
        self.up_bias = Param("mlp", Constant(0.0), sizes)
        self.gate = Param("embd mlp", Normal(std_in), sizes) if config.mlp.gated else None
        self.gate_bias = Param("mlp", Constant(0.0), sizes) if config.mlp.gated else None
        self.down = Param("mlp embd", Normal(std_out), sizes)
        self.down_bias = Param("embd", Constant(0.0), sizes)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = checkpoint_name(widen(x, self.up, self.up_bias), "mlp_up")
        if self.gate is None or self.gate_bias is None:
            y = self.activate(y)
        else:
            gate = checkpoint_name(widen(x, self.gate, self.gate_bias), "mlp_gate")
            y = y * self.activate(gate)
        y = einsum("batch sequence mlp, mlp embd -> batch sequence embd", y, self.down)
        return named.biased(y, self.down_bias, "embd")

    def activate(self, x: jax.Array) -> jax.Array:
        """The activation; the backward pass computes it again from x, which is cheaper than keeping its parts. Learned
        scalars, and what they act on, are float32, as are then the sums over all tokens that are their gradients."""
        curve = {name: named.use(scalar, "") for name, scalar in self.curve.items()}
        return jax.checkpoint(lambda x, **curve: ACTIVATIONS[self.activation](x, **curve).astype(x.dtype))(
            x, **curve
        )


def widen(x: jax.Array, weight: Param, bias: Param) -> jax.Array:
    """x [batch, sequence, embd] -> [batch, sequence, mlp]."""
    y = einsum("batch sequence embd, embd mlp -> batch sequence mlp", x, weight)
    return named.biased(y, bias, "mlp")


class Block(nnx.Module):
    """Pre-norm residual block: x + attention(norm(x)), then x + mlp(norm(x)).

    `kinds` are the attention types of the layers that use these weights, `kernel` is train.attention_kernel. A layer of type none has no attention: x goes
    on to the MLP as it is (gpt-neo added x to itself there, a slip that only rescales x against later branches).
    Macaron, https://arxiv.org/abs/1906.02762: x + mlp_macaron(x) / 2 comes first, without normalisation as in
    gpt-neo, and the last MLP is halved too.
    """

    def __init__(
        self,
        config: ModelConfig,
        kinds: Set[str],
        sizes: Mapping[str, int],
        kernel: str = "auto",
        *,
        joined: bool = False,
    ):
        self.rate = config.dropout
        attends = bool(kinds - {"none"})
        self.mlp_macaron = MLP(config, sizes) if config.mlp.macaron else None
        self.norm_1 = before_branch(config, sizes) if attends else Identity()
        self.attn = Attention(config, kinds, sizes, kernel, joined=joined) if attends else None
        self.gate_1 = after_branch(config, sizes) if attends else Identity()
        self.norm_2 = before_branch(config, sizes)
        self.mlp = MLP(config, sizes)
        self.gate_2 = after_branch(config, sizes)

    def __call__(
        self,
        x: jax.Array,
        kind: str,
        where: Window,
        cache: Cache | None,
        dropout_key: jax.Array | None,
    ) -> tuple[jax.Array, Cache | None]:
        """x [batch, sequence, embd] -> the same shape, and the cache of a layer of type `kind` with these tokens."""
        keys = [None] * 3 if dropout_key is None else list(jax.random.split(dropout_key, 3))
        if self.mlp_macaron is not None:
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, 3)
            x = x + residual_dropout(self.mlp_macaron(x), self.rate, key) / 2
        if self.attn is None or kind == "none":
            cache = None if where.slots is None and cache is None else ()
        else:
            y, cache = self.attn(self.norm_1(x), kind, where, cache, keys[0])
            x = x + self.gate_1(residual_dropout(y, self.rate, keys[1]))
        y = residual_dropout(self.mlp(self.norm_2(x)), self.rate, keys[2])
        return x + self.gate_2(y if self.mlp_macaron is None else y / 2), cache


def residual_dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Dropout on [batch, sequence, embd]; nothing without a key."""
    return x if key is None or not rate else Dropout(rate, key)(x, "batch sequence embd")
