"""Rows of words that each have a tag, such as the names of persons and places in a sentence."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from neojax.config import DataConfig
from neojax.data.batch import NOT_SCORED
from neojax.data.examples import Example, Examples, Frame
from neojax.data.labelled import MOST
from neojax.data.records import Record, read_records
from neojax.errors import NeojaxError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WORDS = ("tokens", "words")
TAGS = ("tags", "ner_tags", "labels")
"""The usual names of the columns."""
OUTSIDE = "O"


class Tagged(NamedTuple):
    """Where a row stands, its words, and their tags, None where it has none."""

    where: str
    words: list[str]
    tags: list[str] | None


def read_tagged(path: str | Path, data: DataConfig, *, labelled: bool = True) -> list[Tagged]:
    """The rows of a file: `.conll`, a word and its tag (the last column) a line and a blank line between
    rows; or JSON with lists of words and of tags, or with a text of words between blanks. `labelled`: whether
    each has to have tags. Raises `NeojaxError`, which names the row."""
    return [_row(record, data, labelled) for record in read_records(path)]


def _row(record: Record, data: DataConfig, labelled: bool) -> Tagged:
    values = record.values
    key = data.text or next((name for name in WORDS if name in values), "text")
    words = values.get(key)
    words = words.split() if isinstance(words, str) else words
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise NeojaxError(
            f"{record.where}: {key!r} is {str(words)[:60]}; expected a list of words; data.text names its "
            f"column"
        )
    name = data.label or next((name for name in TAGS if name in values), "tags")
    tags = values.get(name)
    if tags is None and not labelled:
        return Tagged(record.where, words, None)
    if not isinstance(tags, list) or not all(type(tag) in (str, int) for tag in tags):
        raise NeojaxError(
            f"{record.where}: {name!r} is {str(tags)[:60]}; expected a list of tags; data.label names its "
            f"column"
        )
    if len(tags) != len(words):
        raise NeojaxError(f"{record.where} has {len(words)} words and {len(tags)} tags; mend the row")
    return Tagged(record.where, words, list(map(str, tags)))


def tag_names(rows: Sequence[Tagged]) -> tuple[str, ...]:
    """The tags that rows have: O first, the others sorted; of numbers, all up to the greatest. Raises
    `NeojaxError` where this is too great."""
    found = {tag for row in rows for tag in row.tags or ()}
    if all(tag.isdecimal() for tag in found):
        greatest = max(found, key=int)
        if int(greatest) >= MOST:
            where = next(row.where for row in rows if greatest in (row.tags or ()))
            raise NeojaxError(
                f"{where}: the tag {greatest} is the number of no class: there are at most {MOST:,}; "
                "mend the row, or name the column of tags with data.label"
            )
        return tuple(str(number) for number in range(int(greatest) + 1))
    return tuple(sorted(found, key=lambda tag: (tag != OUTSIDE, tag)))


def encode_tagged(
    name: str,
    rows: Sequence[Tagged],
    tokenizer: "Tokenizer",
    frame: Frame,
    most: int,
    names: Sequence[str],
) -> tuple[Examples, list[np.ndarray]]:
    """(examples, for each the place of the token by which every word is told; -1 of a word that was cut or
    has none). It is the first of the word, as in BERT's paper, or where a token sees those before it alone,
    the last; no other has a target. Raises `NeojaxError` for tags that are not among `names`."""
    numbers = {tag: number for number, tag in enumerate(names)}
    found = tokenizer.encode_batch([" ".join(row.words) for row in rows], add_special_tokens=False)
    examples, places, n_cut = [], [], 0
    room = most - len(frame.first) - len(frame.last)
    for row, own in zip(rows, found):
        ids, types, is_cut = frame.row([own.ids], most)
        first = tokens_of(row.words, own.offsets, last=frame.causal)
        at = np.where((first >= 0) & (first < room), first + len(frame.first), -1)
        targets = np.full(len(ids), NOT_SCORED, np.int32)
        for word, place in enumerate(at):
            if row.tags is not None and (tag := row.tags[word]) not in numbers:
                raise NeojaxError(
                    f"{row.where}: the tag {tag!r} is none of the model's, {', '.join(list(numbers)[:20])}; "
                    f"mend the "
                    "row, or give all of them as model.head.labels"
                )
            if row.tags is not None and place >= 0:
                targets[place] = numbers[row.tags[word]]
        examples.append(Example(ids, types, None, targets))
        places.append(at)
        n_cut += is_cut
    return Examples(name, examples, frame, most, n_cut), places


def tokens_of(words: Sequence[str], offsets: Sequence[tuple[int, int]], *, last: bool = False) -> np.ndarray:
    """The number of the first (or last) token of each word in a text of `words` with a blank between; -1
    where a word has none. offsets: where each token stands in it; a token may begin with the blank before its
    word."""
    sizes = np.array([len(word) for word in words])
    ends = np.cumsum(sizes + 1) - 1
    found = np.full(len(words), -1, np.int64)
    for token, (start, stop) in enumerate(offsets):
        if stop > start:
            word = int(np.searchsorted(ends, stop - 1, side="right"))
            if word < len(words) and (last or found[word] < 0):
                found[word] = token
    return found


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The entities that tags of IOB say, (kind, first word, behind the last): B- begins one, and so does I-
    behind another kind, as in the program of CoNLL-2000; of B and I alone the kind is _. Tags of no such form
    are entities of their own."""
    found = set()
    start, kind = 0, ""
    for place, tag in enumerate([*tags, OUTSIDE]):
        head, _, own = tag.partition("-")
        is_iob = head in ("B", "I")
        own = (own or "_") if is_iob else "" if tag == OUTSIDE else tag
        begins = own != kind or head == "B" or not is_iob
        if kind and begins:
            found.add((kind, start, place))
        if begins:
            start, kind = place, own
    return found


def entity_scores(said: Sequence[Sequence[str]], true: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of the entities of all rows."""
    right = told = wanted = 0
    for mine, its in zip(said, true):
        a, b = entities(mine), entities(its)
        right, told, wanted = right + len(a & b), told + len(a), wanted + len(b)
    return {
        "precision": right / told if told else 0.0,
        "recall": right / wanted if wanted else 0.0,
        "f1": 2 * right / (told + wanted) if told + wanted else 0.0,
    }


def tags_at(logits: np.ndarray, places: np.ndarray, names: Sequence[str]) -> list[str]:
    """The tags of words by the logits [sequence, tags] at their `places`; O, or else the first, where
    there is none."""
    usual = OUTSIDE if OUTSIDE in names else names[0]
    return [names[int(logits[place].argmax())] if place >= 0 else usual for place in places]
