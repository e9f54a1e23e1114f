"""From the logits of windows to answers: the likeliest spans of the passage, and whether there is one at all.

As in BERT's run_squad.py, with the text cut out of the passage by the characters of its tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from neojax.config import SquadConfig
from neojax.data.questions import Question
from neojax.data.spans import Spans, Window


class Span(NamedTuple):
    """A text of the passage, its characters [start, stop), how probable it is among those that are told, and
    the logits of its first and last token. No answer is the text "", from -1 to -1."""

    text: str
    start: int
    stop: int
    probability: float
    start_logit: float
    end_logit: float


class _Candidate(NamedTuple):
    """The characters [start, stop) of the passage, -1 where there is no answer, and both logits."""

    start: int
    stop: int
    first: float
    last: float

    @property
    def score(self) -> float:
        return self.first + self.last


@dataclass(frozen=True)
class Reply:
    """What is said of a question: its `id`, the answer, and the likeliest answers in their order, that one
    among them. `null_score_diff`: how far the score of no answer is above that of the best; None where there
    always is one."""

    id: str
    answer: Span
    n_best: list[Span]
    null_score_diff: float | None = None

    @property
    def best(self) -> str:
        """The likeliest text, whatever speaks for none."""
        return next((span.text for span in self.n_best if span.text), "")


def replies(
    spans: Spans, logits: Mapping[int, np.ndarray], squad: SquadConfig, may_lack: bool
) -> dict[int, Reply]:
    """What `logits` [sequence, 2] of windows, by the number of the row, say of the questions of which all
    windows are there, by the number of the question. `may_lack`: whether there may be no answer."""
    rows: dict[int, list[int]] = {}
    for row, window in enumerate(spans.windows):
        rows.setdefault(window.question, []).append(row)
    return {
        number: reply(
            spans.questions[number],
            [(spans.windows[row], logits[row]) for row in own],
            spans.offsets[number],
            squad,
            may_lack,
        )
        for number, own in rows.items()
        if all(row in logits for row in own)
    }


def reply(
    question: Question,
    windows: Sequence[tuple[Window, np.ndarray]],
    offsets: np.ndarray,
    squad: SquadConfig,
    may_lack: bool,
) -> Reply:
    """What the logits of all windows of a question say of it. offsets: the characters of the tokens of the
    passage, int [tokens, 2]."""
    found = [c for window, logits in windows for c in _candidates(window, logits, offsets, squad)]
    both = (logits[window.null] for window, logits in windows)
    nothing = min((_Candidate(-1, -1, float(a), float(b)) for a, b in both), key=lambda c: c.score)
    if may_lack:
        found.append(nothing)
    found.sort(key=lambda c: -c.score)  # of equal ones, the first window's first
    kept: dict[str, _Candidate] = {}
    for each in found:
        text, span = ("", each) if each is nothing else _text(question.context, each)
        if (text or each is nothing) and len(kept) < squad.n_best_size:
            kept.setdefault(text, span)
    if may_lack or not kept:
        kept.setdefault("", nothing)
    scores = np.array([each.score for each in kept.values()])
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    n_best = [
        Span(text, each.start, each.stop, float(share), each.first, each.last)
        for share, (text, each) in zip(shares, kept.items())
    ]
    best = next((span for span in n_best if span.text), None)
    none = next((span for span in n_best if not span.text), None)
    if not may_lack or none is None:
        return Reply(question.id, best or n_best[0], n_best)
    difference = nothing.score - (best.start_logit + best.end_logit if best else 0.0)
    lacks = best is None or difference > squad.null_score_diff_threshold
    return Reply(question.id, none if lacks else best or none, n_best, difference)


def _candidates(
    window: Window, logits: np.ndarray, offsets: np.ndarray, squad: SquadConfig
) -> list[_Candidate]:
    """The spans of a window: of the best starts and ends among all its tokens, those that stand in the
    passage, in order, and are not too long, where no other window shows more around the start."""
    size = window.at + window.size + 1  # no padding
    starts, ends = (np.argsort(-logits[:size, side], kind="stable")[: squad.n_best_size] for side in (0, 1))
    starts = starts[(starts >= window.at) & (starts < window.at + window.size)]
    starts = starts[window.is_best[starts - window.at]]
    ends = ends[(ends >= window.at) & (ends < window.at + window.size)]
    length = ends[None] - starts[:, None] + 1
    found = []
    for i, j in np.argwhere((length >= 1) & (length <= squad.max_answer_length)):
        first, last = float(logits[starts[i], 0]), float(logits[ends[j], 1])
        at = window.first - window.at
        start, stop = int(offsets[starts[i] + at, 0]), int(offsets[ends[j] + at, 1])
        found.append(_Candidate(start, stop, first, last))
    return found


def _text(context: str, span: _Candidate) -> tuple[str, _Candidate]:
    """The text of a span, and the span of it, without blanks at its ends, which may be tokens."""
    whole = context[span.start : span.stop]
    text = whole.strip()
    start = span.start + len(whole) - len(whole.lstrip())
    return text, span._replace(start=start, stop=start + len(text))
