"""The rows of a fine-tuning task, read, encoded, and with the classes that they have."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from neojax.config import TASKS, Config, HeadConfig
from neojax.data.examples import Example, Examples, Frame
from neojax.data.labelled import Row, class_of, label_names, read_rows
from neojax.data.tagged import encode_tagged, read_tagged, tag_names
from neojax.errors import NeojaxError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TaskRows:
    """The examples of a run with data.task: those of `train`, and of all `files` by their path. `config` is
    the run's, with the labels that the rows have where none are named; `notes`: what is to be said of them.
    Of tagged rows, by path, `tags` has those of each row's words, and `places` the place of each word's first
    token. Raises `NeojaxError`, which names the row, for what is not as the task has it."""

    def __init__(self, config: Config, tokenizer: "Tokenizer"):
        data, task = config.data, TASKS[config.data.task]
        self.files: dict[str, Examples] = {}
        self.tags: dict[str, list[list[str]]] = {}
        self.places: dict[str, list[np.ndarray]] = {}
        if not data.train:
            raise NeojaxError(f"data.train is empty; name a file of rows for data.task={data.task}")
        given = config.model.head.labels
        names = () if given == HeadConfig().labels or task.is_number else given
        most = data.max_tokens or config.model.n_ctx
        frame = Frame.of(config.model, tokenizer, f"data.task={data.task}")
        read = self._tagged if task.head == "token_classification" else self._labelled
        names = read(config, tokenizer, frame, most, names)
        head = replace(config.model.head, labels=names)
        self.config = replace(config, model=replace(config.model, head=head))
        self.train = Examples(
            data.train[0].path, [e for s in data.train for e in self.files[s.path].examples], frame, most
        )
        self.notes = [
            f"{path}: {own.n_cut:,} of {len(own):,} rows are longer than {most} tokens and are cut"
            for path, own in self.files.items()
            if own.n_cut
        ]
        if not task.is_number:
            self.notes.append(f"labels {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}")

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
            self.files[path], self.places[path] = encode_tagged(path, own, tokenizer, frame, most, names)
            self.tags[path] = [row.tags or [] for row in own]
        return names


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
    for row, *own in zip(rows, *texts):
        tokens, types, is_cut = frame.row([each.ids for each in own], most)
        if not len(tokens):
            raise NeojaxError(f"{row.where}: the text is empty; leave the row out")
        label = np.float32(row.label) if labels is None else np.int32(class_of(row, labels))
        examples.append(Example(tokens, types, label))
        n_cut += is_cut
    return Examples(name, examples, frame, most, n_cut)
