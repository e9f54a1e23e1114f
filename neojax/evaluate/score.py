"""The log-probability of every token of texts, in batches of like length and without whole logits."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from neojax.data.batch import NOT_SCORED, Batch
from neojax.errors import NeojaxError
from neojax.evaluate.windows import Window, disjoint
from neojax.models import Transformer
from neojax.sampling.batching import bucket, power_of_two, rounded
from neojax.sampling.requests import encode, listed, start_token, tokenizer_of, usable

BATCH = 64  # rows scored at once at most, in every part of a split batch,
TOKENS = 1 << 14  # and their tokens at most, so that activations stay bounded
FEW = 16  # places for what is scored of a row, at least: few programs serve all


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
    a mesh that splits the batch, its parts work side by side; neither they nor the other texts change a score
    beyond rounding.

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


class _Row(NamedTuple):
    """Tokens that are read, and what is scored of them: `targets`, each after the token at its position
    (`at`). `parts` says which of these are whose: (window, first, number)."""

    tokens: list[int]
    at: list[int]
    targets: list[int]
    parts: list[tuple[int, int, int]]


def _rows(windows: Sequence[Window]) -> list[_Row]:
    """The rows that windows are read in. What is read of one may be how another begins, as where both
    continue one context by a token; such are read together, since no token sees those behind it."""
    # In this order what begins another row stands right before one that it begins.
    order = sorted((i for i, w in enumerate(windows) if w.scored), key=lambda i: windows[i].tokens[:-1])
    rows: list[_Row] = []
    for i in reversed(order):
        tokens, scored = windows[i]
        read = tokens[:-1]
        if not (rows and rows[-1].tokens[: len(read)] == read):
            rows.append(_Row(read, [], [], []))
        row = rows[-1]
        row.parts.append((i, len(row.at), scored))
        row.at.extend(range(len(read) - scored, len(read)))
        row.targets.extend(tokens[len(tokens) - scored :])
    return rows


def _alike(rows: Sequence[_Row], length: int, parts: int) -> int:
    """How many of `rows`, the longest first, are read at once at `length`: those that are not half padding,
    and so many that rows of padding are few as well."""
    count = max(1, sum(2 * bucket(len(row.tokens)) > length for row in rows))
    height = rounded(count, parts)
    return height // 2 if count < 0.75 * height and height > parts else count


def _run(model: Transformer, windows: Sequence[Window]) -> list[tuple[np.ndarray, np.ndarray]]:
    layout, n_ctx = model.layout, model.config.n_ctx
    parts, graphdef_and_state = layout.split("batch"), model.halves()
    even = math.lcm(layout.split("sequence"), layout.split("memory_length"))
    found: list[tuple[np.ndarray, np.ndarray]] = [_NONE] * len(windows)
    # Rows of like length together, so that little is padded; the longest first, which need most memory.
    rows = sorted(_rows(windows), key=lambda row: -len(row.tokens))
    while rows:
        longest = bucket(len(rows[0].tokens))
        length = min(n_ctx, -(-longest // even) * even)
        most = parts * min(BATCH, power_of_two(max(1, TOKENS // length) + 1) // 2)
        alike = _alike(rows[:most], length, parts)
        batch, rows = rows[:alike], rows[alike:]
        count = max(FEW, power_of_two(max(len(row.at) for row in batch)))
        count = -(-count // even) * even
        # Where most of a row is scored, all positions are: nothing is moved, and a split sequence stays so.
        each = 2 * count > length and all(len(set(row.at)) == len(row.at) for row in batch)
        height = rounded(len(batch), parts)
        inputs = np.zeros((height, length), np.int32)
        at = np.zeros((height, length if each else count), np.int32)
        targets = np.full_like(at, NOT_SCORED)
        for number, row in enumerate(batch):
            inputs[number, : len(row.tokens)] = row.tokens
            at[number, : len(row.at)] = row.at
            targets[number, row.at if each else slice(len(row.at))] = row.targets
        tokens = layout.put(inputs, "batch", "sequence")
        if each:
            scores = _scores(*graphdef_and_state, tokens, layout.put(targets, "batch", "sequence"))
        else:
            picked = (layout.put(array, "batch", "scored") for array in (targets, at))
            scores = _scores(*graphdef_and_state, tokens, *picked)
        logprobs, greedy = map(layout.fetch, scores)
        for number, row in enumerate(batch):
            for window, first, size in row.parts:
                own = row.at[first : first + size] if each else slice(first, first + size)
                found[window] = logprobs[number, own], greedy[number, own]
    return found


@partial(jax.jit, static_argnums=0)
def _scores(
    graphdef: Any, state: Any, inputs: jax.Array, targets: jax.Array, at: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    return nnx.merge(graphdef, state).token_scores(Batch(inputs, targets), at)
