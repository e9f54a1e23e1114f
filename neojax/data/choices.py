"""Questions with several answers to choose from, one of which is right."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import google_crc32c
import numpy as np

from neojax.config import DataConfig
from neojax.data.batch import NOT_SCORED, Batch
from neojax.data.examples import Frame, Rows, rounded
from neojax.data.records import Record, read_records, with_labels
from neojax.errors import NeojaxError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BLANK = "_"  # in the place of the choice, as RACE's and WinoGrande's questions have it
_COPA = {"cause": "What was the CAUSE of this?", "effect": "What happened as a RESULT?"}
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Form(NamedTuple):
    """How people's files have it: the columns of what stands before, of the question, which each choice ends
    or fills, of the choices (a list, or as many columns), and of the right one, counted from `first`."""

    context: tuple[str, ...]
    question: str | None
    choices: tuple[str, ...]
    label: str
    first: int = 0


FORMS = (
    Form(("context",), None, ("choices",), "label"),
    Form(("article",), "question", ("options",), "answer"),  # RACE
    Form(("ctx",), None, ("endings",), "label"),  # HellaSwag
    Form(("sent1",), "sent2", ("ending0", "ending1", "ending2", "ending3"), "label"),  # SWAG
    Form(("premise", "question"), None, ("choice1", "choice2"), "label"),  # COPA
    Form(("goal",), None, ("sol1", "sol2"), "label"),  # PIQA
    Form((), "sentence", ("option1", "option2"), "answer", 1),  # WinoGrande
    Form(("question",), None, ("choices",), "answerKey"),  # ARC, CommonsenseQA
)
"""The first whose columns of texts a file has counts."""


class Chosen(NamedTuple):
    """Where a row stands, what stands before the choices, the texts to choose from, and the number of the
    right one; None where it has none."""

    where: str
    context: str
    choices: tuple[str, ...]
    label: int | None = None


def read_choices(path: str | Path, data: DataConfig, *, labelled: bool = True) -> list[Chosen]:
    """The rows of a file: by the columns that `data` names (data.text, data.text2, a list of choices, and
    data.label), or else of one of `FORMS`. `labelled`: whether each has to have its right choice. Raises
    `NeojaxError`, which names the row."""
    records = [_flat(record) for record in with_labels(path, read_records(path))]
    form = _form(records[0], data)
    return [_row(record, form, labelled) for record in records]


def _form(first: Record, data: DataConfig) -> Form:
    have = first.values
    if data.text or data.text2:
        return Form((data.text or "context",), None, (data.text2 or "choices",), data.label or "label")
    for form in FORMS:
        needed = (*form.context, *([form.question] if form.question else []), *form.choices)
        if all(have.get(name) is not None for name in needed):
            return form._replace(label=data.label or form.label)
    raise NeojaxError(
        f"{first.where}: the columns {', '.join(have)} are none of the usual ones for a choice; name what "
        "stands before with data.text, the list of choices with data.text2, and the right one with data.label"
    )


def _flat(record: Record) -> Record:
    """A record whose `question` is an object with the `stem` and the `choices`, as in the files of ARC and
    CommonsenseQA, with both beside it, as in their copies at Hugging Face."""
    own = record.values.get("question")
    if not isinstance(own, dict) or "stem" not in own:
        return record
    return Record(record.where, {**record.values, **own, "question": own["stem"]})


def _row(record: Record, form: Form, labelled: bool) -> Chosen:
    values, where = record.values, record.where

    def text(name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise NeojaxError(f"{where}: {name!r} is {str(value)[:60]!r}; expected a text")
        return value

    for name in (*form.context, *([form.question] if form.question else []), *form.choices):
        if values.get(name) is None:
            raise NeojaxError(f"{where} has no {name!r}; it has {', '.join(values)}")
    parts = [text(name, values[name]) for name in form.context]
    if form.context == ("premise", "question"):
        if parts[1] not in _COPA:
            raise NeojaxError(f"{where}: 'question' is {parts[1][:40]!r}; expected cause or effect")
        parts[1] = _COPA[parts[1]]
    names: Sequence[str] = ()
    given: Any = [values[name] for name in form.choices]
    if len(form.choices) == 1:
        (given,) = given
        if isinstance(given, dict):  # {"text": [...], "label": [...]}
            names, given = [str(name) for name in given.get("label") or ()], given.get("text")
        elif isinstance(given, list) and given and all(isinstance(each, dict) for each in given):
            names = [str(each.get("label")) for each in given]  # [{"text": ..., "label": ...}, ...]
            given = [each.get("text") for each in given]
    if not isinstance(given, list) or len(given) < 2:
        raise NeojaxError(
            f"{where}: {form.choices[0]!r} is {str(given)[:60]}; expected a list of choices, 2 or more"
        )
    choices = [text(form.choices[0], each) for each in given]
    label = values.get(form.label)
    if (label is None or label == "") and labelled:
        raise NeojaxError(f"{where} has no {form.label!r}; it has {', '.join(values)}")
    right = None if label is None or label == "" else _number(where, form, label, choices, names)
    context = " ".join(parts)
    if form.question:
        asked = text(form.question, values[form.question])
        before, blank, after = asked.partition(BLANK)
        if blank and not form.context:  # what stands before the blank is told once
            context, asked = before.rstrip(), f"{BLANK}{after}"
        choices = [asked.replace(BLANK, each, 1) if blank else f"{asked} {each}" for each in choices]
    return Chosen(where, context, tuple(choices), right)


def _number(where: str, form: Form, label: Any, choices: Sequence[str], names: Sequence[str]) -> int:
    """The number of the right choice, by its name in the row, its number, its letter or its text."""
    said = str(label).strip()
    is_own = isinstance(label, str | int) and not isinstance(label, bool)
    if is_own and said in names:
        return list(names).index(said)
    if is_own and said.isdecimal() and form.first <= int(said) < form.first + len(choices):
        return int(said) - form.first
    if is_own and len(said) == 1 and said in _LETTERS[: len(choices)]:
        return _LETTERS.index(said)
    if is_own and label in choices:
        return list(choices).index(str(label))
    raise NeojaxError(
        f"{where}: {form.label!r} is {label!r}; expected a choice, by its number from {form.first} to "
        f"{form.first + len(choices) - 1}, its letter or its text"
    )


Row = list[tuple[np.ndarray, np.ndarray]]  # tokens and their types, int32 [length], of each choice


class Choices(Rows):
    """Rows of choices as a model reads them, each behind what stands before, and their `labels`, int32
    [rows]. Those of a batch have as many choices as any of these; what fills them up is padding. `n_cut` of
    them were longer than `most` tokens."""

    def __init__(
        self, name: str, rows: Sequence[Row], labels: np.ndarray, frame: Frame, most: int, n_cut: int = 0
    ):
        self.name, self.rows, self.labels, self._frame = name, rows, labels, frame
        self.most, self.n_cut = most, n_cut
        self.lengths = np.array([max(len(tokens) for tokens, _ in row) for row in rows], np.int64)
        self.width = max(map(len, rows))

    def fingerprint(self) -> dict[str, Any]:
        crc = google_crc32c.extend(0, self.labels.tobytes())
        for row in self.rows:
            for tokens, _ in row:
                crc = google_crc32c.extend(crc, np.array([len(tokens), *tokens], np.int32).tobytes())
        count = sum(len(tokens) for row in self.rows for tokens, _ in row)
        return {"documents": len(self), "tokens": count, "crc32c": f"{crc:08x}"}

    def batch(
        self, chosen: Sequence[int], rows: Sequence[int] | np.ndarray | None = None, multiple: int = 1
    ) -> Batch:
        most = max((self.lengths[i] for i in chosen if i >= 0), default=1)
        count = len(chosen) if rows is None else len(rows)
        shape = (count, self.width, rounded(int(most), self.most, multiple))
        tokens = np.full(shape, self._frame.pad, np.int32)
        segments, types = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        labels = np.full(count, NOT_SCORED, np.int32)
        for row, place in enumerate(range(len(chosen)) if rows is None else rows):
            if (number := chosen[place]) < 0:
                continue
            labels[row] = self.labels[number]
            for choice, (own, its) in enumerate(self.rows[number]):
                at = row, choice, slice(len(own))
                tokens[at], segments[at], types[at] = own, 1, its
        kinds = types if self._frame.typed else None
        return Batch(
            tokens, np.full(shape, NOT_SCORED, np.int32), segments=segments, token_types=kinds, labels=labels
        )


def encode_choices(
    name: str, rows: Sequence[Chosen], tokenizer: "Tokenizer", frame: Frame, most: int
) -> Choices:
    """Every choice of `rows` behind what stands before it, at most so many tokens. Raises `NeojaxError` for
    one without any."""
    contexts = tokenizer.encode_batch([row.context for row in rows], add_special_tokens=False)
    texts = [text for row in rows for text in row.choices]
    endings = iter(tokenizer.encode_batch(texts, add_special_tokens=False))
    found, n_cut = [], 0
    for row, context in zip(rows, contexts):
        made = [frame.row([context.ids, next(endings).ids], most) for _ in row.choices]
        if not all(len(tokens) for tokens, _, _ in made):
            raise NeojaxError(f"{row.where}: a choice is empty; leave the row out")
        n_cut += any(is_cut for _, _, is_cut in made)
        found.append([(tokens, types) for tokens, types, _ in made])
    labels = np.array([NOT_SCORED if row.label is None else row.label for row in rows], np.int32)
    return Choices(name, found, labels, frame, most, n_cut)
