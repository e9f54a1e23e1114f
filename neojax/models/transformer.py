"""The one Flax module: an embedding, a stack of blocks and a head, which a family of models puts together."""

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
from neojax.data.batch import Batch
from neojax.errors import NeojaxError, suggest
from neojax.layout import named
from neojax.layout.mesh import Layout, single_device
from neojax.layout.named import Param
from neojax.models.compute import Compute
from neojax.models.context import Context
from neojax.models.families import family
from neojax.models.initial import initial
from neojax.models.losses import Losses, Sums
from neojax.models.stack import Caches


class Transformer(nnx.Module):
    """The language model: training, scoring, prefill and decode share it.

    A new instance is abstract: it has names, dimensions and shapes but no values until `init` or `bind` gives
    them. The name of a parameter is its path within the part of the model that it belongs to, such as
    `blocks.0.attn.query` in the stack. `tokenizer` (a `tokenizers.Tokenizer`) and `eos_token_id` travel with
    a model that was loaded.
    """

    def __init__(self, config: ModelConfig, layout: Layout | None = None, compute: Compute | None = None):
        self.tokenizer: Any = None
        self.eos_token_id: int | None = None
        self.config = config
        layout = layout or single_device()
        if config.kv_heads < config.attention.heads:
            layout = layout.following("kv_heads", "heads", config.kv_heads)
        self.layout = layout
        self.compute = compute = compute or Compute()
        sizes = {
            "vocab": layout.padded_vocab(config.n_vocab),
            "positions": config.n_ctx,
            "embd": config.n_embd,
            "heads": config.attention.heads,
            "kv_heads": config.kv_heads,
            "head_dim": config.head_dim,
            "mlp": config.mlp_dim,
            "memory_slots": config.attention.memory_slots,
        }
        self.embedding, self.stack, self.head = family(config.family).build(config, sizes, compute)

    # Parameters in, parameters out

    def paths(self) -> list[tuple[tuple[Any, ...], Param]]:
        """Every parameter with its path within embedding, stack or head, in a fixed order."""
        found: list[Any] = [
            (path[1:], param) for path, param in nnx.to_flat_state(nnx.state(self, nnx.Param))
        ]
        return sorted(found, key=lambda entry: entry[0])

    def named_params(self) -> Iterator[tuple[str, Param]]:
        """Every parameter with its name, such as ``blocks.0.attn.query``, in a fixed order."""
        for path, param in self.paths():
            yield _name(path), param

    def params(self) -> dict[str, Any]:
        """Name -> value (an array, or a `jax.ShapeDtypeStruct` while the model is abstract)."""
        return {name: param.get_value() for name, param in self.named_params()}

    def dims(self) -> dict[str, tuple[str, ...]]:
        """Name -> dimension names."""
        return {name: param.dims for name, param in self.named_params()}

    def stored(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Name -> shape, type and stored layout. Raises `NeojaxError` where a parameter cannot be laid
        out."""
        specs = {}
        for name, param in self.named_params():
            shape = param.get_value().shape
            self.layout.spec(param.dims, shape, what=f"parameter {name}")
            sharding = self.layout.sharding(param.dims, shape, stored=True, what=f"parameter {name}")
            specs[name] = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
        return specs

    def bind(self, params: Mapping[str, Any]) -> "Transformer":
        """The same model with the values `params`, under the names of `params()`. Raises `NeojaxError` where
        one lacks."""
        for name, _ in self.named_params():
            if name not in params:
                raise NeojaxError(f"bind: there is no parameter {name}{suggest(name, params)}")
        graphdef, state = nnx.split(self)
        flat = [(path, param.replace(params[_name(path[1:])])) for path, param in nnx.to_flat_state(state)]
        return nnx.merge(graphdef, nnx.from_flat_state(flat))

    def init(self, seed: int = 0) -> "Transformer":
        """The model with initial weights in float32, in the stored layout; the same for every mesh."""
        specs = self.stored()

        @partial(jax.jit, out_shardings={name: spec.sharding for name, spec in specs.items()})
        def make(key: jax.Array) -> dict[str, jax.Array]:
            values = {}
            for name, param in self.named_params():
                own = jax.random.fold_in(key, zlib.crc32(name.encode()))
                draw = initial(self.config, param.dims, param.init)
                value = draw(own, specs[name].shape, specs[name].sharding)
                if param.dims[:1] == ("vocab",):
                    # Rows that only pad the vocabulary are zero. Random bits depend on an element's place in
                    # the array alone, counted row by row, so that the true rows are what they are without
                    # padding.
                    true = jnp.arange(value.shape[0])[:, None] < self.config.n_vocab
                    value = jnp.where(true, value, 0.0)
                values[name] = value
            return values

        return self.bind(make(jax.random.key(seed)))

    def accompanied(self, tokenizer: Any, eos_token_id: int | None) -> "Transformer":
        """This model, which from now on has the tokenizer and the end-of-document token that were given."""
        self.tokenizer, self.eos_token_id = tokenizer, eos_token_id
        return self

    # Computation

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits of the next token: int32 [batch, sequence] -> float32 [batch, sequence, n_vocab].

        They are computed on the model's own mesh, whatever mesh is in force, and come as an array that
        ordinary JAX code takes (`Layout.ordinary`). Within `jax.jit` and its like they keep the model's
        layout, and no other mesh than the model's may be in force. Raises `NeojaxError` for tokens of another
        type or shape, more of them than n_ctx, or (where their values are known on this host, so not under
        `jax.jit`) ids beyond the vocabulary.
        """
        self.check_bound()
        tokens = token_ids(tokens, self.config.n_vocab, "tokens")
        if tokens.ndim != 2 or tokens.shape[1] > self.config.n_ctx:
            raise NeojaxError(
                f"tokens have shape {list(tokens.shape)}; expected [batch, sequence] with a sequence of at "
                f"most n_ctx={self.config.n_ctx} tokens"
            )
        with self.layout.in_force() as is_free:
            tokens = self.layout.entered(jnp.asarray(tokens, jnp.int32))
            logits = _jitted_logits(*self.halves(), tokens)
        return self.layout.ordinary(logits) if is_free else logits

    def halves(self) -> tuple[Any, Any]:
        """The model as (graphdef, state) for a compiled function, which does not depend on the tokenizer, nor
        does it keep it alive."""
        bare = copy.copy(self)
        vars(bare).update(tokenizer=None, eos_token_id=None)
        return nnx.split(bare)

    def check_bound(self) -> None:
        """Raises `NeojaxError` while the model is abstract."""
        if isinstance(self.embedding.wte.get_value(), jax.ShapeDtypeStruct):
            raise NeojaxError(
                "the model has no weights yet; use what model.init(seed) or model.bind(params) gives"
            )

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Final hidden states [batch, sequence, embd] -> float32 [batch, sequence, vocab], padding at
        -inf."""
        with self.names_in_force():
            return self.head.logits(hidden, self.embedding.wte)

    def loss(
        self,
        batch: Batch,
        *,
        z_loss: float = 0.0,
        entmax: bool = False,
        dropout_key: jax.Array | None = None,
    ) -> Losses:
        """The losses of a batch, whose arrays are [batch, sequence], and what the blocks reported."""
        hidden, _, sums = self.hidden(batch.tokens, _context(batch), dropout_key=dropout_key)
        with self.names_in_force():
            found = self.head.loss(hidden, self.embedding.wte, batch, z_loss=z_loss, entmax=entmax)
        return found.plus(sums)

    def token_scores(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """(log-probability of every target in nats, float32; whether it is the likeliest token), [batch,
        sequence]. Where nothing is scored the results mean nothing."""
        hidden, _, _ = self.hidden(batch.tokens, _context(batch))
        with self.names_in_force():
            return self.head.token_scores(hidden, self.embedding.wte, batch.targets)

    def hidden(
        self,
        tokens: jax.Array,
        context: Context | None = None,
        caches: Caches | None = None,
        *,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, Caches | None, Sums]:
        """Final hidden states [batch, sequence, embd] of tokens int32 [batch, sequence], the caches, and what
        the blocks added up (see `Stack`).

        Without `context`, tokens are whole rows. Prefill passes `Context(start, slots=...)` and gets a cache
        per layer; decode passes one token a row, `Context(start, time)` and the caches.
        """
        context = context or Context()
        if context.slots is not None and not self.config.causal:
            raise NeojaxError(
                "model.causal is false: a model trained on masked tokens sees both sides of a token and "
                "cannot continue a text; use its logits, model(tokens)"
            )
        keys = [None, None] if dropout_key is None else list(jax.random.split(dropout_key))
        with self.names_in_force():
            x = self.embedding(named.lay(tokens, "batch sequence"), context, keys[0])
            x, caches, sums = self.stack(x, context, caches, keys[1])
            return self.head.norm_f(x), caches, sums

    def names_in_force(self) -> Any:
        """Puts the model's layout in force for the named operations inside."""
        return named.use_layout(self.layout, self.compute.reduce_dtype)


def _context(batch: Batch) -> Context:
    return Context(segments=batch.segments, positions=batch.positions)


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


@partial(jax.jit, static_argnums=0)
def _jitted_logits(graphdef: Any, state: Any, tokens: jax.Array) -> jax.Array:
    model = nnx.merge(graphdef, state)
    hidden, _, _ = model.hidden(tokens)
    out = model.logits(hidden)
    if out.shape[-1] == model.config.n_vocab:
        return out
    whole = model.layout.without("vocab").sharding(("batch", "sequence", "vocab"))
    return jax.reshard(out, whole)[..., : model.config.n_vocab]
