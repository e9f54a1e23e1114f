"""The likeliest tokens in the place of masks: what a model that was trained on masked tokens is asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from neojax.arguments import whole, wrong
from neojax.errors import NeojaxError
from neojax.layout import named
from neojax.models import Transformer
from neojax.models.context import Context
from neojax.sampling.batching import bucket, power_of_two, rounded
from neojax.sampling.requests import listed, tokenizer_of

MASK = "[MASK]"
"""How a mask is written in a text, whatever the tokenizer calls it."""
TOKENS = 4096  # of texts that are read at once, so that activations stay bounded


@dataclass(frozen=True)
class Filling:
    """A token in the place of a mask: its id, its `text` (None without a tokenizer), its `probability` among
    all tokens, and the whole text `filled` with it, and with the likeliest tokens in the places of other
    masks (token ids without a tokenizer)."""

    token: int
    text: str | None
    probability: float
    filled: str | list[int]


@dataclass(frozen=True)
class Filled:
    """A `text` as it was given, and for each of its `masks`, in order, the likeliest tokens first."""

    text: str | list[int]
    masks: list[list[Filling]]


def fill_mask(model: Transformer, texts: Any, *, top_k: int = 5) -> Any:
    """The `top_k` likeliest tokens in the place of every mask of `texts`: a text or a list of token ids
    (which needs no tokenizer), or a list of such.

    A mask is written [MASK], or as the model's tokenizer writes it; in ids it is the model's
    `mask_token_id`. Each mask is filled as if the others stayed. Texts of encoders are framed by the special
    tokens of their tokenizer, as the fill-mask pipeline of transformers does; those of other models begin as
    their rows did in training. Returns a `Filled` for one text, else a list. Raises `NeojaxError`, also for a
    model that was not trained on masked tokens, a text without a mask, and one longer than the context.
    """
    mask = check_masked(model)
    given, single = listed(texts, model.config.n_vocab, "text")
    top_k = whole("top_k", top_k, lambda n: 1 <= n <= model.config.n_vocab, "1 to the size of the vocabulary")
    rows = [_row(model, text, mask, f"text {number}") for number, text in enumerate(given, start=1)]
    with model.layout.in_force() as is_free:
        if not is_free:
            raise NeojaxError("fill_mask runs by itself: call it outside of jax.jit and its like")
        found = _run(model, rows, mask)
    filled = [_filled(model, *each, top_k) for each in zip(given, rows, found, strict=True)]
    return filled[0] if single else filled


def check_masked(model: Any) -> int:
    """The mask token of `model`. Raises `NeojaxError` where it is not one that fills masks."""
    if not isinstance(model, Transformer):
        raise wrong("model", model, "a model, as neojax.load gives it")
    model.check_bound()
    if model.config.causal:
        raise NeojaxError(
            "model.causal is true: a model trained to continue texts sees nothing behind a mask and cannot "
            "fill it; use neojax sample, or a model trained on masked tokens"
        )
    if not {"lm", "mlm"} & set(model.config.head.kinds):
        raise NeojaxError(
            f"model.head.kinds={list(model.config.head.kinds)} has no mlm: this model does not tell masked "
            "tokens; load one with that head"
        )
    if model.mask_token_id is None:
        raise NeojaxError(
            "the model has no mask token: neither its run (train.mlm_mask_id) nor its tokenizer names one"
        )
    return model.mask_token_id


@dataclass(frozen=True)
class _Row:
    """The `tokens` that a model reads, the places of the `masks` in them, and what begins and ends them that
    is not of the text: so many tokens `before` and `after`."""

    tokens: list[int]
    masks: list[int]
    before: int = 0
    after: int = 0


def _row(model: Transformer, text: str | list[int], mask: int, name: str) -> _Row:
    before = after = 0
    if isinstance(text, list):
        tokens = list(text)
    elif "mlm" in model.config.head.kinds:
        tokenizer = tokenizer_of(model, "text")
        own = tokenizer.id_to_token(mask)
        found = tokenizer.encode(text.replace(MASK, own) if own else text)
        real = [place for place, special in enumerate(found.special_tokens_mask) if not special]
        at = [place for place, token in enumerate(found.ids) if token == mask]
        inside = [*real, *at] or [0]
        tokens, before, after = found.ids, min(inside), len(found.ids) - 1 - max(inside)
    else:
        tokens, before = [*model.first_tokens, *_joined(model, text, mask)], len(model.first_tokens)
    masks = [place for place, token in enumerate(tokens) if token == mask]
    if not masks:
        how = f"the mask token {mask}" if isinstance(text, list) else MASK
        raise NeojaxError(f"{name} has no mask; write {how} in the place of the token that is to be told")
    if len(tokens) > model.config.n_ctx:
        raise NeojaxError(
            f"{name} has {len(tokens)} tokens, more than the context of {model.config.n_ctx}; shorten it"
        )
    return _Row(tokens, masks, before, after)


def _joined(model: Transformer, text: str, mask: int) -> list[int]:
    """The tokens of a text, encoded between its masks as documents are for training. The blank before a mask
    goes with it, as it does with a word."""
    tokenizer = tokenizer_of(model, "text")
    own = tokenizer.id_to_token(mask)
    parts = (text.replace(own, MASK) if own else text).split(MASK)
    tokens: list[int] = []
    for number, part in enumerate(parts):
        if number:
            tokens.append(mask)
        part = part.removesuffix(" ") if number < len(parts) - 1 else part
        tokens += tokenizer.encode(part, add_special_tokens=False).ids
    return tokens


def _run(model: Transformer, rows: Sequence[_Row], mask: int) -> list[np.ndarray]:
    """The logarithms of the probabilities of all tokens, float32 [masks, n_vocab], for each of `rows`."""
    layout, n_ctx = model.layout, model.config.n_ctx
    parts = layout.split("batch")
    even = layout.row_multiple
    # Linear attention sums over the whole row, which therefore has no padding.
    is_padded = "linear" not in model.config.attention_layers
    graphdef, state = model.halves()
    found: list[np.ndarray] = [np.zeros(0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].tokens))
    while order:
        longest = len(rows[order[0]].tokens)
        length = min(n_ctx, -(-bucket(longest) // even) * even) if is_padded else longest
        most = parts * max(1, power_of_two(TOKENS // length + 1) // 2)
        batch = [i for i in order[:most] if is_padded or len(rows[i].tokens) == longest]
        order = [i for i in order if i not in batch]
        tokens = np.full((rounded(len(batch), parts), length), mask, np.int32)
        segments = np.zeros_like(tokens)
        count = -(-power_of_two(max(len(rows[i].masks) for i in batch)) // even) * even
        at = np.full((len(tokens), count), -1, np.int32)
        for row, i in enumerate(batch):
            own = rows[i]
            tokens[row, : len(own.tokens)], segments[row, : len(own.tokens)] = own.tokens, 1
            at[row, : len(own.masks)] = own.masks
        read = (layout.put(a, "batch", "sequence") for a in (tokens, segments))
        logprobs = layout.fetch(_logprobs(graphdef, state, *read, layout.put(at, "batch", ""), is_padded))
        for row, i in enumerate(batch):
            found[i] = logprobs[row, : len(rows[i].masks), : model.config.n_vocab]
    return found


@partial(jax.jit, static_argnums=(0, 5))
def _logprobs(
    graphdef: Any, state: Any, tokens: jax.Array, segments: jax.Array, at: jax.Array, is_padded: bool
) -> jax.Array:
    """float32 [batch, masks, vocab] at the places `at` [batch, masks] of tokens [batch, sequence]."""
    model = nnx.merge(graphdef, state)
    hidden, _, _ = model.hidden(tokens, Context(segments=segments if is_padded else None))
    with model.names_in_force():
        places = named.lay(at, "batch slots")[:, :, None] == np.arange(tokens.shape[1])
        picked = named.einsum(
            "batch slots sequence, batch sequence embd -> batch slots embd",
            named.lay(places.astype(hidden.dtype), "batch slots sequence"),
            hidden,
        )
        picked = named.lay(picked, "batch sequence embd")
    logits = jax.reshard(model.logits(picked), model.layout.sharding(("batch", "", "")))
    return jax.nn.log_softmax(logits, axis=-1)


def _filled(model: Transformer, text: str | list[int], row: _Row, logprobs: np.ndarray, top_k: int) -> Filled:
    order = np.argsort(-logprobs, axis=-1, kind="stable")[:, :top_k]
    best = list(row.tokens)
    for place, tokens in zip(row.masks, order):
        best[place] = int(tokens[0])
    tokenizer = None if isinstance(text, list) else model.tokenizer

    def filling(place: int, token: int, logprob: float) -> Filling:
        whole = [*best[:place], token, *best[place + 1 :]][row.before : len(best) - row.after]
        words = None if tokenizer is None else tokenizer.decode([token], skip_special_tokens=False)
        done = whole if tokenizer is None else tokenizer.decode(whole, skip_special_tokens=False)
        return Filling(token, words, float(np.exp(logprob)), done)

    return Filled(
        text,
        [
            [filling(place, int(token), own[token]) for token in tokens]
            for place, tokens, own in zip(row.masks, order, logprobs)
        ],
    )
