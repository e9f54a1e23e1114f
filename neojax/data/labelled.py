"""Rows of labelled text: a text, or two, and the class or the number that is to be said of them."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neojax.config import DataConfig
from neojax.config.tasks import TASKS, Task
from neojax.data.records import Record, read_records
from neojax.errors import NeojaxError

TEXTS = (
    ("text", "text2"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("#1 String", "#2 String"),
    ("question", "sentence"),
    ("question", "passage"),
    ("text", None),
    ("sentence", None),
)
"""The usual names of the columns of text; the first that a file has count."""
LABELS = ("label", "labels", "gold_label", "is_duplicate", "Quality", "score", "similarity")
MOST = 1000  # classes
_NUMBER = re.compile(r"-?\d{1,18}")  # as int takes it; not "--5", nor "²"


class Row(NamedTuple):
    """Where a row stands, its texts, and its label as the file has it, None where it has none."""

    where: str
    texts: tuple[str, ...]
    label: Any = None


def read_rows(path: str | Path, data: DataConfig, *, labelled: bool = True) -> list[Row]:
    """The rows of a file, by the columns that `data` names or else the usual ones. `labelled`: whether each
    has to have a label. Raises `NeojaxError`, which names the row."""
    task = TASKS[data.task]
    named = [data.text, data.text2, data.label]
    if not any(named) and task.columns and str(path).endswith((".tsv", ".csv")):
        named = ["" if column is None else str(column) for column in task.columns]
    numbered = any(name.isdigit() for name in named)
    records = read_records(path, header=not numbered, skips_short=data.task == "qqp")  # as its files want it
    texts, label = _columns(records[0], named, labelled)
    return [_row(record, texts, label, task, labelled) for record in records]


def _columns(first: Record, named: Sequence[str], labelled: bool) -> tuple[list[str], str | None]:
    """The names of the columns of text and of the label."""
    text, text2, label = named
    have = first.values
    if text:
        texts = [text, *([text2] if text2 else [])]
    else:
        pair = next((p for p in TEXTS if all(name is None or name in have for name in p)), None)
        if pair is None:
            raise NeojaxError(
                f"{first.where}: none of the columns {', '.join(have)} is a usual one for text; name it with "
                "data.text (and data.text2, where there are two)"
            )
        texts = [name for name in (pair[0], text2 or pair[1]) if name]
    usual = next((name for name in LABELS if name in have and name not in texts), None)
    if labelled and not label and usual is None:
        raise NeojaxError(
            f"{first.where}: none of the columns {', '.join(have)} is a usual one for labels; name it with "
            "data.label"
        )
    return texts, label if label and (labelled or label in have) else usual


def _row(record: Record, names: Sequence[str], label: str | None, task: Task, labelled: bool) -> Row:
    values = record.values
    for name in (*names, *([label] if label and labelled else [])):
        if values.get(name) is None:
            raise NeojaxError(f"{record.where} has no {name!r}; it has {', '.join(values)}")
    texts = tuple(values[name] for name in names)
    for name, text in zip(names, texts):
        if not isinstance(text, str):
            raise NeojaxError(f"{record.where}: {name!r} is {text!r}; expected a text")
    own = None if label is None else values.get(label)
    return Row(record.where, texts, own if own is None else _label(record, label, own, task))


def _label(record: Record, name: Any, value: Any, task: Task) -> Any:
    """A number, or the name of a class, or of any number of classes a tuple."""
    if task.multilabel:
        found = value.split(",") if isinstance(value, str) else value
        if not isinstance(found, list) or not all(type(each) in (str, int) for each in found):
            raise NeojaxError(
                f"{record.where}: {name!r} is {str(value)[:60]!r}; expected a list of classes, or their "
                "names with commas between"
            )
        names = (str(each).strip() for each in found)
        return tuple(dict.fromkeys(each for each in names if each))
    if not task.is_number:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str | int):
            return str(value).strip()
        raise NeojaxError(f"{record.where}: {name!r} is {value!r}; expected the name or number of a class")
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or isinstance(value, bool):
        raise NeojaxError(f"{record.where}: {name!r} is {value!r}; expected a number")
    return number


def label_names(rows: Sequence[Row], task: Task, where: str) -> tuple[str, ...]:
    """The names of the classes in their order: the task's, or those that `rows` have, sorted. Raises
    `NeojaxError` where there are too few or too many."""
    if task.is_number:
        return ("LABEL_0",)
    if task.labels:
        return task.labels
    found = {label for row in rows for label in row.label} if task.multilabel else {r.label for r in rows}
    if not found:
        raise NeojaxError(f"{where}: no row has a label; expected classes")
    if len(found) < 2 and not task.multilabel:
        raise NeojaxError(f"{where}: every row has the label {found.pop()!r}; expected two classes or more")
    if len(found) > MOST:
        raise NeojaxError(
            f"{where} has {len(found):,} different labels in {len(rows):,} rows; is data.label the right "
            f"column? "
            "Numbers are for data.task=regression"
        )
    is_number = all(_NUMBER.fullmatch(name) for name in found)
    return tuple(sorted(found, key=int if is_number else str))


def labels_of(rows: Sequence[Row], names: Sequence[str] | None) -> np.ndarray:
    """[rows]: the number of each row's class among `names`, int32; where any number may hold, float32 [rows,
    names], 1 for those that do; without names, numbers, float32. Raises `NeojaxError` as `class_of`."""
    if names is None:
        return np.array([row.label for row in rows], np.float32)
    if not isinstance(rows[0].label, tuple):
        return np.array([class_of(row.where, row.label, names) for row in rows], np.int32)
    found = np.zeros((len(rows), len(names)), np.float32)
    for number, row in enumerate(rows):
        found[number, [class_of(row.where, label, names) for label in row.label]] = 1
    return found


def class_of(where: str, label: str, names: Sequence[str]) -> int:
    """The number of a class among `names`; where they are words and the label is a number, this. Raises
    `NeojaxError` for a label that is not among them."""
    if label in names:
        return names.index(label)
    if not any(name.isdecimal() for name in names) and label.isdecimal() and int(label) < len(names):
        return int(label)
    shown = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
    raise NeojaxError(
        f"{where}: the label {label!r} is none of the model's, {shown}; mend the row, or give all of them as "
        "model.head.labels"
    )
