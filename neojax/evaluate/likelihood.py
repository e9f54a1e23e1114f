"""How well a model predicts held-out text: sums over documents, and what they come to.

Sums are of float64. A ratio of two sums over documents, such as nats per token, has the standard error of a
ratio estimate: the documents are a sample, and tokens of one document are alike (Cochran, "Sampling
Techniques", section 2.11). Where there is one document, its windows take the documents' place. The standard
error of exp(x) is exp(x) times that of x.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from neojax.errors import NeojaxError
from neojax.evaluate.held_out import Document
from neojax.evaluate.score import score_windows
from neojax.evaluate.windows import Window, disjoint, strided
from neojax.models import Transformer
from neojax.sampling.requests import start_token, usable

GROUP = 1 << 19  # tokens of documents whose windows are scored in one go, the long beside the long


@dataclass
class Measured:
    """One document: `tokens` that are scored, the `nats` of all of them, how many are the likeliest, and
    the parts of the sums by window."""

    document: Document
    tokens: int
    nats: float
    greedy: int
    windows: list[tuple[float, float]] = field(repr=False)
    """(nats, tokens) of each window, weighted as they count"""


def measure(
    model: Transformer, documents: Iterable[Document], stride: int | None = None
) -> Iterator[Measured]:
    """Every document with its likelihood, in order.

    Without `stride`, in disjoint windows after the end-of-document token (`windows.disjoint`). With it, in
    windows that overlap and without anything before the document (`windows.strided`). Raises `NeojaxError`.
    """
    usable(model, "score a text token by token")
    n_ctx = model.config.n_ctx
    if stride is not None and not 1 <= stride <= n_ctx:
        raise NeojaxError(f"--stride {stride}: expected 1 to the model's context, {n_ctx}")
    group: list[Document] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document.tokens)
        if size >= GROUP:
            yield from _measured(model, group, stride)
            group, size = [], 0
    yield from _measured(model, group, stride)


def _measured(model: Transformer, group: Sequence[Document], stride: int | None) -> Iterator[Measured]:
    windows = [_windows(model, document, stride) for document in group]
    found = iter(score_windows(model, [window for own in windows for window in own]))
    for document, own in zip(group, windows):
        parts, tokens, greedy = [], 0, 0
        for window in own:
            logprobs, hits = next(found)
            weight = 1.0 if stride is None else _weight(window)
            parts.append((-weight * float(np.sum(logprobs, dtype=np.float64)), weight * window.scored))
            tokens, greedy = tokens + window.scored, greedy + int(hits.sum())
        yield Measured(document, tokens, math.fsum(nats for nats, _ in parts), greedy, parts)


def _windows(model: Transformer, document: Document, stride: int | None) -> list[Window]:
    tokens = document.tokens.tolist()
    if stride is not None:
        return strided(tokens, model.config.n_ctx, stride)
    before = list(model.first_tokens) or [start_token(model, f"nothing stands before {document.name}")]
    return disjoint(before, tokens, model.config.n_ctx)


def _weight(window: Window) -> float:
    """How much a token of a strided window counts. The page of transformers takes the mean over a window's
    scored tokens times one less than the labels it gave, which is fewer where the first has no label."""
    if window.scored == len(window.tokens) - 1:
        return 1.0
    return (window.scored - 1) / window.scored


class Tally:
    """Documents added up."""

    def __init__(self) -> None:
        self._documents: list[tuple[float, ...]] = []  # nats, weighted tokens, all tokens, bytes, words
        self._windows: list[tuple[float, float]] = []  # of the only document
        self._tokens = self._greedy = 0
        self._has_text = True

    def add(self, found: Measured) -> None:
        """Adds a document."""
        document = found.document
        weighted = math.fsum(tokens for _, tokens in found.windows)
        self._windows = [] if self._documents else found.windows
        sizes = len(document.tokens), document.n_bytes or 0, document.n_words or 0
        self._documents.append((found.nats, weighted, *sizes))
        self._tokens, self._greedy = self._tokens + found.tokens, self._greedy + found.greedy
        self._has_text &= document.n_bytes is not None

    def row(self, name: str) -> dict[str, Any]:
        """What the documents of `name` come to, as `--json` has it. Values that there are none of, such as
        the standard error of a single window or bits of a text that nobody knows, are None. Raises
        `NeojaxError` where no token is scored."""
        each = np.array(self._documents, np.float64).reshape(-1, 5)
        nats, weighted, tokens, n_bytes, words = (math.fsum(column) for column in each.T)
        if not weighted:
            raise NeojaxError(f"{name} has no token to score; name text, or a store that holds some")
        by_window = len(each) == 1
        units = np.array(self._windows, np.float64) if by_window else each[:, :2]
        loss, error = nats / weighted, ratio_error(*units.T)
        row: dict[str, Any] = {
            "data": name,
            "documents": len(each),
            "tokens": self._tokens,
            "bytes": int(n_bytes) if self._has_text else None,
            "words": int(words) if self._has_text else None,
            **_with_error("nats_per_token", loss, error),
            **_with_error("perplexity", *_exp(loss, error)),
        }
        values: list[tuple[float | None, float | None]] = []
        for column, total in ((3, n_bytes), (4, words)):
            if not (self._has_text and total):
                values.append((None, None))
                continue
            scale = (
                tokens / weighted
            )  # what is not scored (the first token of a strided window) counts as much
            spread = error and error * tokens / total
            if not by_window:
                spread = _times(ratio_error(each[:, 0], each[:, column]), scale)
            values.append((loss * tokens / total, spread))
        (per_byte, byte_error), (per_word, word_error) = values
        row |= _with_error(
            "bits_per_byte", _times(per_byte, 1 / math.log(2)), _times(byte_error, 1 / math.log(2))
        )
        row |= _with_error("word_perplexity", *_exp(per_word, word_error))
        return row | {
            "greedy": self._greedy / self._tokens,
            "standard_errors_over": "windows" if by_window else "documents",
        }


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _with_error(name: str, value: float | None, error: float | None) -> dict[str, float | None]:
    return {name: value, f"{name}_stderr": error}


def _exp(value: float | None, error: float | None) -> tuple[float | None, float | None]:
    """exp, kept finite, and its standard error."""
    if value is None:
        return None, None
    big = math.exp(min(value, 700.0))
    return big, _times(error, big)


def ratio_error(above: np.ndarray, below: np.ndarray) -> float | None:
    """The standard error of sum(above) / sum(below) over units [n] that are a sample; None for fewer than
    two."""
    n = len(above)
    if n < 2:
        return None
    ratio = above.sum() / below.sum()
    return float(math.sqrt(n / (n - 1) * np.sum((above - ratio * below) ** 2)) / below.sum())
