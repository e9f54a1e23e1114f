"""What a model with a head for classes says of texts, or of their words, and where a passage answers a
question."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neojax.arguments import flag, text, wrong
from neojax.config import SquadConfig
from neojax.data.answers import Reply, replies
from neojax.data.examples import Example, Examples, Frame
from neojax.data.questions import Question
from neojax.data.spans import Spans, spans_of
from neojax.data.tagged import Tagged, encode_tagged, entities, tags_at
from neojax.errors import NeojaxError
from neojax.models import Transformer
from neojax.sampling.answered import answers
from neojax.sampling.requests import tokenizer_of

KINDS = ("sequence_classification", "token_classification", "question_answering")


@dataclass(frozen=True)
class Prediction:
    """What is said of a row: the name of its class, or a number where the model gives such; and the
    probability of every class by its name, none for a number."""

    label: str | float
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


def predict(model: Transformer, texts: Any, *, no_answer: bool = False) -> Any:
    """The class of each of `texts`, or its number where the model has one label: a text, or a pair of them as
    a tuple; or a list of such. Of a model that tags words, texts are parted at blanks, and a list of lists of
    words is taken too. Of a model that answers questions, each is a pair of a question and a passage of any
    length; with `no_answer`, there may be none, as in SQuAD 2.0. What else is too long for the context is
    cut. Returns a `Prediction`, a `Tagging` or a `Reply` for one, else a list. Raises `NeojaxError`."""
    check_predicts(model)
    (kind,) = model.config.head.kinds
    tags, asks = kind == KINDS[1], kind == KINDS[2]
    if flag("no_answer", no_answer) and not asks:
        raise NeojaxError("no_answer=True is for a model that answers questions; leave it out")
    single = isinstance(texts, str | tuple)
    rows = [texts] if single else texts
    if not isinstance(rows, list) or not rows or not all(map(_is_words if tags else _is_row, rows)):
        expected = "a text, or a list of texts or of lists of words"
        raise wrong(
            "texts", texts, expected if tags else "a text, a pair of texts as a tuple, or a list of these"
        )
    for number, row in enumerate(rows, 1):
        for own in (row,) if isinstance(row, str) else row:
            text(f"text {number}", own)
    found: list[Any]
    if tags:
        found = taggings(model, [row.split() if isinstance(row, str) else row for row in rows])[0]
        return found[0] if single else found
    rows = [(row,) if isinstance(row, str) else row for row in rows]
    if asks and any(len(row) != 2 for row in rows):
        raise wrong("texts", texts, "a question and a passage as a tuple, or a list of such")
    if len({len(row) for row in rows}) > 1:
        raise NeojaxError("predict: some rows have one text and some two; give all of one kind at once")
    if asks:
        asked = [Question(f"row {n}", str(n), *row) for n, row in enumerate(rows, 1)]
        squad = SquadConfig()
        found = answered(model, spans_for(model, asked, squad), squad, no_answer)
    else:
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


def check_predicts(model: Any) -> None:
    """Raises `NeojaxError` where `model` is not one with a head for classes of texts or of words, or for
    answers."""
    if not isinstance(model, Transformer):
        raise wrong("model", model, "a model, as neojax.load gives it")
    model.check_bound()
    kinds = model.config.head.kinds
    if len(kinds) != 1 or kinds[0] not in KINDS:
        raise NeojaxError(
            f"model.head.kinds={list(kinds)}: this model does not say what texts are; fine-tune it with "
            f"data.task (docs/finetuning.md), or load one with the head {' or '.join(KINDS)}"
        )
    tokenizer_of(model, "text")


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
    if len(names := model.config.head.labels) == 1:
        return Prediction(float(logits[0]), {})
    shares = np.exp(logits - logits.max())
    shares = shares / shares.sum()
    return Prediction(names[int(logits.argmax())], dict(zip(names, map(float, shares))))


def _is_row(row: Any) -> bool:
    texts = (row,) if isinstance(row, str) else row
    return isinstance(texts, tuple) and len(texts) in (1, 2) and all(isinstance(t, str) for t in texts)


def _is_words(row: Any) -> bool:
    return isinstance(row, str) or (isinstance(row, list) and all(isinstance(word, str) for word in row))
