"""The compiled half of generation: prefill a batch of prompts, then decode several tokens a call.

Prompts of one batch stand flush right, padded on the left, so that all rows have the same time: one slot of
the cache is written a step, and only `start` tells rows apart. Random numbers depend on the seed, the prompt,
the number of the sample and the number of the token, never on the batch, the chunk or the mesh.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from neojax.layout.mesh import Layout
from neojax.models import Transformer
from neojax.models.cache import Cache, delayed
from neojax.models.context import Context
from neojax.models.inference import BY_TIME, for_inference
from neojax.sampling.logits import Controls, next_token

# tokens of every prompt that are read in one pass: what a longer one needs beside its cache stays bounded
PREFILL = 512


class Asked(NamedTuple):
    """What is asked of each row; the first dimension of every array is batch. `limit`: at how many tokens to
    end; `ends`: the ids int32 [batch, ends] after which to end, -1 for none; `key`: uint32 [batch, 2];
    `controls`: how tokens are drawn."""

    limit: Any
    ends: Any
    key: Any
    controls: Controls


class Rows(NamedTuple):
    """What a batch of rows carries from step to step; the first dimension of every array is batch.

    `start`: the time of the row's first token; `token`: the newest one; `logprob`: its log-probability, as
    the model has it, before temperature and filters; `made`: tokens generated; `limit`: at how many of them
    to end; `key`: uint32 [batch, 2]; `present`: bool [batch, vocab], the tokens of the row so far.
    """

    start: jax.Array
    token: jax.Array
    logprob: jax.Array
    made: jax.Array
    asked: Asked
    present: jax.Array
    caches: tuple[Cache, ...]


class Decoder:
    """A model ready for generation, and the compiled functions over it. Prefill and decoding use the same
    weights, in the form of `models.inference`; a model that has not that form is converted first."""

    def __init__(self, model: Transformer):
        form = for_inference(model)
        self.layout = whole = form.layout.without(*BY_TIME)
        self.config = form.config
        self._model = nnx.split(Transformer(form.config, whole, form.compute).bind(form.params()))

    def prefill(
        self,
        prompts: np.ndarray,
        start: np.ndarray,
        source: np.ndarray,
        asked: Asked,
        slots: Mapping[str, int],
    ) -> Rows:
        """Reads prompts, the first part in a pass of its own and the rest in chunks, and draws a token for
        every row.

        prompts: int32 [prompts, sequence] with `start` pads at the left; source: int32 [batch], the prompt of
        each row; slots: the length of the cache for each attention type.
        """
        with self.layout.in_force():
            length, starts = prompts.shape[1], self.layout.put(start, "batch")

            def tokens(first: int, last: int) -> jax.Array:
                return self.layout.put(prompts[:, first:last], "batch", "sequence")

            first = length - (length - 1) // PREFILL * PREFILL
            hidden, caches = _read(*self._model, tokens(0, first), starts, tuple(sorted(slots.items())))
            for time in range(first, length, PREFILL):
                now = self.layout.put(np.array(time, np.int32))
                hidden, caches = _read_on(*self._model, tokens(time, time + PREFILL), starts, now, caches)
            return _begin(
                *self._model,
                hidden,
                caches,
                starts,
                self.layout.put(self._present(prompts, start), "batch", ""),
                self.layout.put(source, "batch"),
                jax.tree.map(lambda a: self.layout.put(a, "batch", *[""] * (a.ndim - 1)), asked),
            )

    def decode(
        self, rows: Rows, time: int, done: np.ndarray, steps: int
    ) -> tuple[jax.Array, jax.Array, Rows]:
        """Up to `steps` more tokens for every row that is not `done`; `time` is that of the rows' newest
        token.

        A row ends by itself after a token of its `ends` or at its limit. Returns int32 [batch, steps], -1
        after the end of a row, their log-probabilities, and the rows, whose buffers take the place of those
        given.
        """
        with self.layout.in_force():
            return _decode(
                *self._model,
                rows,
                self.layout.put(np.array(time, np.int32)),
                self.layout.put(done, "batch"),
                steps,
            )

    def _present(self, prompts: np.ndarray, start: np.ndarray) -> np.ndarray:
        """bool [prompts, vocab]: the tokens of each prompt."""
        present = np.zeros((len(prompts), self.layout.padded_vocab(self.config.n_vocab)), bool)
        for row, prompt, first in zip(present, prompts, start):
            row[prompt[first:]] = True
        return present

    def take(self, rows: Rows, which: np.ndarray) -> Rows:
        """The rows number `which` int32 [new batch]."""
        with self.layout.in_force():
            return _take_rows(rows, self.layout.put(which, "batch"))

    def delay(self, rows: Rows, by: int) -> Rows:
        """The rows `by` later on their clock, as if their prompts had stood so much farther to the right."""
        with self.layout.in_force():
            return _delay(rows, self.layout.put(np.array(by, np.int32)), self.config.attention_layers)

    def merge(self, rows: Rows, others: Rows, old: np.ndarray, new: np.ndarray) -> Rows:
        """A batch of row number `old` of `rows` or, where it is not negative, number `new` of `others`; both
        are of the same time, `old` and `new` int32 [new batch]."""
        with self.layout.in_force():
            return _merge(rows, others, self.layout.put(old, "batch"), self.layout.put(new, "batch"))


@partial(jax.jit, static_argnames=("graphdef", "slots"))
def _read(
    graphdef: Any, state: Any, tokens: jax.Array, start: jax.Array, slots: tuple[tuple[str, int], ...]
) -> tuple[jax.Array, tuple[Cache, ...]]:
    """The first tokens of prompts: the last hidden state [batch, 1, embd] and the caches."""
    hidden, caches, _ = nnx.merge(graphdef, state).hidden(tokens, Context(start, slots=dict(slots)))
    return hidden[:, -1:], caches


@partial(jax.jit, static_argnames="graphdef", donate_argnames="caches")
def _read_on(
    graphdef: Any, state: Any, tokens: jax.Array, start: jax.Array, time: jax.Array, caches: tuple[Cache, ...]
) -> tuple[jax.Array, tuple[Cache, ...]]:
    """As `_read`, for tokens from `time` on."""
    hidden, caches, _ = nnx.merge(graphdef, state).hidden(tokens, Context(start, time), caches)
    return hidden[:, -1:], caches


@partial(jax.jit, static_argnames="graphdef")
def _begin(
    graphdef: Any,
    state: Any,
    hidden: jax.Array,
    caches: tuple[Cache, ...],
    start: jax.Array,
    present: jax.Array,
    source: jax.Array,
    asked: Asked,
) -> Rows:
    """The rows of prompts that have been read, with their first tokens."""
    model = nnx.merge(graphdef, state)
    logits = _last_logits(model, hidden)
    start, logits, present, caches = _gather((start, logits, present, caches), source)
    count = jnp.zeros_like(asked.limit)
    token, logprob, present = _draw(model.layout, logits, present, count, asked)
    return Rows(start, token, logprob, count + 1, asked, present, caches)


@partial(jax.jit, static_argnames=("graphdef", "steps"), donate_argnames="rows")
def _decode(
    graphdef: Any,
    state: Any,
    rows: Rows,
    time: jax.Array,
    done: jax.Array,
    steps: int,
) -> tuple[jax.Array, jax.Array, Rows]:
    model = nnx.merge(graphdef, state)

    def unfinished(carry):
        step, _, done, *_ = carry
        return (step < steps) & ~jnp.all(done)

    def forward(carry):
        step, rows, done, out, logprobs = carry
        context = Context(rows.start, time + step)
        hidden, caches, _ = model.hidden(rows.token[:, None], context, rows.caches)
        logits = _last_logits(model, hidden)
        token, logprob, present = _draw(model.layout, logits, rows.present, rows.made, rows.asked)
        made = jnp.where(done, rows.made, rows.made + 1)
        now = (jnp.arange(steps) == step) & ~done[:, None]
        out, logprobs = jnp.where(now, token[:, None], out), jnp.where(now, logprob[:, None], logprobs)
        done = done | jnp.any(token[:, None] == rows.asked.ends, axis=-1) | (made >= rows.asked.limit)
        rows = rows._replace(token=token, logprob=logprob, made=made, present=present, caches=caches)
        return step + 1, rows, done, out, logprobs

    shape, wide = (done.shape[0], steps), model.layout.sharding(["batch", ""])
    out = jnp.full(shape, -1, jnp.int32, out_sharding=wide)
    logprobs = jnp.zeros(shape, jnp.float32, out_sharding=wide)
    carry = jnp.zeros_like(time), rows, done, out, logprobs
    _, rows, _, out, logprobs = jax.lax.while_loop(unfinished, forward, carry)
    return out, logprobs, rows


@jax.jit
def _take_rows(rows: Rows, which: jax.Array) -> Rows:
    return _gather(rows, which)


@partial(jax.jit, static_argnames="kinds", donate_argnames="rows")
def _delay(rows: Rows, by: jax.Array, kinds: tuple[str, ...]) -> Rows:
    caches = tuple(
        delayed(cache, by) if kind in ("global", "local") else cache  # type: ignore[arg-type]
        for kind, cache in zip(kinds, rows.caches)
    )
    return rows._replace(start=rows.start + by, caches=caches)


@jax.jit
def _merge(rows: Rows, others: Rows, old: jax.Array, new: jax.Array) -> Rows:
    def chosen(a: jax.Array, b: jax.Array) -> jax.Array:
        if a.ndim == 2 and a.shape[1] != b.shape[1]:  # the ends, of which some row has more
            width = max(a.shape[1], b.shape[1])
            a, b = (jnp.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=-1) for x in (a, b))
        a, b = _gather(a, old), _gather(b, jnp.maximum(new, 0))
        is_new = jnp.expand_dims(new >= 0, tuple(range(1, a.ndim)))
        return jnp.where(jax.reshard(jnp.broadcast_to(is_new, a.shape), jax.typeof(a).sharding), b, a)

    return jax.tree.map(chosen, rows, others)


def _gather(tree: Any, rows: jax.Array) -> Any:
    """Rows of every array of `tree`, each in the layout it has."""
    return jax.tree.map(lambda a: a.at[rows].get(out_sharding=jax.typeof(a).sharding), tree)


def _last_logits(model: Transformer, hidden: jax.Array) -> jax.Array:
    """float32 [batch, vocab] after the last token, with a whole vocabulary on every device of a row."""
    logits = model.logits(hidden[:, -1:])[:, 0]
    return jax.reshard(logits, model.layout.without("vocab").sharding(["batch", "vocab"]))


def _draw(
    layout: Layout,
    logits: jax.Array,
    present: jax.Array,
    count: jax.Array,
    asked: Asked,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The next token of every row, each device drawing for its own rows, its log-probability in the model,
    and the marks with it."""

    def draw(logits, present, key, count, controls):
        keys = jax.random.wrap_key_data(key, impl="threefry2x32")
        token = next_token(logits, present, jax.vmap(jax.random.fold_in)(keys, count), controls)
        place = jnp.arange(token.shape[0]), token
        logprob = logits[place] - jax.nn.logsumexp(logits, axis=-1)
        return token, logprob, present.at[place].set(True)

    row = layout.spec(["batch"])
    wide = jax.P(*row, None)
    return jax.shard_map(
        draw,
        mesh=layout.mesh,
        in_specs=(wide, wide, wide, row, row),
        out_specs=(row, row, wide),
        check_vma=False,  # inside, loops start from constants, which vary over no axis
    )(logits, present, asked.key, count, asked.controls)
