"""The rows of a fine-tuning task, read, encoded, and with the classes that they have."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from neojax.config import TASKS, Config, HeadConfig
from neojax.data.examples import Example, Examples, Frame
from neojax.data.labelled import Row, class_of, label_names, read_rows
from neojax.errors import NeojaxError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TaskRows:
    """The examples of a run with data.task: those of `train`, and of all `files` by their path. `config` is
    the run's, with the labels that the rows have where none are named; `notes`: what is to be said of them.
    Raises `NeojaxError`, which names the row, for what is not as the task has it."""

    def __init__(self, config: Config, tokenizer: "Tokenizer"):
        data, task = config.data, TASKS[config.data.task]
        if not data.train:
            raise NeojaxError(f"data.train is empty; name a file of rows for data.task={data.task}")
        rows = {s.path: read_rows(s.path, data) for s in (*data.train, *data.validation)}
        names = config.model.head.labels
        if names == HeadConfig().labels or task.is_number:
            own = [row for source in data.train for row in rows[source.path]]
            names = label_names(own, task, data.train[0].path)
        head = replace(config.model.head, labels=names)
        self.config = replace(config, model=replace(config.model, head=head))
        frame = Frame.of(config.model, tokenizer, f"data.task={data.task}")
        most = data.max_tokens or config.model.n_ctx
        classes = None if task.is_number else names
        self.files = {path: encoded(path, own, tokenizer, frame, most, classes) for path, own in rows.items()}
        self.train = Examples(
            data.train[0].path, [e for s in data.train for e in self.files[s.path].examples], frame, most
        )
        self.notes = [
            f"{path}: {own.n_cut:,} of {len(own):,} rows are longer than {most} tokens and are cut"
            for path, own in self.files.items()
            if own.n_cut
        ]
        if classes:
            self.notes.append(f"labels {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}")


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
