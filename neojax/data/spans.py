"""Rows of a question and a window of its passage, and which tokens of them are the answer.

A passage that is too long for a row is parted into windows that overlap, as in BERT's run_squad.py
(https://arxiv.org/abs/1810.04805, section 4.2): each stands `doc_stride` tokens behind the one before.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from neojax.config import SquadConfig
from neojax.data.examples import Example, Examples, Frame
from neojax.data.questions import Question
from neojax.errors import NeojaxError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


class Window(NamedTuple):
    """A row: the number of its question; which place has the first token of the passage that is in it, which
    token of the passage that is, and how many there are; the place that stands for no answer; and bool
    [size], whether no other window shows more of what stands around a token."""

    question: int
    at: int
    first: int
    size: int
    null: int
    is_best: np.ndarray


class Spans(Examples):
    """The windows of the questions of one file. `windows`: of each row; `offsets`: of each question the
    characters of the passage that a token is, int [tokens, 2]; `n_long`: questions that were cut; `n_apart`:
    those whose answer stands whole in no window."""

    def __init__(self, name: str, questions: Sequence[Question], frame: Frame, most: int):
        self.questions = questions
        self.windows: list[Window] = []
        self.offsets: list[np.ndarray] = []
        self.n_long = self.n_apart = 0
        super().__init__(name, [], frame, most)

    def held_out(self, batch_size: int) -> Iterator[list[int]]:
        """As for all rows; the windows of a question come together, so that the first batches have whole
        questions."""
        question = np.array([window.question for window in self.windows])
        longest = np.zeros(len(self.questions), np.int64)
        np.maximum.at(longest, question, self.lengths)
        order = np.lexsort((np.arange(len(self)), question, longest[question])).tolist()
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            yield chosen + [-1] * (batch_size - len(chosen))


def spans_of(
    name: str,
    questions: Sequence[Question],
    tokenizer: "Tokenizer",
    frame: Frame,
    most: int,
    squad: SquadConfig,
) -> Spans:
    """The windows of `questions`, rows of at most so many tokens. The label of each is the first and the last
    token of the first answer, or the place that stands for none where the window does not hold all of it.

    No answer is told at an encoder's [CLS]; by a causal model at the end of a document behind the passage,
    which alone has seen all. Raises `NeojaxError` where there is no such token, or no room for a passage.
    """
    if frame.causal and not frame.between:
        raise NeojaxError(
            "answers that are spans need a token that ends a document, which this tokenizer has not; name "
            "another with data.tokenizer"
        )
    last = frame.between if frame.causal else frame.last
    found = Spans(name, questions, frame, most)
    asked = tokenizer.encode_batch([each.text for each in questions], add_special_tokens=False)
    contexts = list(dict.fromkeys(each.context for each in questions))  # many have the same
    encoded = dict(zip(contexts, tokenizer.encode_batch(contexts, add_special_tokens=False)))
    offsets = {context: trimmed(own.offsets, context) for context, own in encoded.items()}
    examples = []
    for number, (each, its) in enumerate(zip(questions, asked)):
        passage: Encoding = encoded[each.context]
        found.offsets.append(offsets[each.context])
        question = its.ids[: squad.max_query_length]
        found.n_long += len(its.ids) > len(question)
        head = [*frame.first, *question, *frame.between]
        room = most - len(head) - len(last)
        if room < 1:
            raise NeojaxError(
                f"{each.where}: a row of {most} tokens has no room for a passage beside a question of "
                f"{len(question)}; raise data.max_tokens, or lower data.squad.max_query_length"
            )
        if not passage.ids:
            raise NeojaxError(f"{each.where}: the passage is empty; leave the question out")
        answer = tokens_of_answer(each, found.offsets[-1])
        held = answer is None
        parts = windows(len(passage.ids), room, squad.doc_stride)
        for (first, count), is_best in zip(parts, best_windows(len(passage.ids), parts)):
            tokens = np.array([*head, *passage.ids[first : first + count], *last], np.int32)
            types = np.repeat(np.array([0, 1], np.int32), (len(head), count + len(last)))
            null = len(tokens) - 1 if frame.causal else 0
            label = (null, null)
            if answer is not None and first <= answer[0] and answer[1] < first + count:
                label, held = (len(head) + answer[0] - first, len(head) + answer[1] - first), True
            examples.append(Example(tokens, types, np.array(label, np.int32)))
            found.windows.append(Window(number, len(head), first, count, null, is_best))
        found.n_apart += not held
    found.examples = examples
    found.lengths = np.array([len(example.tokens) for example in examples], np.int64)
    return found


def windows(size: int, room: int, stride: int) -> list[tuple[int, int]]:
    """(first token, number of tokens) of each window of a passage of `size` tokens; the last reaches its
    end."""
    found, first = [], 0
    while True:
        count = min(size - first, room)
        found.append((first, count))
        if first + count == size:
            return found
        first += min(count, stride)


def best_windows(size: int, parts: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Of every window, bool [count]: whether each of its tokens has in it the most on the side on which it
    has the least; among such windows, the longest counts, then the first."""
    scores = np.full((len(parts), size), -np.inf)
    for row, (first, count) in enumerate(parts):
        places = np.arange(count)
        scores[row, first : first + count] = np.minimum(places, count - 1 - places) + 0.01 * count
    best = scores.argmax(axis=0)
    return [best[first : first + count] == row for row, (first, count) in enumerate(parts)]


def trimmed(offsets: Sequence[tuple[int, int]], text: str) -> np.ndarray:
    """The characters of `text` that tokens are, int [tokens, 2], without blanks at their ends."""
    found = np.array(offsets, np.int64).reshape(-1, 2)
    for own in found:
        while own[0] < own[1] and text[own[0]].isspace():
            own[0] += 1
        while own[0] < own[1] and text[own[1] - 1].isspace():
            own[1] -= 1
    return found


def tokens_of_answer(question: Question, offsets: np.ndarray) -> tuple[int, int] | None:
    """The first and the last token of the passage that have a part of the first answer; None where there is
    no answer, or no token has a part of it."""
    if not question.answers:
        return None
    text, start = question.answers[0]
    stop = start + len(text.rstrip())
    start += len(text) - len(text.lstrip())
    held = np.flatnonzero((offsets[:, 1] > start) & (offsets[:, 0] < stop) & (offsets[:, 1] > offsets[:, 0]))
    return (int(held[0]), int(held[-1])) if len(held) else None
