"""`neojax data show RUN --step N`: the documents that a step of a run is trained on."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neojax.config import TASKS, Config
from neojax.data import tokenizer as tokenizers
from neojax.data.batch import NOT_SCORED, Batch
from neojax.data.examples import Rows
from neojax.data.loader import Place, train_batches, train_places
from neojax.data.packed import packed
from neojax.data.pairing import pairing_of
from neojax.data.task_rows import TaskRows
from neojax.errors import NeojaxError
from neojax.output import json_line

TOKENIZER = "tokenizer.json"


def show(config: Config, folder: Path, step: int, as_json: bool = False) -> None:
    """Prints every row of the batch of `step` of a run, whose tokenizer may lie in `folder`."""
    if step < 1:
        raise NeojaxError(f"--step {step}: the first step of a run is 1")
    tokenizer = tokenizer_of(config, folder)
    if config.data.task != "none":
        for row in task_rows(config, step, tokenizer):
            print(json_line(row) if as_json else task_text(row))
        return
    if config.data.pairs != "none":
        for row in pair_rows(config, step, tokenizer):
            print(json_line(row) if as_json else pair_text(row))
        return
    for row in rows(config, step):
        for document in row["documents"]:
            if tokenizer is not None:
                document["text"] = tokenizer.decode(document["tokens"], skip_special_tokens=False)
        print(json_line(row) if as_json else as_text(row))


def rows(config: Config, step: int) -> Iterator[dict[str, Any]]:
    """The rows of the global batch of `step` (the first is 1): step, microbatch, row in it, source, and
    documents: number in the source (of the example, where it was cut into these), the place in it of the
    first token shown, its length, and the token ids of the row that are its own, the last target included."""
    train = config.train
    each = train.microbatch or train.batch_size
    places = train_places(config.data, config.model.n_ctx, train.batch_size, train.seed, step - 1)
    for i, place in enumerate(places):
        yield {
            "step": step,
            "microbatch": i // each,
            "row": i % each,
            "source": str(place.source),
            "documents": list(documents(place)),
        }


def task_rows(config: Config, step: int, tokenizer: Any) -> Iterator[dict[str, Any]]:
    """The labelled rows of the global batch of `step`: step, microbatch, row in it, label (see `_label`),
    token ids and text, of choices those of each."""
    if tokenizer is None:
        raise NeojaxError(f"data.task={config.data.task} needs a tokenizer; set data.tokenizer")
    data, train = config.data, config.train
    rows: Rows
    if data.task == "sft":
        rows, names = packed(data.train[0].path, "train", data.max_tokens or config.model.n_ctx), None
    else:
        found = TaskRows(config, tokenizer)
        rows = found.train
        names = found.config.model.head.labels if TASKS[data.task].is_named else None
    each = train.microbatch or train.batch_size
    batch = next(rows.train_batches(train.batch_size, train.seed, step - 1, range(train.batch_size)))
    assert batch.segments is not None
    for i in range(train.batch_size):
        own, there = batch.tokens[i], batch.segments[i] > 0
        texts = [row[real].tolist() for row, real in zip(np.atleast_2d(own), np.atleast_2d(there))]
        tokens = texts[0] if own.ndim == 1 else [row for row in texts if row]
        label = _label(batch, i, data.task, names, tokenizer)
        text = tokenizer.decode_batch([row for row in texts if row], skip_special_tokens=False)
        yield {
            "step": step,
            "microbatch": i // each,
            "row": i % each,
            "label": label,
            "tokens": tokens,
            "text": text if own.ndim > 1 else text[0],
        }


def _label(batch: Batch, i: int, task: str, names: Sequence[str] | None, tokenizer: Any) -> Any:
    """What is to be said of row `i`: a class, a number, the number of a choice, or the text of an answer; of
    words a list of tags, of answers that are learnt one of their text, of several classes one of these."""
    if batch.labels is None:  # of tokens: those that are learnt, or their tags
        own = batch.targets[i][batch.targets[i] != NOT_SCORED].tolist()
        text = tokenizer.decode(own, skip_special_tokens=False) if names is None else ""
        return [text] if names is None else [names[tag] for tag in own]
    if TASKS[task].head == "question_answering":
        first, last = batch.labels[i]
        return tokenizer.decode(batch.tokens[i][first : last + 1].tolist(), skip_special_tokens=False)
    if names is None:
        return batch.labels[i].item()
    if TASKS[task].multilabel:
        return [name for name, holds in zip(names, batch.labels[i]) if holds]
    return names[batch.labels[i]]


def task_text(row: dict[str, Any]) -> str:
    """A labelled row for reading."""
    head = f"=== step {row['step']}, microbatch {row['microbatch']}, row {row['row']}: label {row['label']}"
    text = row["text"] if isinstance(row["text"], str) else "\n".join(row["text"])
    return f"{head}\n{text}"


def pair_rows(config: Config, step: int, tokenizer: Any) -> Iterator[dict[str, Any]]:
    """The rows of pairs of the global batch of `step`: step, microbatch, row in it, label, the token ids that
    the model sees, the places of the masked ones and their true ids; and the text of both."""
    train = config.train
    each = train.microbatch or train.batch_size
    pairing = pairing_of(config, None if tokenizer is None else tokenizer.to_str())
    size = train.batch_size
    batches = train_batches(config.data, config.model.n_ctx, size, train.seed, step - 1, pairing=pairing)
    batch = next(batches)
    assert batch.segments is not None and batch.labels is not None
    for i in range(size):
        is_own, is_masked = batch.segments[i] > 0, batch.targets[i] != NOT_SCORED
        tokens, masked = batch.tokens[i][is_own].tolist(), batch.targets[i][is_masked].tolist()
        yield {
            "step": step,
            "microbatch": i // each,
            "row": i % each,
            "label": int(batch.labels[i]),
            "tokens": tokens,
            "masked": np.flatnonzero(is_masked).tolist(),
            "targets": masked,
            "text": tokenizer.decode(tokens, skip_special_tokens=False),
            "target_text": [tokenizer.decode([id], skip_special_tokens=False) for id in masked],
        }


def pair_text(row: dict[str, Any]) -> str:
    """A row of a pair for reading."""
    head = f"=== step {row['step']}, microbatch {row['microbatch']}, row {row['row']}: label {row['label']}"
    return f"{head}\n{row['text']}\n--- masked: {' | '.join(row['target_text'])}"


def documents(place: Place) -> Iterator[dict[str, Any]]:
    """The documents, or parts of them, that stand in a row."""
    source, start, stop = place
    bounds = source.starts
    first = int(np.searchsorted(bounds, start, side="right")) - 1
    tokens = source.read(start, stop)
    for number in range(first, len(bounds) - 1):
        begin, end = int(bounds[number]), int(bounds[number + 1])
        if begin >= stop:
            return
        own = tokens[max(begin, start) - start : min(end, stop) - start]
        if len(own):
            yield {
                "document": number,
                "offset": max(start - begin, 0),
                "length": end - begin,
                "tokens": own.tolist(),
            }


def as_text(row: dict[str, Any]) -> str:
    """A row for reading: a line that says which, then each document under a line of its own."""
    lines = [f"=== step {row['step']}, microbatch {row['microbatch']}, row {row['row']}: {row['source']}"]
    for document in row["documents"]:
        first = document["offset"]
        last = first + len(document["tokens"])
        lines.append(
            f"--- document {document['document']}, tokens {first} to {last - 1} of {document['length']}"
        )
        lines.append(document["text"] if "text" in document else " ".join(map(str, document["tokens"])))
    return "\n".join(lines)


def tokenizer_of(config: Config, folder: Path) -> Any:
    """The tokenizer of the run in `folder`, else that of its data, else None."""
    places = [(folder / TOKENIZER, "")]
    places += [(Path(config.data.tokenizer), config.data.merges)] if config.data.tokenizer else []
    places += [(Path(source.path) / TOKENIZER, "") for source in config.data.train[:1]]
    found = next((place for place in places if place[0].is_file()), None)
    return None if found is None else tokenizers.load(*found)
