"""GPT-Neo: learned positions, repeating groups of global and local blocks, output tied to the embedding."""

import copy
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from neojax.arguments import token_ids
from neojax.config import ModelConfig
from neojax.errors import NeojaxError, suggest
from neojax.kernels import loss
from neojax.kernels.chunked_loss import chunked_token_scores
from neojax.layout import named
from neojax.layout.mesh import Layout, single_device
from neojax.layout.named import Normal, Param
from neojax.models.layers import Block, Cache, Window, residual_dropout
from neojax.models.norms import LayerNorm
from neojax.models.positions import embedding, position_table

PRODUCTS = ("query", "key", "value", "attention", "mlp_up", "mlp_gate")  # what is expensive to compute again
HOST = "pinned_host"
REMAT_POLICIES: dict[str, Any] = {
    "full": None,
    "names": jax.checkpoint_policies.save_only_these_names(*PRODUCTS),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(PRODUCTS),
        offload_src="device",
        offload_dst=HOST,
    ),
}


def check_remat(remat: str, mesh: jax.sharding.Mesh) -> None:
    """Raises `NeojaxError` where `remat` is offload and the mesh's devices reach no memory of their host."""
    device = mesh.local_devices[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if remat == "offload" and HOST not in kinds:
        raise NeojaxError(
            f"train.remat=offload needs {HOST} memory, but {device.device_kind} has only {', '.join(kinds)}; "
            "use train.remat=names, or full to save more"
        )


COMPUTE_TYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def compute_type(precision: str, layout: Layout) -> Any:
    """The type of activations: float32, bfloat16, or auto, bfloat16 on accelerators and float32 on CPU."""
    if precision == "auto":
        precision = "float32" if layout.platform == "cpu" else "bfloat16"
    return COMPUTE_TYPES[precision]


class Transformer(nnx.Module):
    """The language model: training, scoring, prefill and decode share it.

    Layers are grouped by the smallest repeating pattern of attention types; the parameters of the repetitions
    are stacked along a first dimension `layers` and scanned, `unroll` of them in one turn of the loop (0: all, so that
    there is no loop). With `stacked=False` every layer has parameters of its own and the layers are unrolled; `joined`
    is as in `Attention`. A new instance is abstract: it has names, dimensions and shapes but no
    values until `init` or `bind` gives them. `tokenizer` (a `tokenizers.Tokenizer`) and `eos_token_id` travel with
    a model that was loaded.
    """

    def __init__(
        self,
        config: ModelConfig,
        layout: Layout | None = None,
        *,
        dtype: Any = jnp.float32,
        reduce_dtype: Any = jnp.float32,
        remat: str = "none",
        unroll: int = 1,
        stacked: bool = True,
        attention_kernel: str = "auto",
        joined: bool = False,
    ):
        self.tokenizer: Any = None
        self.eos_token_id: int | None = None
        self.config = config
        self.layout = layout = layout or single_device()
        self.dtype = jnp.dtype(dtype)
        self.reduce_dtype = jnp.dtype(reduce_dtype)
        self.remat = remat
        self.unroll = unroll
        self.attention_kernel = attention_kernel
        kinds = config.attention_layers
        self.kinds = smallest_pattern(kinds) if stacked else kinds  # of the layers of one group
        self.repeats = len(kinds) // len(self.kinds) if stacked else 0
        self.shared = config.share_parameters
        sizes = {
            "vocab": layout.padded_vocab(config.n_vocab),
            "positions": config.n_ctx,
            "embd": config.n_embd,
            "heads": config.attention.heads,
            "head_dim": config.head_dim,
            "mlp": config.mlp_dim,
            "memory_slots": config.attention.memory_slots,
        }
        self.wte = Param("vocab embd", Normal(0.02), sizes)
        self.wpe = position_table(config, sizes)
        if self.shared:
            self.blocks = nnx.List([Block(config, set(kinds), sizes, attention_kernel, joined=joined)])
        else:
            block_sizes = {**sizes, "layers": self.repeats} if stacked else sizes
            self.blocks = nnx.List(
                [Block(config, {kind}, block_sizes, attention_kernel, joined=joined) for kind in self.kinds]
            )
        self.norm_f = LayerNorm(config.norm.epsilon, sizes)
        tied = config.embedding.tied
        self.lm_head = None if tied else Param("vocab embd", Normal(0.02), sizes)

    # Parameters in, parameters out

    def named_params(self) -> Iterator[tuple[str, Param]]:
        """Every parameter with its name, such as ``blocks.0.attn.query``, in a fixed order."""
        for path, param in nnx.to_flat_state(nnx.state(self, nnx.Param)):
            yield ".".join(map(str, path)), param

    def params(self) -> dict[str, Any]:
        """Name -> value (an array, or a `jax.ShapeDtypeStruct` while the model is abstract)."""
        return {name: param.get_value() for name, param in self.named_params()}

    def dims(self) -> dict[str, tuple[str, ...]]:
        """Name -> dimension names."""
        return {name: param.dims for name, param in self.named_params()}

    def stored(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Name -> shape, type and stored layout. Raises `NeojaxError` where a parameter cannot be laid out."""
        specs = {}
        for name, param in self.named_params():
            shape = param.get_value().shape
            self.layout.spec(param.dims, shape, what=f"parameter {name}")
            sharding = self.layout.sharding(param.dims, shape, stored=True, what=f"parameter {name}")
            specs[name] = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
        return specs

    def bind(self, params: Mapping[str, Any]) -> "Transformer":
        """The same model with the values `params`, under the names of `params()`. Raises `NeojaxError` where one lacks."""
        for name, _ in self.named_params():
            if name not in params:
                raise NeojaxError(f"bind: there is no parameter {name}{suggest(name, params)}")
        graphdef, state = nnx.split(self)
        flat = [
            (path, param.replace(params[".".join(map(str, path))]))
            for path, param in nnx.to_flat_state(state)
        ]
        return nnx.merge(graphdef, nnx.from_flat_state(flat))

    def init(self, seed: int = 0) -> "Transformer":
        """The model with initial weights in float32, in the stored layout; the same for every mesh."""
        specs, std = self.stored(), self.config.init.std

        @partial(jax.jit, out_shardings={name: spec.sharding for name, spec in specs.items()})
        def make(key: jax.Array) -> dict[str, jax.Array]:
            values = {}
            for name, param in self.named_params():
                own = jax.random.fold_in(key, zlib.crc32(name.encode()))
                draw = param.init
                if std is not None and isinstance(draw, Normal):
                    draw = Normal(std)
                value = draw(own, specs[name].shape, specs[name].sharding)
                if param.dims[:1] == ("vocab",):
                    # Rows that only pad the vocabulary are zero. Random bits depend on an element's place in the
                    # array alone, counted row by row, so that the true rows are what they are without padding.
                    true = jnp.arange(value.shape[0])[:, None] < self.config.n_vocab
                    value = jnp.where(true, value, 0.0)
                values[name] = value
            return values

        return self.bind(make(jax.random.key(seed)))

    @property
    def output_table(self) -> Param:
        """The table of the logits [vocab, embd]: the token embedding, unless the model has one of its own."""
        return self.wte if self.lm_head is None else self.lm_head

    # Computation

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits of the next token: int32 [batch, sequence] -> float32 [batch, sequence, n_vocab].

        They are computed on the model's own mesh, whatever mesh is in force, and come as an array that ordinary JAX code
        takes (`Layout.ordinary`). Within `jax.jit` and its like they keep the model's layout, and no other mesh than the
        model's may be in force. Raises `NeojaxError` for tokens of another type or shape, more of them than n_ctx, or (where
        their values are known on this host, so not under `jax.jit`) ids beyond the vocabulary.
        """
        self.check_bound()
        tokens = token_ids(tokens, self.config.n_vocab, "tokens")
        if tokens.ndim != 2 or tokens.shape[1] > self.config.n_ctx:
            raise NeojaxError(
                f"tokens have shape {list(tokens.shape)}; expected [batch, sequence] with a sequence of at most "
                f"n_ctx={self.config.n_ctx} tokens"
            )
        with self.layout.in_force() as is_free:
            tokens = self.layout.entered(jnp.asarray(tokens, jnp.int32))
            logits = _jitted_logits(*self.halves(), tokens)
        return self.layout.ordinary(logits) if is_free else logits

    def halves(self) -> tuple[Any, Any]:
        """The model as (graphdef, state) for a compiled function, which does not depend on the tokenizer, nor does it keep
        it alive."""
        bare = copy.copy(self)
        vars(bare).update(tokenizer=None, eos_token_id=None)
        return nnx.split(bare)

    def check_bound(self) -> None:
        """Raises `NeojaxError` while the model is abstract."""
        if isinstance(self.wte.get_value(), jax.ShapeDtypeStruct):
            raise NeojaxError(
                "the model has no weights yet; use what model.init(seed) or model.bind(params) gives"
            )

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Final hidden states [batch, sequence, embd] -> float32 [batch, sequence, vocab], padding at -inf."""
        with named.use_layout(self.layout, self.reduce_dtype):
            return loss.logits(hidden, self.output_table, self.config.n_vocab)

    def loss(
        self,
        inputs: jax.Array,
        targets: jax.Array,
        *,
        z_loss: float = 0.0,
        entmax: bool = False,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Sums over a batch (objective, nats, scored tokens), see `kernels.loss.cross_entropy`.

        inputs, targets: int32 [batch, sequence]; a target of -1 is not scored.
        """
        hidden, _ = self.hidden(inputs, dropout_key=dropout_key)
        with named.use_layout(self.layout, self.reduce_dtype):
            return loss.cross_entropy(hidden, self.output_table, targets, self.config.n_vocab, z_loss, entmax)

    def token_scores(self, inputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(log-probability of every target in nats, float32; whether it is the likeliest token), [batch, sequence].

        inputs, targets: int32 [batch, sequence]; where a target is -1 the results mean nothing.
        """
        hidden, _ = self.hidden(inputs)
        with named.use_layout(self.layout, self.reduce_dtype):
            return chunked_token_scores(hidden, self.output_table, targets, self.config.n_vocab)

    def hidden(
        self,
        tokens: jax.Array,
        where: Window | None = None,
        caches: tuple[Cache, ...] | None = None,
        *,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[Cache, ...] | None]:
        """Final hidden states [batch, sequence, embd] of tokens int32 [batch, sequence], and the caches.

        Without `where`, tokens are whole rows. Prefill passes `Window(start, slots=...)` and gets a cache per
        layer; decode passes one token a row, `Window(start, time)` and the caches.
        """
        where = where or Window()
        if where.slots is not None and not self.config.causal:
            raise NeojaxError(
                "model.causal is false: a model trained on masked tokens sees both sides of a token and cannot "
                "continue a text; use its logits, model(tokens)"
            )
        keys = [None, None] if dropout_key is None else list(jax.random.split(dropout_key))
        with named.use_layout(self.layout, self.reduce_dtype):
            x = self.embed(named.lay(tokens, "batch sequence"), where)
            x = residual_dropout(x, self.config.embedding.dropout, keys[0])
            run = self._scan if self.repeats > 1 else self._unroll
            x, caches = run(x, where, caches, keys[1])
            return self.norm_f(x), caches

    def embed(self, tokens: jax.Array, where: Window) -> jax.Array:
        """Sum of token and position embedding, [batch, sequence, embd]."""
        x = named.look_up(self.wte, "vocab embd", tokens, "batch sequence embd", self.dtype)
        if self.wpe is None:
            return x
        return (x + embedding(self.wpe, where.positions(tokens.shape[1]))).astype(x.dtype)

    def _group(self, blocks, first, x, where, caches, key):
        """One repetition of the layer group; `first` is the index of its first layer, for dropout keys."""
        kept = []
        for i, kind in enumerate(self.kinds):
            own = None if key is None else jax.random.fold_in(key, first + i)
            block = blocks[0 if self.shared else i]
            x, cache = block(x, kind, where, None if caches is None else caches[i], own)
            kept.append(cache)
        return named.lay(x, "batch sequence embd"), None if kept[0] is None else tuple(kept)

    def _scan(self, x, where, caches, key):
        graphdef, state = nnx.split(self.blocks)
        group = len(self.kinds)

        def body(x, inputs):
            first, layer, cache = inputs
            blocks = nnx.merge(graphdef, state if self.shared else layer)
            return self._group(blocks, first, x, where, cache, key)

        if caches is not None:  # a cache per layer -> one per block of the group, stacked over repetitions
            caches = tuple(jax.tree.map(lambda *a: jnp.stack(a), *caches[i::group]) for i in range(group))
        first = jnp.arange(self.repeats) * group
        layers = None if self.shared else state
        turn = min(self.unroll or self.repeats, self.repeats)
        x, kept = jax.lax.scan(self._checkpointed(body), x, (first, layers, caches), unroll=turn)
        if kept is not None:
            kept = tuple(jax.tree.map(lambda a, r=r: a[r], c) for r in range(self.repeats) for c in kept)
        return x, kept

    def _unroll(self, x, where, caches, key):
        graphdef, state = nnx.split(self.blocks)
        if self.repeats and not self.shared:  # a single repetition: drop the stacking dimension
            state = jax.tree.map(lambda a: a[0], state)

        def body(x, inputs):
            layer, cache = inputs
            return self._group(nnx.merge(graphdef, layer), 0, x, where, cache, key)

        return self._checkpointed(body)(x, (state, caches))

    def _checkpointed(self, body):
        if self.remat == "none":
            return body
        return jax.checkpoint(
            body, policy=REMAT_POLICIES[self.remat], prevent_cse=self.unroll != 1 or self.repeats <= 1
        )


@partial(jax.jit, static_argnums=0)
def _jitted_logits(graphdef: Any, state: Any, tokens: jax.Array) -> jax.Array:
    model = nnx.merge(graphdef, state)
    hidden, _ = model.hidden(tokens)
    out = model.logits(hidden)
    if out.shape[-1] == model.config.n_vocab:
        return out
    whole = model.layout.without("vocab").sharding(("batch", "sequence", "vocab"))
    return jax.reshard(out, whole)[..., : model.config.n_vocab]


def smallest_pattern(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """The shortest prefix that repeats to all of `kinds`."""
    for length in range(1, len(kinds) + 1):
        if len(kinds) % length == 0 and kinds[:length] * (len(kinds) // length) == kinds:
            return kinds[:length]
    return kinds
