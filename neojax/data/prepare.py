"""`neojax prepare`: text in any usual container to a folder of token stores.

The folder holds `train` and `validation` stores, `tokenizer.json`, and `prepared.json`, written last, which
says what they hold. All is written inside `OUT/unfinished` first, so that an interrupted run leaves nothing
that looks finished.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress import TransferSpeedColumn as Speed

from neojax.cores import cores
from neojax.data import chat_template, readers, record_index, tfrecord
from neojax.data import tokenizer as tokenizers_
from neojax.data.encode import Encoded, Piece, Settings, already_encoded, decode, split_of, to_bytes
from neojax.data.inputs import expand
from neojax.data.memory import longest_piece
from neojax.data.readers import Record, Skip
from neojax.data.sentences import WAYS
from neojax.data.store import SPLITS, StoreWriter
from neojax.data.tfrecord import is_tfrecord
from neojax.data.workers import Pool
from neojax.errors import NeojaxError
from neojax.files import named
from neojax.lock import Lock
from neojax.version import __version__

VALIDATION = 0.01
TRAINING_TEXT = 4 << 30  # bytes of training text a new tokenizer is made from; more hardly changes it
_TASK = 1 << 19  # bytes encoded by one process at a time
_LONG = 1 << 22  # bytes from which on a document is cut and encoded by several processes


@dataclass
class Part:
    """What one store holds; `bytes` are of UTF-8 text, and sentences are counted where they were kept."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    sentences: int = 0


@dataclass
class Counts:
    """What `prepare` wrote, and what it passed over: reason -> how many, reason -> the first of them."""

    train: Part = field(default_factory=Part)
    validation: Part = field(default_factory=Part)
    skipped: dict[str, int] = field(default_factory=dict)
    first_skipped: dict[str, str] = field(default_factory=dict)

    @property
    def documents(self) -> int:
        return self.train.documents + self.validation.documents

    @property
    def tokens(self) -> int:
        return self.train.tokens + self.validation.tokens

    @property
    def bytes(self) -> int:
        return self.train.bytes + self.validation.bytes

    def skip(self, skip: "Skip") -> None:
        self.skipped[skip.reason] = self.skipped.get(skip.reason, 0) + 1
        self.first_skipped.setdefault(skip.reason, skip.where)

    def lines(self) -> list[str]:
        """The counts for a reader, a line each; names of files that are no text are shown escaped."""
        rows = [
            f"{name:<10}  {part.documents:>12,} documents  {part.tokens:>15,} tokens  {part.bytes:>16,} bytes"
            + (f"  {part.sentences:>12,} sentences" if part.sentences else "")
            for name, part in (("train", self.train), ("validation", self.validation))
        ]
        rows += [
            f"skipped     {n:>12,} {reason} (the first: {self.first_skipped[reason]})"
            for reason, n in self.skipped.items()
        ]
        return [row.encode("utf-8", "backslashreplace").decode() for row in rows]


def prepare(
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    tokenizer: str | Path | None = None,
    train_tokenizer: int | None = None,
    tokenizer_kind: str | None = None,
    cased: bool = False,
    validation: float = VALIDATION,
    workers: int | None = None,
    text_key: str = "text",
    eod: str | None = None,
    sentences: str | None = None,
    paragraphs: bool = False,
    force: bool = False,
    progress: bool = False,
) -> Counts:
    """Encodes all documents of `inputs` (files, folders, globs) into the folder `out`.

    Give either `tokenizer`, a file that `neojax.data.tokenizer.load` takes, or `train_tokenizer`, the
    vocabulary size of one to train on the training documents: of `tokenizer_kind`, which is bpe where it is
    not given, `cased` or not (see `neojax.data.tokenizer.train`). Documents keep the order of the inputs;
    each ends with the end-of-document token (`eod`, or the tokenizer's usual one); a share `validation` of
    them, chosen by a hash of their text, is held out. Inputs that are TFRecords of token ids come last: each
    of their examples is a document, and is kept as it is. Nothing of the result depends on `workers`, the
    number of encoding processes (default: one for each core). `sentences`, one of
    `neojax.data.sentences.WAYS`, keeps where the sentences of a document end, as training on pairs of
    segments needs; with `paragraphs`, a blank line ends a document. Raises `NeojaxError`; a finished `out` is
    only replaced with `force`.
    """

    if (tokenizer is None) == (train_tokenizer is None):
        raise NeojaxError("give either --tokenizer tokenizer.json or --train-tokenizer VOCAB_SIZE")
    kind = tokenizer_kind or "bpe"
    if train_tokenizer is None and (tokenizer_kind is not None or cased):
        raise NeojaxError("--tokenizer-kind and --cased are for a tokenizer that --train-tokenizer N trains")
    if cased and kind == "bpe":
        raise NeojaxError("--cased is for --tokenizer-kind wordpiece and unigram; bpe always keeps case")
    if sentences is not None and sentences not in WAYS:
        raise NeojaxError(f"--sentences {sentences}: expected one of {', '.join(WAYS)}")
    if not 0 <= validation < 1:
        raise NeojaxError(f"--validation {validation}: expected a share of the documents, from 0 to below 1")
    if workers is not None and workers < 1:
        raise NeojaxError(f"--workers {workers}: expected at least 1")
    out, files, skipped = outside(inputs, out)
    with Lock(out):
        counts = begun(out, skipped, force)
        cutting = Cutting(validation, text_key, sentences, paragraphs)
        run = _Run(files, out / "unfinished", cutting, workers or cores(), progress, counts)
        made = Tokenizing(tokenizer, train_tokenizer, kind, cased, eod)
        fill(out, run.folder, lambda: run.write(made, [str(i) for i in inputs]))
    return counts


