"""What a model with a head for classes says of texts, or of their words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neojax.arguments import text, wrong
from neojax.data.examples import Example, Examples, Frame
from neojax.data.tagged import Tagged, encode_tagged, entities, tags_at
from neojax.errors import NeojaxError
from neojax.models import Transformer
from neojax.sampling.batching import rounded
from neojax.sampling.requests import tokenizer_of

TOKENS = 8192  # of texts that are read at once, so that activations stay bounded
KINDS = ("sequence_classification", "token_classification")


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


def predict(model: Transformer, texts: Any) -> Any:
    """The class of each of `texts`, or its number where the model has one label: a text, or a pair of them as
    a tuple; or a list of such. Of a model that tags words, texts are parted at blanks, and a list of lists of
    words is taken too. What is too long for the context is cut. Returns a `Prediction`, or a `Tagging`, for
    one, else a list. Raises `NeojaxError`."""
    check_predicts(model)
    tags = model.config.head.kinds != KINDS[:1]
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
    if tags:
        found: list[Any] = taggings(model, [row.split() if isinstance(row, str) else row for row in rows])
        return found[0] if single else found
    rows = [(row,) if isinstance(row, str) else row for row in rows]
    if len({len(row) for row in rows}) > 1:
        raise NeojaxError("predict: some rows have one text and some two; give all of one kind at once")
    found = [prediction(model, own) for own in answers(model, examples_of(model, rows))]
    return found[0] if single else found


def taggings(model: Transformer, rows: Sequence[list[str]], most: int = 0) -> list[Tagging]:
    """The tags of rows of words, at most so many tokens of each (0: the model's context); words that are cut
    have the tag O."""
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
    return found


def check_predicts(model: Any) -> None:
    """Raises `NeojaxError` where `model` is not one with a head for classes of texts or of words."""
    if not isinstance(model, Transformer):
        raise wrong("model", model, "a model, as neojax.load gives it")
    model.check_bound()
    kinds = model.config.head.kinds
    if len(kinds) != 1 or kinds[0] not in KINDS:
        raise NeojaxError(
            f"model.head.kinds={list(kinds)}: this model does not say what texts are; fine-tune it with "
            f"data.task "
            f"(docs/finetuning.md), or load one with the head {' or '.join(KINDS)}"
        )
    tokenizer_of(model, "text")


def examples_of(model: Transformer, rows: Sequence[Sequence[str]], most: int = 0) -> Examples:
    """Rows of texts as the model reads them, at most so many tokens of each (0: its context)."""
    tokenizer = tokenizer_of(model, "text")
    frame = Frame.of(model.config, tokenizer, "predict")
    most = most or model.config.n_ctx
    texts = [tokenizer.encode_batch(list(own), add_special_tokens=False) for own in zip(*rows)]
    made = []
    for number, own in enumerate(zip(*texts), 1):
        tokens, types, _ = frame.row([each.ids for each in own], most)
        if not len(tokens):
            raise NeojaxError(f"row {number}: the text is empty; leave it out")
        made.append(Example(tokens, types, np.int32(0)))
    return Examples("rows", made, frame, most)


def answers(model: Transformer, examples: Examples) -> list[np.ndarray]:
    """The logits of the model's head for each of `examples`, float32 [labels], or [sequence, labels] with
    padding."""
    parts = model.layout.split("batch")
    found: list[Any] = [None] * len(examples)
    for chosen in _batches(examples.lengths, parts):
        batch = examples.batch(chosen)
        logits = model.layout.fetch(
            model(batch.tokens, segments=batch.segments, token_types=batch.token_types)
        )
        for i, own in zip(chosen, logits):
            if i >= 0:
                found[i] = own
    return found


def _batches(lengths: np.ndarray, parts: int) -> Iterator[list[int]]:
    """All rows, those of a length together; -1 fills up a batch."""
    order = np.argsort(-lengths, kind="stable").tolist()
    while order:
        most = parts * max(1, TOKENS // (parts * int(lengths[order[0]])))
        chosen, order = order[:most], order[most:]
        yield chosen + [-1] * (rounded(len(chosen), parts) - len(chosen))


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
