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
from neojax.config import LoraConfig, ModelConfig
from neojax.data.batch import Batch
from neojax.errors import NeojaxError, suggest
from neojax.layout import named
from neojax.layout.mesh import Layout, single_device
from neojax.layout.named import Param
from neojax.models import pipeline
from neojax.models.adapters import Adapters
from neojax.models.compute import Compute
from neojax.models.context import Context
from neojax.models.families import family
from neojax.models.head import LanguageHead
from neojax.models.initial import initial
from neojax.models.losses import Losses, Sums
from neojax.models.stack import Caches

HEAD = 1 << 30  # sets the dropout of heads apart from that of what is before them


class Transformer(nnx.Module):
    """The language model: training, scoring, prefill and decode share it.

    A new instance is abstract: it has names, dimensions and shapes but no values until `init` or `bind` gives
    them. The name of a parameter is its path within the part of the model that it belongs to, such as
    `blocks.0.attn.query` in the stack. `tokenizer` (a `tokenizers.Tokenizer`), `eos_token_id` and
    `first_tokens`, which stand before every text (Llama's <s>), and `mask_token_id`, which stands for a token
    that is to be told, travel with a model that was loaded.

    With `lora` matrices have low-rank additions, which are further parameters (see `models.adapters`).
    """

    def __init__(
        self,
        config: ModelConfig,
        layout: Layout | None = None,
        compute: Compute | None = None,
        lora: LoraConfig | None = None,
    ):
        self.tokenizer: Any = None
        self.eos_token_id: int | None = None
        self.first_tokens: tuple[int, ...] = ()
        self.mask_token_id: int | None = None
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
            "token_embd": config.token_embd,
            "token_types": config.embedding.token_types,
            "heads": config.attention.heads,
            "kv_heads": config.kv_heads,
            "head_dim": config.head_dim,
            "mlp": config.mlp_dim,
            "experts": config.experts.number,
            "routes": config.experts.number,
            "expert_mlp": config.expert_dim,
            "memory_slots": config.attention.memory_slots,
        }
        kind = family(config.family)
        self.embedding, self.stack, self.head = kind.build(config, sizes, compute)
        if compute.stacked:
            run = self.stack.runs[0]
            pipeline.check(config, layout, compute, run.turn, run.repeats)
        self.adapters: Adapters | None = None
        if lora is not None and lora.rank:
            self.adapters = Adapters.of(lora, kind.hugging_face, self.dims())

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
        values = {name: param.get_value() for name, param in self.named_params()}
        return values if self.adapters is None else self.adapters.apart(values)

    def dims(self) -> dict[str, tuple[str, ...]]:
        """Name -> dimension names."""
        own = {name: param.dims for name, param in self.named_params()}
        return own if self.adapters is None else {**own, **self.adapters.dims(own)}

    def depths(self) -> dict[str, tuple[int, ...]]:
        """Name -> where a parameter stands: 0 in the embedding, n for the n-th layer (of a parameter of
        several, each of them along `layers`; where layers share weights, the n-th set of these), and in the
        head one more than the last layer."""
        below = {_name(path) for path, _ in nnx.to_flat_state(nnx.state(self.embedding, nnx.Param))}
        dims, shapes = self.dims(), {name: param.get_value().shape for name, param in self.named_params()}
        repeats = {name: shapes[name][0] for name in shapes if dims[name][:1] == ("layers",)}
        count = max(repeats.values(), default=1)
        sets = len(self.stack.blocks) * count
        found: dict[str, tuple[int, ...]] = {}
        for name, own in dims.items():
            first, *rest = name.split(".")
            if first != "blocks":
                found[name] = (0 if name in below else sets + 1,)
            else:
                turns = range(count if own[:1] == ("layers",) else 1)
                found[name] = tuple(1 + self.stack.layer(int(rest[0]), repeat) for repeat in turns)
        return found

    def stored(self) -> dict[str, Any]:
        """Name -> shape, type and stored layout. Raises `NeojaxError` where a parameter cannot be laid
        out."""
        specs = {}
        for name, param in self.named_params():
            shape = param.get_value().shape
            self.layout.spec(param.dims, shape, what=f"parameter {name}")
            sharding = self.layout.sharding(param.dims, shape, stored=True, what=f"parameter {name}")
            specs[name] = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
        return specs if self.adapters is None else self.adapters.stored(self.dims(), specs, self.layout)

    def bind(self, params: Mapping[str, Any]) -> "Transformer":
        """The same model with the values `params`, under the names of `params()`. Raises `NeojaxError` where
        one lacks."""
        for name in self.dims():
            if name not in params:
                raise NeojaxError(f"bind: there is no parameter {name}{suggest(name, params)}")
        values = params if self.adapters is None else self.adapters.joined(params)
        graphdef, state = nnx.split(self)
        flat = [(path, param.replace(values[_name(path[1:])])) for path, param in nnx.to_flat_state(state)]
        return nnx.merge(graphdef, nnx.from_flat_state(flat))

    @property
    def has_base(self) -> bool:
        """Whether most parameters only serve those that are trained, which a run keeps apart."""
        return self.adapters is not None

    def plain(self) -> "Transformer":
        """The abstract model without low-rank additions."""
        return Transformer(self.config, self.layout, self.compute)

    def init(self, seed: int = 0) -> "Transformer":
        """The model with initial weights in float32, in the stored layout; the same for every mesh."""
        if self.adapters is not None:
            return self.adapted(self.plain().init(seed).params(), seed)
        specs = self.stored()
        draws = {name: initial(self.config, param.dims, param.init) for name, param in self.named_params()}
        tables = [name for name, dims in self.dims().items() if dims[:1] == ("vocab",)]

        def drawn(key: jax.Array) -> dict[str, jax.Array]:
            values = _drawn(draws, specs, key)
            for name in tables:
                # Rows that only pad the vocabulary are zero. Random bits depend on an element's place in
                # the array alone, counted row by row, so that the true rows are what they are without
                # padding.
                true = jnp.arange(values[name].shape[0]) < self.config.n_vocab
                values[name] = jnp.where(true[:, None] if values[name].ndim > 1 else true, values[name], 0.0)
            return values

        shardings = {name: spec.sharding for name, spec in specs.items()}
        return self.bind(jax.jit(drawn, out_shardings=shardings)(jax.random.key(seed)))

    def adapted(self, own: dict[str, jax.Array], seed: int = 0) -> "Transformer":
        """The model with the values `own`, float32, of all but its low-rank additions, which begin as `seed`
        has them and change nothing yet. Those that are kept narrower are removed from `own` one by one."""
        assert self.adapters is not None
        dims, specs = self.dims(), self.stored()
        kept = {}
        for name in [name for name, _ in self.named_params()]:
            value = own.pop(name)
            kept[name] = jax.block_until_ready(self.adapters.narrowed(name, dims[name], value))
        fresh = {name: spec for name, spec in specs.items() if name not in kept}
        draws = {name: self.adapters.initial(name, dims[name], spec.shape) for name, spec in fresh.items()}
        shardings = {name: spec.sharding for name, spec in fresh.items()}
        draw = jax.jit(partial(_drawn, draws, fresh), out_shardings=shardings)
        return self.bind({**kept, **draw(jax.random.key(seed))})

    def accompanied(
        self,
        tokenizer: Any,
        eos_token_id: int | None,
        first_tokens: tuple[int, ...] = (),
        mask_token_id: int | None = None,
    ) -> "Transformer":
        """This model, which from now on has the tokenizer and the special tokens that were given."""
        self.tokenizer, self.eos_token_id = tokenizer, eos_token_id
        self.first_tokens, self.mask_token_id = first_tokens, mask_token_id
        return self

    # Computation

    def __call__(self, tokens: jax.Array, *, segments: Any = None, token_types: Any = None) -> jax.Array:
        """Logits of the model's head, the first where it has several: int32 [batch, sequence] -> float32, of
        a language model and of masked tokens [batch, sequence, n_vocab], of classifiers as
        `models.encoder_head` says.

        segments, token_types: int32, of the shape of `tokens`, as in `data.batch.Batch`: segments of 1 and 0
        are a mask of attention, 0 for padding; token types are for models that have such. Of a model with the
        head multiple_choice, tokens are [batch, choices, sequence].

        They are computed on the model's own mesh, whatever mesh is in force, and come as an array that
        ordinary JAX code takes (`Layout.ordinary`). Within `jax.jit` and its like they keep the model's
        layout, and no other mesh than the model's may be in force. Raises `NeojaxError` for tokens of another
        type or shape, more of them than n_ctx, or (where their values are known on this host, so not under
        `jax.jit`) ids beyond the vocabulary.
        """
        return self._computed(tokens, segments, token_types, only_logits=True)

    def outputs(
        self, tokens: jax.Array, *, segments: Any = None, token_types: Any = None
    ) -> dict[str, jax.Array]:
        """All that the model makes of `tokens`, float32, by name: the logits of each head by its kind (`lm`,
        `mlm`, `pair`, ...), `hidden` [batch, sequence, embd], the final hidden states, and `pooled` [batch,
        embd], where there is a pooler. Arguments and errors as in a call."""
        return self._computed(tokens, segments, token_types, only_logits=False)

    def _computed(self, tokens: Any, segments: Any, token_types: Any, *, only_logits: bool) -> Any:
        self.check_bound()
        kinds = self.config.head.kinds
        if only_logits and not kinds:
            raise NeojaxError(
                "model.head.kinds is empty: a model without a head has no logits; use model.outputs(tokens)"
            )
        tokens = token_ids(tokens, self.config.n_vocab, "tokens")
        dims = "batch choices sequence" if "multiple_choice" in kinds else "batch sequence"
        if tokens.ndim != len(dims.split()) or tokens.shape[-1] > self.config.n_ctx:
            raise NeojaxError(
                f"tokens have shape {list(tokens.shape)}; expected [{', '.join(dims.split())}] with a "
                f"sequence of at most n_ctx={self.config.n_ctx} tokens"
            )
        types = self.config.embedding.token_types
        if token_types is not None and not types:
            raise NeojaxError("token_types are given, but this model has none; leave them out")
        rows = {"tokens": tokens}
        for name, value, most in (("segments", segments, 2**31), ("token_types", token_types, types)):
            if value is not None:
                rows[name] = token_ids(value, most, name)
                if rows[name].shape != tokens.shape:
                    raise NeojaxError(
                        f"{name} have shape {list(rows[name].shape)}; expected that of the tokens, "
                        f"{list(tokens.shape)}"
                    )
        with self.layout.in_force() as is_free:
            rows = {name: self.layout.entered(jnp.asarray(x, jnp.int32)) for name, x in rows.items()}
            found = _jitted(*self.halves(), rows, only_logits)
        return jax.tree.map(self.layout.ordinary, found) if is_free else found

    def halves(self) -> tuple[Any, Any]:
        """The model as (graphdef, state) for a compiled function, which does not depend on the tokenizer, nor
        does it keep it alive."""
        bare = copy.copy(self)
        vars(bare).update(tokenizer=None, eos_token_id=None, first_tokens=(), mask_token_id=None)
        return nnx.split(bare)

    def check_bound(self) -> None:
        """Raises `NeojaxError` while the model is abstract."""
        if isinstance(self.embedding.wte.get_value(), jax.ShapeDtypeStruct):
            raise NeojaxError(
                "the model has no weights yet; use what model.init(seed) or model.bind(params) gives"
            )

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Final hidden states [batch, sequence, embd] -> the logits of the first head, float32; of a language
        model [batch, sequence, vocab], padding at -inf."""
        with self.names_in_force():
            return self.head.logits(hidden, self.embedding.wte)

    def scored(self, batch: Batch) -> dict[str, jax.Array]:
        """How much of a batch of any leading dimensions each objective scores, by the name of its loss (see
        `Losses.total`)."""
        return self.head.scored(batch)

    def loss(
        self,
        batch: Batch,
        *,
        z_loss: float = 0.0,
        entmax: bool = False,
        dropout_key: jax.Array | None = None,
    ) -> Losses:
        """The losses of a batch, whose arrays are as in `data.batch.Batch` without leading dimensions, and
        what the blocks reported."""
        flat = self.flat(batch)
        hidden, _, sums = self.hidden(flat.tokens, Context.of(flat), dropout_key=dropout_key)
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, HEAD)
        with self.names_in_force():
            found = self.head.loss(
                hidden, self.embedding.wte, flat, z_loss=z_loss, entmax=entmax, dropout_key=key
            )
        return found.plus(sums)

    @property
    def is_pipeline(self) -> bool:
        """Whether layers are split over the mesh, so that microbatches pass through stages together."""
        return self.compute.stacked and bool(self.layout.axes("layers"))

    def schedule(self, microbatches: int) -> pipeline.Schedule | None:
        """That of the pipeline, where there is one."""
        if not self.is_pipeline:
            return None
        return pipeline.Schedule(self.layout.split("layers"), self.compute.rounds, microbatches)

    def answered(self, batch: Batch) -> tuple[Sums, jax.Array]:
        """What `loss` reports of a batch, without dropout, and the logits of the first head."""
        flat = self.flat(batch)
        hidden, _, sums = self.hidden(flat.tokens, Context.of(flat))
        choices = flat.tokens.shape[0] // batch.tokens.shape[0]
        with self.names_in_force():
            found = self.head.loss(hidden, self.embedding.wte, flat)
            logits = self.head.outputs(hidden, self.embedding.wte, choices, flat.segments)
        return found.plus(sums).sums, logits[self.config.head.kinds[0]]

    def flat(self, batch: Batch) -> Batch:
        """`batch` with its choices one below the other, as rows [batch, sequence]."""
        if batch.tokens.ndim == 2:
            return batch

        def rows(x: jax.Array) -> jax.Array:
            x = named.lay(jnp.asarray(x), "batch choices sequence")
            shape = x.shape[0] * x.shape[1], x.shape[2]
            return jax.lax.reshape(x, shape, out_sharding=named.sharding("batch sequence"))

        with self.names_in_force():
            own = {n: rows(x) for n, x in batch._asdict().items() if x is not None and n != "labels"}
        return batch._replace(**own)

    def token_scores(self, batch: Batch, at: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """(log-probability of every target in nats, float32; whether it is the likeliest token), [batch,
        sequence]. Where nothing is scored the results mean nothing. With positions `at`, int32 [batch,
        scored], the targets are those of these positions and the results [batch, scored]: a position may have
        several, or none."""
        hidden, _, _ = self.hidden(batch.tokens, Context.of(batch))
        if not isinstance(self.head, LanguageHead):
            raise NeojaxError(f"a {self.config.family} has no probabilities of next tokens")
        with self.names_in_force():
            if at is not None:
                hidden = named.picked(hidden, at)
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

    def _unpadded(self, logits: jax.Array) -> jax.Array:
        """Logits of tokens without those that pad the vocabulary."""
        if logits.shape[-1] == self.config.n_vocab:
            return logits
        whole = self.layout.without("vocab").sharding(("batch", "sequence", "vocab"))
        return jax.reshard(logits, whole)[..., : self.config.n_vocab]

    def names_in_force(self) -> Any:
        """Puts the model's layout in force for the named operations inside."""
        return named.use_layout(self.layout, self.compute.reduce_dtype)


def _drawn(
    draws: Mapping[str, Any], specs: Mapping[str, jax.ShapeDtypeStruct], key: jax.Array
) -> dict[str, jax.Array]:
    """The parameters `specs`, each by its initialiser and bits of its own."""
    values = {}
    for name, spec in specs.items():
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        values[name] = draws[name](own, spec.shape, spec.sharding)
    return values


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


@partial(jax.jit, static_argnums=(0, 3))
def _jitted(graphdef: Any, state: Any, rows: dict[str, jax.Array], only_logits: bool) -> Any:
    """The logits of the first head, or all that `Transformer.outputs` gives."""
    model = nnx.merge(graphdef, state)
    batch = Batch(targets=rows["tokens"], **rows)
    flat = model.flat(batch)
    hidden, _, _ = model.hidden(flat.tokens, Context.of(flat))
    choices = flat.tokens.shape[0] // batch.tokens.shape[0]
    with model.names_in_force():
        found = model.head.outputs(hidden, model.embedding.wte, choices, flat.segments)
    for kind in {"lm", "mlm"} & found.keys():
        found[kind] = model._unpadded(found[kind])
    return (
        found[model.config.head.kinds[0]] if only_logits else {"hidden": hidden.astype(jnp.float32), **found}
    )
