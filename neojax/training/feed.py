"""What a run is fed: batches to train on and to be evaluated on, and the tokenizer that goes with them, of
text or of labelled rows."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol

import numpy as np

from neojax.config import Config, check
from neojax.config.tasks import TASKS
from neojax.data import tokenizer as tokenizers
from neojax.data.batch import Batch
from neojax.data.chat_template import find as find_template
from neojax.data.examples import rounded
from neojax.data.fingerprint import fingerprint
from neojax.data.loader import check_ids, train_batches, validation_batches
from neojax.data.packed import Packed, packed
from neojax.data.pairing import pairing_of
from neojax.data.share import Share
from neojax.data.sources import open_source
from neojax.data.task_rows import TaskRows
from neojax.errors import NeojaxError
from neojax.loading import tokenizer_at
from neojax.models import Transformer
from neojax.runs.run_dir import TOKENIZER
from neojax.storage.remote import place
from neojax.training.inputs import check_data, named_sources, read_end_of_document, read_tokenizer
from neojax.training.measures import measured
from neojax.training.step import evaluate, make_answer_step, make_eval_step

Until = Callable[[Iterator[Any]], Iterator[Any]]
"""Hands on what it is given, one by one, or raises where the run is to stop."""
Evaluation = Callable[[Any, Share, Until], dict[str, float]]
"""(parameters, share of this process, until) -> metrics, "loss" among them."""


class Feed(Protocol):
    """`tokenizer`: the text of tokenizer.json; `eos_token_id`: what ends a document; `fingerprints`: by split
    and path, what tells the data from other data; `notes`: what is to be said of it; `tokens_a_step`: those
    of a step, of labelled rows on the average and without padding."""

    config: Config
    tokenizer: str | None
    eos_token_id: int | None
    fingerprints: dict[str, Any]
    notes: list[str]
    tokens_a_step: float
    chat_template: str | None

    def lengths(self, multiple: int) -> set[int]:
        """Those that the rows of its batches may have, each a multiple of `multiple`."""

    def batches(self, step: int, share: Share) -> Iterator[Batch]:
        """Those of the run from `step` on: of each the rows of this process."""

    def evaluations(self, model: Transformer) -> dict[str, Evaluation]:
        """How `model` is evaluated, by the name that metrics show."""


class TextFeed:
    """Windows of text, or pairs of its segments, see `data.loader`."""

    chat_template: str | None = None

    def __init__(self, config: Config):
        self.config = config
        self.notes: list[str] = []
        self.tokens_a_step: float = config.train.batch_size * config.model.n_ctx
        sources, held_out = check_data(config)
        self.tokenizer: str | None = read_tokenizer(config, sources)
        self.eos_token_id = read_end_of_document(sources, self.tokenizer)
        self._pairing = pairing_of(config, self.tokenizer)
        self.fingerprints = {
            split: {s.path: fingerprint(source) for s, source in zip(getattr(config.data, split), opened)}
            for split, opened in (("train", sources), ("validation", held_out))
        }

    def lengths(self, multiple: int) -> set[int]:
        return {self.config.model.n_ctx}

    def batches(self, step: int, share: Share) -> Iterator[Batch]:
        config, size = self.config, self.config.train.batch_size
        return train_batches(
            config.data,
            config.model.n_ctx,
            size,
            config.train.seed,
            step,
            rows=share.of_batch(size),
            pairing=self._pairing,
        )

    def evaluations(self, model: Transformer) -> dict[str, Evaluation]:
        step = make_eval_step(model, self.config.train)

        def of(source: Any) -> Evaluation:
            def run(params: Any, share: Share, until: Until) -> dict[str, float]:
                batches = validation_batches(
                    self.config.data,
                    source,
                    self.config.model.n_ctx,
                    share.microbatch,
                    rows=share.held,
                    pairing=self._pairing,
                )
                few = islice(batches, self.config.train.eval_batches or None)
                return evaluate(step, params, until(few), share)[0]

            return run

        return {name: of(source) for name, source in named_sources(self.config.data.validation).items()}


class LabelledFeed:
    """Rows of labelled text, read whole. `config` becomes that of the run: the head has the labels that the
    rows have, where none are named, and steps and warmup follow from the epochs. Raises `NeojaxError`."""

    chat_template: str | None = None

    def __init__(self, config: Config):
        self.tokenizer: str | None
        self.eos_token_id: int | None
        self.tokenizer, tokenizer, self.eos_token_id = _tokenizer(config)
        self._rows = rows = TaskRows(config, tokenizer)
        config, train = rows.config, rows.config.train
        self._train = rows.train
        self.tokens_a_step: float = train.batch_size * float(self._train.lengths.mean()) * self._train.width
        self.fingerprints: dict[str, Any] = {
            split: {s.path: rows.files[s.path].fingerprint() for s in getattr(config.data, split)}
            for split in ("train", "validation")
        }
        self.config = with_steps(config, len(self._train))
        self.notes = [*rows.notes, _epochs(self.config, len(self._train))]

    def lengths(self, multiple: int) -> set[int]:
        # A batch has at least half as many rows of one epoch as it has rows, and is as long as the longest.
        fewest = -(-self.config.train.batch_size // 2)
        longest = np.unique(np.sort(self._train.lengths)[min(fewest, len(self._train)) - 1 :])
        return {rounded(int(length), self._train.most, multiple) for length in longest}

    def batches(self, step: int, share: Share) -> Iterator[Batch]:
        train = self.config.train
        size = train.batch_size
        multiple = share.layout.row_multiple
        return self._train.train_batches(size, train.seed, step, share.of_batch(size), multiple)

    def evaluations(self, model: Transformer) -> dict[str, Evaluation]:
        step = make_answer_step(model, self.config.train)

        def of(path: str) -> Evaluation:
            examples = self._rows.files[path]

            def run(params: Any, share: Share, until: Until) -> dict[str, float]:
                found: dict[int, np.ndarray] = {}
                order: list[list[int]] = []

                def answer(params: Any, batch: Batch) -> Any:
                    sums, own = step(params, batch)
                    found.update(zip(order[-1], model.layout.fetch(own)))
                    return sums

                def batches() -> Iterator[Batch]:
                    few = islice(examples.held_out(share.microbatch), self.config.train.eval_batches or None)
                    for chosen in few:
                        order.append(chosen)
                        yield examples.batch(chosen, share.held, share.layout.row_multiple)

                means, _ = evaluate(answer, params, until(batches()), share)
                found.pop(-1, None)
                return means | self._measured(path, found)

            return run

        return {name: of(s.path) for name, s in named_sources(self.config.data.validation).items()}

    def _measured(self, path: str, logits: dict[int, np.ndarray]) -> dict[str, float]:
        """The metrics of the task, of the rows whose `logits` these are."""
        rows, which = self._rows, sorted(logits)
        if path in rows.measures:
            return rows.measures[path](logits)
        metrics = TASKS[self.config.data.task].metrics
        return measured(metrics, np.stack([logits[i] for i in which]), rows.files[path].labels[which])


class AnswerFeed:
    """Sequences of which answers are learnt, packed into rows, see `data.packed`. `config` becomes that of
    the run, as for `LabelledFeed`. Raises `NeojaxError`."""

    def __init__(self, config: Config):
        data, train = config.data, config.train
        if len(data.train) != 1:
            raise NeojaxError(
                "data.task=sft: data.train is one folder that `neojax prepare --format sft` wrote"
            )
        most = data.max_tokens or config.model.n_ctx
        self._train = packed(data.train[0].path, "train", most)
        self._held_out = {
            name: packed(s.path, "validation", most) for name, s in named_sources(data.validation).items()
        }
        sources = [open_source(data.train[0].path, "train")]
        check_ids(
            [*sources, *(open_source(s.path, "validation") for s in data.validation)], config.model.n_vocab
        )
        text = read_tokenizer(config, sources)
        self.tokenizer: str | None = text
        self.eos_token_id: int | None = read_end_of_document(sources, text)
        self.chat_template: str | None = find_template(sources[0].folder)
        self.tokens_a_step: float = train.batch_size * most * self._train.filled
        self.fingerprints: dict[str, Any] = {
            "train": {data.train[0].path: self._train.fingerprint()},
            "validation": {
                s.path: self._held_out[name].fingerprint()
                for name, s in named_sources(data.validation).items()
            },
        }
        self.config = with_steps(config, len(self._train))
        self.notes = [
            note
            for name, own in (("train", self._train), *self._held_out.items())
            for note in _packing(name, own)
        ]
        self.notes.append(_epochs(self.config, len(self._train)))

    def lengths(self, multiple: int) -> set[int]:
        return {-(-int(length) // multiple) * multiple for length in self._train.lengths[:1]}

    def batches(self, step: int, share: Share) -> Iterator[Batch]:
        train = self.config.train
        size, multiple = train.batch_size, share.layout.row_multiple
        return self._train.train_batches(size, train.seed, step, share.of_batch(size), multiple)

    def evaluations(self, model: Transformer) -> dict[str, Evaluation]:
        step = make_eval_step(model, self.config.train)

        def of(rows: Packed) -> Evaluation:
            def run(params: Any, share: Share, until: Until) -> dict[str, float]:
                few = islice(rows.held_out(share.microbatch), self.config.train.eval_batches or None)
                multiple = share.layout.row_multiple
                batches = (rows.batch(chosen, share.held, multiple) for chosen in few)
                return evaluate(step, params, until(batches), share)[0]

            return run

        return {name: of(rows) for name, rows in self._held_out.items()}


def _packing(name: str, rows: Packed) -> list[str]:
    told = f"{name}: {rows.n_sequences:,} sequences in {len(rows):,} rows, {rows.filled:.1%} full; "
    told += f"{rows.n_scored:,} tokens are learnt"
    if rows.n_cut:
        told += f"; {rows.n_cut:,} are longer than a row and are cut"
    if rows.n_empty:
        told += f"; {rows.n_empty:,} have no answer within a row and are left out"
    return [told]


def with_steps(config: Config, rows: int) -> Config:
    """`config` with the steps and the warmup that its epochs over so many rows, and its shares, mean. Raises
    `NeojaxError`."""
    train, steps = config.train, config.train.steps
    if train.epochs:
        steps = max(1, math.ceil(train.epochs * rows / train.batch_size))
    share = train.warmup_share
    warmup = round(share * steps) if share else min(train.warmup_steps, steps - 1)
    config = replace(config, train=replace(train, steps=steps, warmup_steps=warmup))
    check(config)
    return config


def _epochs(config: Config, rows: int) -> str:
    size, steps = config.train.batch_size, config.train.steps
    return f"{rows:,} rows, {steps * size / rows:.1f} epochs of {-(-rows // size):,} steps"


def open_feed(config: Config) -> Feed:
    """What the run of `config` is fed. Raises `NeojaxError` where it is not as the run needs it."""
    if config.data.task == "none":
        return TextFeed(config)
    if config.data.task == "sft":
        return AnswerFeed(config)
    return LabelledFeed(config)


def _tokenizer(config: Config) -> tuple[str, Any, int | None]:
    """(text, tokenizer, end of a document) of data.tokenizer, else of train.init_from."""
    data, origin = config.data, config.train.init_from
    if data.tokenizer:
        tokenizer = tokenizers.load(place(data.tokenizer), data.merges)
        end = tokenizers.usual_end(tokenizer)
    elif origin:
        kept = place(config.train.run_dir) / TOKENIZER  # the run goes on where its origin is gone
        if not place(origin).exists() and kept.is_file():
            tokenizer = tokenizers.load(kept)
            return tokenizer.to_str(), tokenizer, tokenizers.usual_end(tokenizer)
        tokenizer, end = tokenizer_at(origin)
        if tokenizer is None:
            raise NeojaxError(f"train.init_from={origin} has no tokenizer; name one with data.tokenizer")
    else:
        raise NeojaxError(
            f"data.task={data.task} needs a tokenizer: give train.init_from, the model to begin with, or "
            "data.tokenizer"
        )
    if (size := tokenizers.n_ids(tokenizer)) > config.model.n_vocab:
        raise NeojaxError(
            f"the tokenizer has {size} ids but model.n_vocab={config.model.n_vocab}; set model.n_vocab to "
            f"at least "
            f"{size}"
        )
    return tokenizer.to_str(), tokenizer, end
