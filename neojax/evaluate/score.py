"""The log-probability of every token of texts, many in a row and without whole logits."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from neojax.data.batch import Batch
from neojax.errors import NeojaxError
from neojax.evaluate.packing import packed
from neojax.evaluate.windows import Window, disjoint
from neojax.models import Transformer
from neojax.sampling.requests import encode, listed, start_token, tokenizer_of, usable


@dataclass(frozen=True, eq=False)
class Score:
    """What a model thinks of one text: for each of its `tokens` int32 [n], `logprobs` float32 [n], the
    natural logarithm of its probability after all that stands before it, and `is_greedy` bool [n], whether it
    is the likeliest there (of equally likely ones the first). `text` and `context` are what was given."""

    text: str | list[int]
    context: str | list[int]
    tokens: np.ndarray
    logprobs: np.ndarray
    is_greedy: np.ndarray

    @property
    def logprob(self) -> float:
        """The log-probability of the whole text after its context in nats, summed in float64; 0 for an empty
        text."""
        return float(np.sum(self.logprobs, dtype=np.float64))


def score(model: Transformer, texts: Any, contexts: Any = "") -> Any:
    """The log-probabilities of the tokens of `texts`: a text or a list of token ids (which needs no
    tokenizer), or a list of such; arrays of ids, too.

    contexts: what stands before the texts and is not scored, in the same forms: one for every text, or one
    for all (and a text may be one for all contexts). Without one, the model's end-of-document token stands
    before a text, as between documents in training, or what all its texts begin with, as Llama's with <s>. A
    text is encoded together with the text before it; a token across the border is scored.

    The model sees n_ctx tokens at most. A text is scored in pieces of n_ctx tokens, each after as many tokens
    before it as there is room for: one before a whole piece, more before the last. So every token is scored
    once, a text that fits is scored after all of its context or (with a warning) the end of it, and the
    pieces are the disjoint windows of lm-evaluation-harness, for rolling likelihoods as for continuations. On
    a mesh that splits the batch, its parts work side by side; neither they nor the other texts, of which
    several share a row and what they begin with is read once (`evaluate.packing`), change a score beyond
    rounding.

    Returns a `Score` for one text, else a list of them in the order of `texts`. Raises `NeojaxError`, also
    for a model trained on masked tokens, which has no such probabilities.
    """
    usable(model, "score a text token by token")
    given, single = listed(texts, model.config.n_vocab, "text")
    before, same = listed(contexts, model.config.n_vocab, "context")
    many = max(len(given), len(before))
    if not all(len(some) == many or alone for some, alone in ((given, single), (before, same))):
        raise NeojaxError(
            f"there are {len(given)} texts and {len(before)} contexts; give one context for every text, or "
            "one for all"
        )
    given, before = given * many if single else given, before * many if same else before
    pairs = [_pair(model, i + 1, *pair) for i, pair in enumerate(zip(before, given))]
    n_ctx = model.config.n_ctx
    _tell_cut(pairs, n_ctx)
    windows = [disjoint(*pair, n_ctx) for pair in pairs]
    found = iter(score_windows(model, [window for own in windows for window in own]))
    scores = []
    for text, context, (_, tokens), own in zip(given, before, pairs, windows):
        logprobs, greedy = map(np.concatenate, zip(_NONE, *(next(found) for _ in own)))
        scores.append(Score(text, context, np.array(tokens, np.int32), logprobs, greedy))
    return scores[0] if single and same else scores


_NONE = np.zeros(0, np.float32), np.zeros(0, bool)


def score_windows(model: Transformer, windows: Sequence[Window]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(log-probabilities float32, whether each is the likeliest) of the scored tokens of every window, in
    order. A window has at most n_ctx + 1 tokens, of which all but the last are read. Raises `NeojaxError`
    within `jax.jit`."""
    with model.layout.in_force() as is_free:
        if not is_free:
            raise NeojaxError("score runs by itself: call it outside of jax.jit and its like")
        return _run(model, windows)


def _pair(
    model: Transformer, number: int, context: str | list[int], text: str | list[int]
) -> tuple[list[int], list[int]]:
    """The tokens of a context, at least one, and of the text after it."""
    if isinstance(context, str) and isinstance(text, str) and context and text:
        both = tokenizer_of(model, "text").encode(context + text, add_special_tokens=False)
        border = sum(end <= len(context) for _, end in both.offsets)
        before, tokens = [*model.first_tokens, *both.ids[:border]], both.ids[border:]
    else:
        before, tokens = encode(model, context, "context"), encode(model, text, "text", begins=False)
    if not before:
        mend = "; give contexts, such as the first token of a text, and texts without it"
        before = [start_token(model, f"nothing stands before text {number}", mend)]
    return before, tokens


def _tell_cut(pairs: Sequence[tuple[list[int], list[int]]], n_ctx: int) -> None:
    """Warns of contexts that lose their first tokens, since all of the text does not fit behind them."""
    cut = [i for i, (context, tokens) in enumerate(pairs) if tokens and _missing(context, tokens, n_ctx)]
    if cut:
        others = f" ({len(cut) - 1} more are too long as well)" if len(cut) > 1 else ""
        context, tokens = pairs[cut[0]]
        warnings.warn(
            f"context {cut[0] + 1} has {len(context)} tokens{others}; its last "
            f"{max(1, n_ctx + 1 - len(tokens))} are used, since context and text share {n_ctx} positions",
            stacklevel=3,
        )


def _missing(context: Sequence[int], tokens: Sequence[int], n_ctx: int) -> bool:
    """Whether the first window leaves tokens of the context out."""
    return len(context) + min(n_ctx, len(tokens)) > n_ctx + 1


def _run(model: Transformer, windows: Sequence[Window]) -> list[tuple[np.ndarray, np.ndarray]]:
    layout, config = model.layout, model.config
    graphdef_and_state = model.halves()
    even = layout.row_multiple
    shares = (  # linear attention keeps one sum, and rows that are split go round without trees
        "linear" not in config.attention_layers
        and model.compute.attention_kernel in ("auto", "xla")
        and even == 1
    )
    found: list[tuple[np.ndarray, np.ndarray]] = [_NONE] * len(windows)
    for batch, at, parts in packed(windows, config.n_ctx, layout.split("batch"), even, shares=shares):
        laid = jax.tree.map(lambda x: layout.put(x, "batch", "sequence"), batch._replace(targets=None))
        dim = "sequence" if at is None else "scored"
        targets, places = (x if x is None else layout.put(x, "batch", dim) for x in (batch.targets, at))
        scores = _scores(*graphdef_and_state, laid._replace(targets=targets), places)
        logprobs, greedy = map(layout.fetch, scores)
        for part in parts:
            found[part.window] = logprobs[part.row, part.at], greedy[part.row, part.at]
    return found


@partial(jax.jit, static_argnums=0)
def _scores(
    graphdef: Any, state: Any, batch: Batch, at: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    return nnx.merge(graphdef, state).token_scores(batch, at)
