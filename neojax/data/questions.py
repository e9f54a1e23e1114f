"""Questions about a passage whose answers are spans of it: SQuAD's files, and rows of the same.

SQuAD 1.1 is https://arxiv.org/abs/1606.05250; 2.0, whose questions may have no answer,
https://arxiv.org/abs/1806.03822.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from neojax.config import DataConfig
from neojax.config.tasks import TASKS, Task
from neojax.data.records import Record, listed, read_json, read_records, record_of
from neojax.errors import NeojaxError
from neojax.storage.remote import place


class Answer(NamedTuple):
    """A span of the passage: its text, and the number of its first character."""

    text: str
    start: int


class Question(NamedTuple):
    """Where a question stands, what it is called, its text, the passage, and the answers that people gave,
    none where there is none; None where the file does not say."""

    where: str
    id: str
    text: str
    context: str
    answers: tuple[Answer, ...] | None = None


def read_questions(path: str | Path, data: DataConfig, *, labelled: bool = True) -> list[Question]:
    """The questions of a file: SQuAD's JSON, `{"data": [{"paragraphs": [{"context", "qas"}]}]}`; or rows (a
    list in a `.json`, or a `.jsonl`) with `question`, `context`, `answers` and perhaps `id` (else a row's
    number is its id). Answers are `{"text": [...], "answer_start": [...]}` or a list of `{"text",
    "answer_start"}`; data.text, data.text2 and data.label name the columns of question, context and answers
    where they are called otherwise. `labelled`: whether each has to have its answers. Raises `NeojaxError`,
    which names the question, for what lacks, and for an answer that does not stand where it is said to."""
    task = TASKS[data.task]
    found = [_question(str(n), record, data, task, labelled) for n, record in enumerate(_records(path), 1)]
    if not found:
        raise NeojaxError(f"{path} holds no question")
    places: dict[str, Question] = {}
    for own in found:
        if (other := places.setdefault(own.id, own)) is not own:
            both = f"{own.where} and {other.where} have" if other.where != own.where else f"{path}: two have"
            raise NeojaxError(f"{both} the same id, {own.id!r}; give each its own")
    return found


def _records(path: str | Path) -> Sequence[Record]:
    """Rows with the keys `question`, `context`, `answers` and `id`, whatever the form of the file."""
    if place(path).suffix != ".json":
        return read_records(path)
    value = read_json(path)
    if isinstance(value, dict):
        value = value.get("data")
    if not isinstance(value, list):
        raise NeojaxError(f'{path}: expected {{"data": [...]}}, as SQuAD has it, or a list of questions')
    if any(isinstance(each, dict) and "paragraphs" in each for each in value):
        return list(_nested(path, value))
    return list(listed(path, value))


def _nested(path: str | Path, articles: list[Any]) -> Iterator[Record]:
    for a, article in enumerate(articles):
        for p, paragraph in enumerate(_list(article, "paragraphs", f"{path}, data[{a}]")):
            where = f"{path}, data[{a}].paragraphs[{p}]"
            for q, asked in enumerate(_list(paragraph, "qas", where)):
                own = record_of(f"{where}.qas[{q}]", asked)
                name = own.values.get("id")
                at = own.where if name is None else f"{path}, question {name}"
                yield record_of(at, {**own.values, "context": paragraph.get("context")})


def _list(value: Any, key: str, where: str) -> list[Any]:
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise NeojaxError(f"{where} has no list {key!r}, which SQuAD's files have there")
    return found


def _question(number: str, record: Record, data: DataConfig, task: Task, labelled: bool) -> Question:
    values, where = record.values, record.where
    texts = []
    for key in (data.text or "question", data.text2 or "context"):
        if not isinstance(text := values.get(key), str):
            said = f"is {str(text)[:60]!r}; expected a text" if key in values else "is not there"
            raise NeojaxError(f"{where}: {key!r} {said}; it has {', '.join(values)}")
        texts.append(text)
    question, context = texts
    key = data.label or "answers"
    own = _answers(values, key, context, where)
    if own is None and labelled:
        raise NeojaxError(f"{where} has no {key!r}; it has {', '.join(values)}")
    if own == () and not task.may_lack and labelled:
        raise NeojaxError(
            f"{where} has no answer; leave it out, or set data.task=squad_v2, whose questions may have none"
        )
    name = values.get("id")
    return Question(where, number if name is None else str(name), question, context, own)


def _answers(values: dict[str, Any], key: str, context: str, where: str) -> tuple[Answer, ...] | None:
    if values.get("is_impossible") is True:
        return ()
    given = values.get(key)
    if given is None:
        return None
    if isinstance(given, dict):
        texts, starts = given.get("text"), given.get("answer_start")
        is_one = isinstance(texts, str)
        texts, starts = ([texts], [starts]) if is_one else (texts, starts)
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise NeojaxError(
                f"{where}: {key!r} is {str(given)[:60]}; expected as many texts in 'text' as numbers in "
                "'answer_start'"
            )
        pairs = list(zip(texts, starts))
    elif isinstance(given, list) and all(isinstance(each, dict) for each in given):
        pairs = [(each.get("text"), each.get("answer_start")) for each in given]
    else:
        raise NeojaxError(
            f"{where}: {key!r} is {str(given)[:60]}; expected a list of objects with 'text' and "
            "'answer_start'"
        )
    return tuple(_answer(text, start, context, where) for text, start in pairs)


def _answer(text: Any, start: Any, context: str, where: str) -> Answer:
    if not isinstance(text, str) or not text.strip():
        raise NeojaxError(f"{where}: the text of an answer is {text!r}; expected some words of the passage")
    if type(start) is not int:
        raise NeojaxError(f"{where}: answer_start is {start!r}; expected the number of a character")
    if start < 0 or context[start : start + len(text)] != text:
        there = context.find(text)
        hint = "it stands nowhere in the passage" if there < 0 else f"it stands at {there}"
        raise NeojaxError(
            f"{where}: the answer {text[:40]!r} does not stand at answer_start={start}; {hint}; mend the row"
        )
    return Answer(text, start)
