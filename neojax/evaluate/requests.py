"""Continuations after contexts, encoded as lm-evaluation-harness does, and their log-likelihoods.

The harness's rule for the border (`TemplateLM._encode_pair`): blanks that end a context go to the
continuation, both are encoded together, and as many tokens belong to the context as it has by itself. Without
a context, the end-of-document token (or what begins every text) stands there.
"""

from collections.abc import Sequence

from neojax.data import tokenizer as tokenizers
from neojax.errors import NeojaxError
from neojax.evaluate.score import score_windows
from neojax.evaluate.windows import Window, disjoint
from neojax.models import Transformer
from neojax.sampling.requests import start_token, tokenizer_of


def prefix_token(model: Transformer) -> int:
    """What stands before a text that has no context. Raises `NeojaxError` where the model has none."""
    return model.first_tokens[0] if model.first_tokens else start_token(model, "a request has no context")


def encode(model: Transformer, texts: Sequence[str], begins: bool | None = None) -> list[list[int]]:
    """Token ids of texts, each after what begins every text unless it begins with that; `begins` says that
    all are to, or that none is."""
    tokenizer, first = tokenizer_of(model, "text"), list(model.first_tokens)
    own = tokenizer.decode(first, skip_special_tokens=False) if first else ""
    found = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [
        [*first, *each.ids]
        if (not text.startswith(own) if begins is None else begins) and first
        else each.ids
        for text, each in zip(texts, found)
    ]


def encode_long(model: Transformer, text: str) -> list[int]:
    """As `encode`, of one text that may be long."""
    tokenizer = tokenizer_of(model, "text")
    if model.first_tokens or not tokenizers.is_splittable(tokenizer):
        return encode(model, [text])[0]
    pieces = tokenizer.encode_batch_fast(list(tokenizers.split(text)), add_special_tokens=False)
    return [token for piece in pieces for token in piece.ids]


def encode_pairs(model: Transformer, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    """The tokens of every context, at least one, and of its continuation. Raises `NeojaxError` for a
    continuation without tokens of its own."""
    moved = []
    for context, continuation in pairs:
        if bare := context.rstrip():  # blanks alone stay: nothing would be left before them
            context, continuation = bare, context[len(bare) :] + continuation
        moved.append((context, continuation))
    contexts = {context: number for number, context in enumerate(dict.fromkeys(c for c, _ in moved if c))}
    alone = encode(model, list(contexts))
    together = iter(encode(model, [context + continuation for context, continuation in moved if context]))
    without = iter(encode(model, [continuation for context, continuation in moved if not context], False))
    found: list[tuple[list[int], list[int]]] = []
    for context, continuation in moved:
        if context:
            before = alone[contexts[context]]
            tokens = next(together)[len(before) :]
        else:
            before, tokens = [prefix_token(model)], next(without)
            if tokens[:1] == before:
                tokens = tokens[1:]
        if not tokens:
            raise NeojaxError(
                f"a request has no token to score: {continuation!r} after {context[-40:]!r}; is an answer "
                "of the task empty?"
            )
        found.append((before, tokens))
    return found


def log_likelihoods(model: Transformer, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """(log-likelihood in nats, whether all its tokens are the likeliest) of the continuation of every
    (context, continuation). Raises `NeojaxError`."""
    n_ctx = model.config.n_ctx
    return sums(model, [disjoint(*pair, n_ctx) for pair in encode_pairs(model, pairs)])


def rolling(model: Transformer, texts: Sequence[str]) -> list[float]:
    """The log-likelihoods of whole texts in nats, in disjoint windows. Raises `NeojaxError`."""
    before, n_ctx = [prefix_token(model)], model.config.n_ctx
    windows = [disjoint(before, encode_long(model, text), n_ctx) for text in texts]
    return [nats for nats, _ in sums(model, windows)]


def sums(model: Transformer, windows: Sequence[Sequence[Window]]) -> list[tuple[float, bool]]:
    """(nats, whether all tokens are the likeliest) of texts, each in windows; float64."""
    found = iter(score_windows(model, [window for own in windows for window in own]))
    totals = []
    for own in windows:
        parts = [next(found) for _ in own]
        nats = float(sum(logprobs.sum(dtype="float64") for logprobs, _ in parts))
        totals.append((nats, all(bool(greedy.all()) for _, greedy in parts)))
    return totals
