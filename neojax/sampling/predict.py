"""What a model with a head for classes says of texts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neojax.arguments import wrong
from neojax.data.examples import Example, Examples, Frame
from neojax.errors import NeojaxError
from neojax.models import Transformer
from neojax.sampling.batching import rounded
from neojax.sampling.requests import tokenizer_of

TOKENS = 8192  # of texts that are read at once, so that activations stay bounded
KIND = "sequence_classification"


@dataclass(frozen=True)
class Prediction:
    """What is said of a row: the name of its class, or a number where the model gives such; and the
    probability of every class by its name, none for a number."""

    label: str | float
    scores: dict[str, float]


def predict(model: Transformer, texts: Any) -> Any:
    """The class of each of `texts`, or its number where the model has one label: a text, or a pair of them as
    a tuple; or a list of such. Texts too long for the context are cut. Returns a `Prediction` for one, else a
    list. Raises `NeojaxError`."""
    check_predicts(model)
    single = isinstance(texts, str | tuple)
    rows = [texts] if single else texts
    if not isinstance(rows, list) or not rows or not all(map(_is_row, rows)):
        raise wrong("texts", texts, "a text, a pair of texts as a tuple, or a list of these")
    rows = [(row,) if isinstance(row, str) else row for row in rows]
    if len({len(row) for row in rows}) > 1:
        raise NeojaxError("predict: some rows have one text and some two; give all of one kind at once")
    logits = answers(model, examples_of(model, rows))
    found = [prediction(model, own) for own in logits]
    return found[0] if single else found


def check_predicts(model: Any) -> None:
    """Raises `NeojaxError` where `model` is not one with a head for classes of texts."""
    if not isinstance(model, Transformer):
        raise wrong("model", model, "a model, as neojax.load gives it")
    model.check_bound()
    if model.config.head.kinds != (KIND,):
        raise NeojaxError(
            f"model.head.kinds={list(model.config.head.kinds)}: this model does not say what texts are; "
            f"fine-tune "
            "it with data.task (docs/finetuning.md), or load one with the head sequence_classification"
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


def answers(model: Transformer, examples: Examples) -> np.ndarray:
    """The logits of the model's head for `examples`, float32 [examples, ...]."""
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
    return np.stack(found)


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