def outside(inputs: Sequence[str | Path], out: str | Path) -> tuple[Path, list[Path], list[Skip]]:
    """The folder `out`, the files of `inputs` that do not lie in it, and what is passed over. Raises
    `NeojaxError` where `out` is a file, or no file is left."""
    out = named(out, "--out")
    if out.exists() and not out.is_dir():
        raise NeojaxError(f"--out {out} is a file; expected a folder")
    inside = out.resolve()
    files, skipped = expand(inputs)
    skipped += [Skip(str(f), "lies in --out") for f in files if inside in f.resolve().parents]
    files = [f for f in files if inside not in f.resolve().parents]
    if not files:
        raise NeojaxError(f"every input lies in --out {out}; choose another folder")
    return out, files, skipped


def begun(out: Path, skipped: Iterable[Skip], force: bool) -> Counts:
    """Counts that hold the inputs `skipped`. Raises `NeojaxError` where `out` holds prepared data that is not
    to be replaced, as `force` would have it."""
    if (out / "prepared.json").exists() and not force:
        raise NeojaxError(f"--out {out} holds prepared data already; choose another folder or add --force")
    counts = Counts()
    for skip in skipped:
        counts.skip(skip)
    return counts


def fill(out: Path, staging: Path, write: Callable[[], None]) -> None:
    """Moves into `out` what `write` writes into the folder `staging`, when it is complete."""

    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir()
        write()
        # Last out, first in: while any part is replaced, the folder does not count as prepared.
        names = [f"{split}{suffix}" for suffix in (".idx", ".bin") for split in ("train", "validation")]
        kept = [record_index.beside(Path(name)).name for name in names]
        kept += [
            f"{split}_scored{suffix}" for suffix in (".idx", ".bin") for split in ("train", "validation")
        ]
        kept.append(chat_template.FILE)
        names = ["prepared.json", *names, *kept, "tokenizer.json"]
        for name in names:
            (out / name).unlink(missing_ok=True)
        for name in reversed(names):
            if name not in kept or (staging / name).exists():
                os.replace(staging / name, out / name)
    except OSError as e:
        raise NeojaxError(f"--out {out}: {e.strerror or e}: {e.filename or 'while writing'}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


class Cutting(NamedTuple):
    """What of the inputs is a document, a sentence, and held out; see `prepare`."""

    validation: float
    text_key: str
    sentences: str | None
    paragraphs: bool


class Tokenizing(NamedTuple):
    """The tokenizer of a preparation: read from `path`, or trained; and the token that ends a document."""

    path: str | Path | None
    n_vocab: int | None
    kind: str
    cased: bool
    end: str | None


@dataclass
class _Again:
    """What `iterate` gives, as often as it is iterated over."""

    iterate: Callable[[], Iterator[str]]

    def __iter__(self) -> Iterator[str]:
        return self.iterate()


@dataclass
class _Run:
    """One preparation: its files are read once for a new tokenizer, and once for the tokens."""

    files: list[Path]
    folder: Path
    cutting: Cutting
    workers: int
    progress: bool
    counts: Counts

    def write(self, made: Tokenizing, inputs: list[str]) -> None:

        if made.n_vocab is not None:
            texts = _Again(self._training_texts)
            tokenizer = tokenizers_.train(texts, made.n_vocab, made.kind, made.cased)
        else:
            assert made.path is not None
            tokenizer = tokenizers_.load(made.path)
        end, end_id = tokenizers_.end_of_document(tokenizer, made.end)
        n_ids = tokenizers_.n_ids(tokenizer)
        sources = [tfrecord.TFRecords(f, [f]) for f in self.files if tfrecord.is_tfrecord(f)]
        for source in sources:
            if source.extremes[1] >= n_ids:
                raise NeojaxError(
                    f"{source} holds id {source.extremes[1]}, but the tokenizer has {n_ids} ids; is it "
                    "theirs?"
                )
        cutting = self.cutting
        settings = Settings(tokenizer.to_str(), end_id, *cutting)
        is_whole = cutting.sentences is None and not cutting.paragraphs
        long = _LONG if is_whole and tokenizers_.is_splittable(tokenizer) else None
        counts = self.counts
        with contextlib.ExitStack() as stack:
            writers = {s: stack.enter_context(StoreWriter(self.folder / s, n_ids)) for s in SPLITS}
            pool = stack.enter_context(Pool(self.workers, settings))
            for encoded in pool.map(self._tasks("encoding", counts, long)):
                _write(encoded, writers, counts, cutting.sentences is not None)
            for source in sources:
                for document in source.examples():
                    _write(already_encoded(document, cutting.validation), writers, counts, False)
            if not counts.train.documents:
                raise NeojaxError(_nothing(counts))
        text = tokenizer.to_str(pretty=True)
        (self.folder / "tokenizer.json").write_text(text, encoding="utf-8")
        about: dict[str, Any] = {
            "neojax": __version__,
            "inputs": inputs,
            "files": len(self.files),
            "validation_fraction": cutting.validation,
            "sentence_ends": cutting.sentences,
            "tokenizer": {
                "source": "trained" if made.path is None else str(made.path),
                "n_vocab": n_ids,
                "end_of_document": end,
                "end_of_document_id": end_id,
            },
            **dataclasses.asdict(counts),
        }
        text = json.dumps(about, indent=2, ensure_ascii=False)
        (self.folder / "prepared.json").write_bytes(text.encode("utf-8", "backslashreplace"))

    def _training_texts(self) -> Iterator[str]:
        """The training documents, up to `TRAINING_TEXT` bytes of them."""

        total = 0
        for record in self._read("training the tokenizer"):
            text = record if isinstance(record, Skip) else decode(record, self.cutting.text_key)
            if not isinstance(text, Skip):
                text, raw = to_bytes(text)
                if split_of(raw, self.cutting.validation) == "train":
                    yield text
                    total += len(raw)
                    if total > TRAINING_TEXT:
                        return

    def _tasks(self, title: str, counts: Counts, long: int | None) -> Iterator["list[Record] | Piece"]:
        """Records in groups of about `_TASK` bytes; documents of over `long` bytes in pieces."""

        task: list[Record] = []
        size = 0
        for record in self._read(title):
            if isinstance(record, Skip):
                counts.skip(record)
                continue
            is_long = long is not None and len(record.data) > long and not record.is_json
            if is_long and isinstance(text := decode(record, self.cutting.text_key), str):
                if task:
                    yield task
                    task, size = [], 0
                side = split_of(record.data, self.cutting.validation)
                if max(map(len, tokenizers_.split(text, _TASK))) > longest_piece(self.workers):
                    counts.skip(Skip(record.where, "holds more without a blank than can be encoded at once"))
                    continue
                pieces = tokenizers_.split(text, _TASK)
                piece = next(pieces)
                for following in pieces:
                    yield Piece(piece, side, is_last=False)
                    piece = following
                yield Piece(piece, side, is_last=True)
                continue
            task.append(record)
            size += len(record.data)
            if size >= _TASK:
                yield task
                task, size = [], 0
        if task:
            yield task

    def _read(self, title: str) -> "Iterator[Record | Skip]":
        """The records of all files, with a progress bar over their bytes."""

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            Speed(),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        is_shown = (
            self.progress and console.is_terminal
        )  # a log has no use for it, and may lie on a full disk
        with Progress(*columns, console=console, disable=not is_shown) as bar:
            shown = bar.add_task(title, total=sum(map(readers.size, self.files)))
            for file in self.files:
                if is_tfrecord(file):  # not text
                    bar.advance(shown, readers.size(file))
                    continue
                yield from readers.read(file, self.cutting.text_key, lambda n: bar.advance(shown, n))


def _write(
    encoded: "Encoded", writers: "dict[str, StoreWriter]", counts: Counts, keeps_sentences: bool
) -> None:
    for skip in encoded.skipped:
        counts.skip(skip)
    for split, tokens in encoded.tokens.items():
        part: Part = getattr(counts, split)
        part.tokens += len(tokens)
        part.bytes += encoded.n_bytes[split]
        if encoded.sentences is not None:
            sizes, sentences = encoded.sizes[split], encoded.sentences[split]
            writers[split].add(tokens, sizes, sentences)
            part.documents += len(sentences)
            part.sentences += len(sizes) if keeps_sentences else 0
        else:
            writers[split].append(tokens)
            if not encoded.is_open:
                writers[split].end_document()
                part.documents += 1


def _nothing(counts: Counts) -> str:
    if counts.validation.documents:
        return (
            f"all {counts.validation.documents} documents fell into validation; lower --validation or give "
            f"more"
        )
    reasons = "; ".join(f"{n} {reason}" for reason, n in list(counts.skipped.items())[:4])
    return f"no documents in the inputs ({reasons or 'they hold no records'}); see --text-key for other names"
