"""The rows of a fine-tuning task, read, encoded, and with the classes that they have."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from neojax.config import TASKS, Config, DataConfig, HeadConfig
from neojax.data.answers import replies
from neojax.data.batch import NOT_SCORED
from neojax.data.choices import Choices, encode_choices, read_choices
from neojax.data.examples import Example, Examples, Frame, Rows
from neojax.data.labelled import Row, label_names, labels_of, read_rows
from neojax.data.questions import read_questions
from neojax.data.spans import Spans, spans_of
from neojax.data.squad_scores import squad_scores
from neojax.data.tagged import encode_tagged, entity_scores, read_tagged, tag_names, tags_at
from neojax.errors import NeojaxError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


Measure = Callable[[Mapping[int, np.ndarray]], dict[str, float]]
"""Logits by the number of the row -> metrics of the task."""


class TaskRows:
    """The examples of a run with data.task: those of `train`, and of all `files` by their path. `config` is
    the run's, with the labels that the rows have where none are named; `notes`: what is to be said of them.
    `measures`, by path: how answers are measured, where that asks for more than the label of each row. Raises
    `NeojaxError`, which names the row, for what is not as the task has it."""

    def __init__(self, config: Config, tokenizer: "Tokenizer"):
        data, task = config.data, TASKS[config.data.task]
        self.files: dict[str, Any] = {}  # Examples or Choices
        self.measures: dict[str, Measure] = {}
        self.notes: list[str] = []
        if not data.train:
            raise NeojaxError(f"data.train is empty; name a file of rows for data.task={data.task}")
        given = config.model.head.labels
        names = () if given == HeadConfig().labels or task.is_number else given
        most = data.max_tokens or config.model.n_ctx
        frame = Frame.of(config.model, tokenizer, f"data.task={data.task}")
        self.config = config
        if task.head == "question_answering":
            self._asked(config, tokenizer, frame, most)
        elif task.head == "multiple_choice":
            rows = {s.path: read_choices(s.path, data) for s in (*data.train, *data.validation)}
            self.files = {p: encode_choices(p, own, tokenizer, frame, most) for p, own in rows.items()}
        else:
            read = self._tagged if task.head == "token_classification" else self._labelled
            names = read(config, tokenizer, frame, most, names)
            head = replace(config.model.head, labels=names)
            self.config = replace(config, model=replace(config.model, head=head))
        self.train = joined([self.files[s.path] for s in data.train], frame)
        for path, own in self.files.items():
            if own.n_cut:
                self.notes.append(f"{path}: {cut_rows(own)}")
        if task.is_named:
            self.notes.append(f"labels {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}")
            if unseen := unseen_labels(self.train, names):
                self.notes.append(
                    f"WARNING: no row of data.train has the label {' or '.join(map(repr, unseen))}, which is "
                    "not learnt; leave it out of model.head.labels, or give rows with it"
                )

    def _labelled(
        self, config: Config, tokenizer: Any, frame: Frame, most: int, names: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Reads rows of texts with a label each; their names."""
        data, task = config.data, TASKS[config.data.task]
        rows = {s.path: read_rows(s.path, data) for s in (*data.train, *data.validation)}
        own = [row for source in data.train for row in rows[source.path]]
        names = names or label_names(own, task, data.train[0].path)
        classes = None if task.is_number else names
        self.files = {p: encoded(p, own, tokenizer, frame, most, classes) for p, own in rows.items()}
        return names

    def _tagged(
        self, config: Config, tokenizer: Any, frame: Frame, most: int, names: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Reads rows of words with a tag each; the tags."""
        data = config.data
        rows = {s.path: read_tagged(s.path, data) for s in (*data.train, *data.validation)}
        names = names or tag_names([row for source in data.train for row in rows[source.path]])
        for path, own in rows.items():
            self.files[path], places = encode_tagged(path, own, tokenizer, frame, most, names)
            tags = [row.tags or [] for row in own]
            self.measures[path] = partial(_entities, tuple(names), places, tags)
        return names

    def _asked(self, config: Config, tokenizer: Any, frame: Frame, most: int) -> None:
        """Reads questions and passages that hold the answers."""
        data = config.data
        rows = {s.path: read_questions(s.path, data) for s in (*data.train, *data.validation)}
        for path, own in rows.items():
            self.files[path] = spans = spans_of(path, own, tokenizer, frame, most, data.squad)
            self.measures[path] = partial(_answers, spans, data)
            self.notes += windows_told(path, spans, data)


def _entities(
    names: Sequence[str],
    places: Sequence[np.ndarray],
    tags: Sequence[list[str]],
    logits: Mapping[int, np.ndarray],
) -> dict[str, float]:
    which = sorted(logits)
    return entity_scores([tags_at(logits[i], places[i], names) for i in which], [tags[i] for i in which])


def _answers(spans: Spans, data: DataConfig, logits: Mapping[int, np.ndarray]) -> dict[str, float]:
    """Of the questions of which all windows are there; nothing where there is none."""
    may_lack = TASKS[data.task].may_lack
    found = replies(spans, logits, data.squad, may_lack)
    which = sorted(found)
    if not which:
        return {}
    return squad_scores([spans.questions[i] for i in which], [found[i] for i in which], may_lack)


def unseen_labels(rows: Any, names: Sequence[str]) -> list[str]:
    """Those of the classes `names` that no row of `rows` has."""
    seen = np.zeros(len(names), bool)
    for example in rows.examples:
        if example.targets is not None:
            seen[example.targets[example.targets != NOT_SCORED]] = True
        elif np.ndim(example.label):
            seen |= example.label > 0
        else:
            seen[example.label] = True
    return [name for name, is_there in zip(names, seen) if not is_there]


def joined(files: Sequence[Any], frame: Frame) -> Rows:
    """The rows of several files, one behind the other."""
    first = files[0]
    if isinstance(first, Choices):
        labels = np.concatenate([own.labels for own in files])
        return Choices(first.name, [row for own in files for row in own.rows], labels, frame, first.most)
    return Examples(first.name, [e for own in files for e in own.examples], frame, first.most)


def cut_rows(rows: Rows) -> str:
    """How many rows are cut, in words."""
    return f"{rows.n_cut:,} of {len(rows):,} rows are longer than {rows.most} tokens and are cut"


def windows_told(path: str, spans: Spans, data: DataConfig) -> list[str]:
    """What is to be said of the windows of questions."""
    found = [
        f"{path}: {len(spans.questions):,} questions, {len(spans):,} windows of at most {spans.most} tokens"
    ]
    if spans.n_long:
        found.append(
            f"{path}: {spans.n_long:,} questions are longer than {data.squad.max_query_length} tokens and "
            "are cut (data.squad.max_query_length)"
        )
    if spans.n_apart:
        found.append(
            f"{path}: the answer of {spans.n_apart:,} questions stands whole in no window; raise "
            "data.max_tokens or lower data.squad.doc_stride"
        )
    return found


def encoded(
    name: str, rows: list[Row], tokenizer: Any, frame: Frame, most: int, labels: tuple[str, ...] | None
) -> Examples:
    """Rows as examples of at most so many tokens; `labels` are the names of the classes, None where labels
    are numbers. Raises `NeojaxError` for a row without any token."""
    texts = [
        tokenizer.encode_batch(list(texts), add_special_tokens=False)
        for texts in zip(*(r.texts for r in rows))
    ]
    examples, n_cut = [], 0
    for row, label, *own in zip(rows, labels_of(rows, labels), *texts):
        tokens, types, is_cut = frame.row([each.ids for each in own], most)
        if not len(tokens):
            raise NeojaxError(f"{row.where}: the text is empty; leave the row out")
        examples.append(Example(tokens, types, label))
        n_cut += is_cut
    return Examples(name, examples, frame, most, n_cut)
