"""Records to tokens: decoding, the split each document belongs to, and end-of-document tokens."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from neojax.data import sentences
from neojax.data import tokenizer as tokenizers_
from neojax.data.readers import Record, Skip
from neojax.data.store import SPLITS, token_dtype

_PARAGRAPHS = re.compile(r"\n(?:[^\S\n]*\n)+")
_GROUP = 1 << 22  # characters encoded together


class Settings(NamedTuple):
    """What an encoder needs to know. `tokenizer` is the content of a tokenizer.json."""

    tokenizer: str
    end_of_document: int
    validation: float
    text_key: str
    sentences: str | None = None
    """how sentences are told, which are kept then (`neojax.data.sentences.WAYS`)"""
    paragraphs: bool = False
    """whether a blank line ends a document"""


class Piece(NamedTuple):
    """Part of one long document whose split is known; `is_last` ends the document."""

    text: str
    split: str
    is_last: bool


@dataclass
class Encoded:
    """Tokens of one task: for each split whole documents, or part of one where `is_open`. Where `sentences`
    has how many sentences each document holds, `sizes` are theirs."""

    tokens: dict[str, np.ndarray]
    sizes: dict[str, np.ndarray]
    n_bytes: dict[str, int]
    sentences: dict[str, np.ndarray] | None = None
    skipped: list[Skip] = field(default_factory=list)
    is_open: bool = False

    @classmethod
    def nothing(cls, skipped: list[Skip]) -> "Encoded":
        """No documents, and why."""
        none = np.zeros(0, np.int32)
        return cls(
            dict.fromkeys(SPLITS, none),
            dict.fromkeys(SPLITS, none),
            dict.fromkeys(SPLITS, 0),
            dict.fromkeys(SPLITS, none),
            skipped,
        )

    @classmethod
    def joined(cls, parts: "list[Encoded]") -> "Encoded":
        """The whole documents of all parts, in their order."""
        return cls(
            {s: np.concatenate([p.tokens[s] for p in parts]) for s in SPLITS},
            {s: np.concatenate([p.sizes[s] for p in parts]) for s in SPLITS},
            {s: sum(p.n_bytes[s] for p in parts) for s in SPLITS},
            {s: np.concatenate([(p.sentences or {})[s] for p in parts]) for s in SPLITS},
            [skip for part in parts for skip in part.skipped],
        )


def decode(record: Record, text_key: str) -> str | Skip:
    """The text of a record, or why it has none."""
    where, data, is_json = record
    try:
        if not is_json:
            text = data.decode()
        else:
            value = json.loads(data)
            if not isinstance(value, dict) or text_key not in value:
                return Skip(where, f"no {text_key!r}")
            text = value[text_key]
            if isinstance(text, list) and all(isinstance(part, str) for part in text):
                text = "\n\n".join(text)  # lm_dataformat writes a document as its paragraphs, too
            if not isinstance(text, str):
                return Skip(where, f"{text_key!r} is not a text")
    except UnicodeDecodeError:
        return Skip(where, "not UTF-8 text")
    except (ValueError, RecursionError):
        return Skip(where, "not valid JSON")
    return text or Skip(where, "empty")


def to_bytes(text: str) -> tuple[str, bytes]:
    """A text and its UTF-8. JSON can hold half of a surrogate pair, which no encoding has: it becomes
    U+FFFD."""
    try:
        return text, text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return text, text.encode()


def split_of(text: bytes, validation: float) -> str:
    """The split a document belongs to. It depends on the text alone, so copies never end up on both sides."""
    share = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") / 2**64
    return SPLITS[share < validation]


def already_encoded(tokens: np.ndarray, validation: float) -> Encoded:
    """A document of token ids, to be written as it is; it counts no bytes of text."""
    split = split_of(tokens.astype("<i8").tobytes(), validation)
    one = np.ones(1, np.int32)
    return Encoded({split: tokens}, {split: one * len(tokens)}, dict.fromkeys(SPLITS, 0), {split: one})


class Encoder:
    """Encodes tasks: a list of records, or one piece of a long document."""

    def __init__(self, settings: Settings):
        from tokenizers import Tokenizer

        self._settings = settings
        self._tokenizer = Tokenizer.from_str(settings.tokenizer)
        self._dtype = token_dtype(tokenizers_.n_ids(self._tokenizer))
        self._split = (
            tokenizers_.split if tokenizers_.is_splittable(self._tokenizer) else lambda text: iter((text,))
        )
        self._end = np.array([settings.end_of_document], self._dtype)

    def __call__(self, task: list[Record] | Piece) -> Encoded:
        if isinstance(task, Piece):
            part = self._encode([task.text])[0]
            part = np.concatenate([part, self._end]) if task.is_last else part
            return Encoded(
                {task.split: part}, {}, {task.split: len(task.text.encode())}, is_open=not task.is_last
            )
        texts, splits, skipped = [], [], []
        n_bytes = dict.fromkeys(SPLITS, 0)
        for record in task:
            text = decode(record, self._settings.text_key)
            if isinstance(text, Skip):
                skipped.append(text)
                continue
            for document in _PARAGRAPHS.split(text) if self._settings.paragraphs else [text]:
                if self._settings.paragraphs and not document.strip():
                    continue
                document, raw = to_bytes(document)
                texts.append(document)
                splits.append(split_of(raw, self._settings.validation))
                n_bytes[splits[-1]] += len(raw)
        documents = self._sentences(texts)
        tokens, sizes, counts = {}, {}, {}
        for split in SPLITS:
            mine = [d for d, s in zip(documents, splits, strict=True) if s == split]
            parts = [sentence for document in mine for sentence in document]
            tokens[split] = np.concatenate(parts) if parts else np.zeros(0, self._dtype)
            sizes[split] = np.array([len(sentence) for sentence in parts], np.int32)
            counts[split] = np.array([len(document) for document in mine], np.int32)
        return Encoded(tokens, sizes, n_bytes, counts, skipped)

    def _sentences(self, texts: list[str]) -> list[list[np.ndarray]]:
        """The sentences of every text that have tokens, or where these are not kept all of it as one; the
        last ends with the end-of-document token."""
        way = self._settings.sentences
        cut = [[text] if way is None else sentences.split(text, way) for text in texts]
        encoded = iter(self._encode([sentence for document in cut for sentence in document]))
        documents = [[ids for _ in document if len(ids := next(encoded))] for document in cut]
        for document in documents:
            last = document.pop() if document else np.zeros(0, self._dtype)
            document.append(np.concatenate([last, self._end]))
        return documents

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        """Token ids of every text; memory is bounded even where a text is long."""
        found: list[list[np.ndarray]] = [[] for _ in texts]
        group: list[tuple[int, str]] = []

        def flush() -> None:
            encoded = self._tokenizer.encode_batch_fast([p for _, p in group], add_special_tokens=False)
            for (i, _), piece in zip(group, encoded, strict=True):
                found[i].append(np.array(piece.ids, self._dtype))
            group.clear()

        size = 0
        for i, text in enumerate(texts):
            for piece in self._split(text):
                group.append((i, piece))
                size += len(piece)
                if size >= _GROUP:
                    flush()
                    size = 0
        flush()
        return [pieces[0] if len(pieces) == 1 else np.concatenate(pieces) for pieces in found]
