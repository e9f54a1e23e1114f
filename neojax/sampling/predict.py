"""What a model with a head for classes says of texts, or of their words, and where a passage answers a
question."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neojax.arguments import flag, text, wrong
from neojax.config import HEADS, SquadConfig
from neojax.data.answers import Reply, replies
from neojax.data.choices import Choices, Chosen, encode_choices
from neojax.data.examples import Example, Examples, Frame
from neojax.data.questions import Question
from neojax.data.spans import Spans, spans_of
from neojax.data.tagged import Tagged, encode_tagged, entities, tags_at
from neojax.errors import NeojaxError
from neojax.models import Transformer
from neojax.sampling.answered import answers
from neojax.sampling.requests import tokenizer_of

KINDS = HEADS[3:]


@dataclass(frozen=True)
class Prediction:
    """What is said of a row: the name of its class, or a number where the model gives such, or the names of
    all classes that hold where several may; and the probability of every class by its name, none for a
    number."""

    label: str | float | list[str]
    scores: dict[str, float]


@dataclass(frozen=True)
class Entity:
    """A run of words of one kind: their text, the number of the first word, and of the one behind the
    last."""

    kind: str
    text: str
    first: int
    end: int


@dataclass(frozen=True)
class Tagging:
    """What is said of the words of a row: a tag for each, and the entities that tags of IOB mean."""

    words: list[str]
    tags: list[str]
    entities: list[Entity]


@dataclass(frozen=True)
class Choice:
    """Which of several texts is right: its number, the text, and how probable each of them is."""

    choice: int
    text: str
    scores: list[float]


def predict(model: Transformer, texts: Any, *, no_answer: bool = False) -> Any:
    """What the model says of each of `texts`, one or a list, by the head that it has:

    - of classes, or a number: a text, or a pair of them as a tuple; gives a `Prediction`;
    - of words: a text, parted at blanks, or in a list also lists of words; gives a `Tagging`;
    - of answers in a passage: a question and a passage of any length as a tuple; gives a `Reply`. With
      `no_answer`, there may be none, as in SQuAD 2.0;
    - of the right choice: what stands before, and a list of choices, as a tuple; gives a `Choice`.

    What is too long for the context is cut. Raises `NeojaxError`."""
    check_predicts(model)
    (kind,) = model.config.head.kinds
    if flag("no_answer", no_answer) and kind != "question_answering":
        raise NeojaxError("no_answer=True is for a model that answers questions; leave it out")
    is_row, expected = SHAPES[kind]
    single = isinstance(texts, str | tuple)
    rows = [texts] if single else texts
    if not isinstance(rows, list) or not rows or not all(map(is_row, rows)):
        raise wrong("texts", texts, expected)
    for number, row in enumerate(rows, 1):
        for own in _texts(row):
            text(f"text {number}", own)
    found: list[Any]
    match kind:
        case "token_classification":
            found, _ = taggings(model, [row.split() if isinstance(row, str) else row for row in rows])
        case "question_answering":
            asked = [Question(f"row {n}", str(n), *row) for n, row in enumerate(rows, 1)]
            found = answered(model, spans_for(model, asked, SquadConfig()), SquadConfig(), no_answer)
        case "multiple_choice":
            given = [Chosen(f"row {n}", row[0], tuple(row[1])) for n, row in enumerate(rows, 1)]
            found = choices_of(model, given)[0]
        case _:
            rows = [(row,) if isinstance(row, str) else row for row in rows]
            if len({len(row) for row in rows}) > 1:
                raise NeojaxError(
                    "predict: some rows have one text and some two; give all of one kind at once"
                )
            found = [prediction(model, own) for own in answers(model, examples_of(model, rows))]
    return found[0] if single else found


def taggings(model: Transformer, rows: Sequence[list[str]], most: int = 0) -> tuple[list[Tagging], Examples]:
    """The tags of rows of words, at most so many tokens of each (0: the model's context); words that are cut
    have the tag O. And the rows as the model reads them."""
    tokenizer, names = tokenizer_of(model, "text"), model.config.head.labels
    if empty := next((number for number, words in enumerate(rows, 1) if not words), 0):
        raise NeojaxError(f"row {empty} has no word; leave it out")
    frame, most = Frame.of(model.config, tokenizer, "predict"), most or model.config.n_ctx
    given = [Tagged(f"row {number}", words, None) for number, words in enumerate(rows, 1)]
    examples, places = encode_tagged("rows", given, tokenizer, frame, most, names)
    found = []
    for words, logits, at in zip(rows, answers(model, examples), places):
        tags = tags_at(logits, at, names)
        own = [
            Entity(k, " ".join(words[a:b]), a, b) for k, a, b in sorted(entities(tags), key=lambda e: e[1])
        ]
        found.append(Tagging(words, tags, own))
    return found, examples


def spans_for(model: Transformer, asked: Sequence[Question], squad: SquadConfig, most: int = 0) -> Spans:
    """The windows of questions as the model reads them, at most so many tokens of each (0: its context)."""
    tokenizer = tokenizer_of(model, "text")
    frame = Frame.of(model.config, tokenizer, "predict")
    return spans_of("questions", asked, tokenizer, frame, most or model.config.n_ctx, squad)


def answered(model: Transformer, spans: Spans, squad: SquadConfig, may_lack: bool) -> list[Reply]:
    """What the model says of every question."""
    found = replies(spans, dict(enumerate(answers(model, spans))), squad, may_lack)
    return [found[number] for number in range(len(spans.questions))]


def choices_of(model: Transformer, rows: Sequence[Chosen], most: int = 0) -> tuple[list[Choice], Choices]:
    """The choice in each of `rows`, at most so many tokens of each (0: the model's context). And the rows as
    the model reads them."""
    tokenizer = tokenizer_of(model, "text")
    frame, most = Frame.of(model.config, tokenizer, "predict"), most or model.config.n_ctx
    encoded = encode_choices("rows", rows, tokenizer, frame, most)
    found = []
    for row, logits in zip(rows, answers(model, encoded)):
        scores = shares(logits[: len(row.choices)])
        best = int(scores.argmax())
        found.append(Choice(best, row.choices[best], scores.tolist()))
    return found, encoded


def check_predicts(model: Any) -> None:
    """Raises `NeojaxError` where `model` is not one with a head that says something of texts."""
    if not isinstance(model, Transformer):
        raise wrong("model", model, "a model, as neojax.load gives it")
    model.check_bound()
    check_kinds(model.config.head.kinds)
    tokenizer_of(model, "text")


def check_kinds(kinds: Sequence[str]) -> None:
    """Raises `NeojaxError` where a model with these heads says nothing of texts."""
    if len(kinds) != 1 or kinds[0] not in KINDS:
        raise NeojaxError(
            f"model.head.kinds={list(kinds)}: this model does not say what texts are; fine-tune it with "
            f"data.task (docs/finetuning.md), or load one with the head {' or '.join(KINDS)}"
        )


def examples_of(model: Transformer, rows: Sequence[Sequence[str]], most: int = 0) -> Examples:
    """Rows of texts as the model reads them, at most so many tokens of each (0: its context)."""
    tokenizer = tokenizer_of(model, "text")
    frame = Frame.of(model.config, tokenizer, "predict")
    most = most or model.config.n_ctx
    texts = [tokenizer.encode_batch(list(own), add_special_tokens=False) for own in zip(*rows)]
    made, n_cut = [], 0
    for number, own in enumerate(zip(*texts), 1):
        tokens, types, is_cut = frame.row([each.ids for each in own], most)
        if not len(tokens):
            raise NeojaxError(f"row {number}: the text is empty; leave it out")
        made.append(Example(tokens, types, np.int32(0)))
        n_cut += is_cut
    return Examples("rows", made, frame, most, n_cut)


def prediction(model: Transformer, logits: np.ndarray) -> Prediction:
    """What logits [labels] say."""
    names = model.config.head.labels
    if model.config.head.multilabel:
        each = (1 / (1 + np.exp(-logits.astype(np.float64)))).tolist()
        return Prediction([name for name, share in zip(names, each) if share > 0.5], dict(zip(names, each)))
    if len(names) == 1:
        return Prediction(float(logits[0]), {})
    return Prediction(names[int(logits.argmax())], dict(zip(names, shares(logits).tolist())))


def shares(logits: np.ndarray) -> np.ndarray:
    """How probable each of several is."""
    found = np.exp(logits - logits.max())
    return found / found.sum()


def _texts(row: Any) -> list[Any]:
    return [row] if isinstance(row, str) else [own for each in row for own in _texts(each)]


def _are_texts(row: Any) -> bool:
    return all(isinstance(each, str) for each in row)


def _is_row(row: Any) -> bool:
    return isinstance(row, str) or (isinstance(row, tuple) and len(row) in (1, 2) and _are_texts(row))


def _is_words(row: Any) -> bool:
    return isinstance(row, str) or (isinstance(row, list) and _are_texts(row))


def _is_pair(row: Any) -> bool:
    return isinstance(row, tuple) and len(row) == 2 and _are_texts(row)


def _is_choice(row: Any) -> bool:
    if not isinstance(row, tuple) or len(row) != 2 or not isinstance(row[0], str):
        return False
    return isinstance(row[1], list | tuple) and len(row[1]) > 1 and _are_texts(row[1])


SHAPES: dict[str, tuple[Any, str]] = {
    "sequence_classification": (_is_row, "a text, a pair of texts as a tuple, or a list of these"),
    "token_classification": (_is_words, "a text, or a list of texts or of lists of words"),
    "question_answering": (_is_pair, "a question and a passage as a tuple, or a list of such"),
    "multiple_choice": (_is_choice, "a text and a list of two choices or more as a tuple, or a list of such"),
}
"""The kind of a head -> whether a row is one that it says something of, and what is expected."""
