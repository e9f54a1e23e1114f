"""Held-out documents, from token stores or from text, as a model reads and measures count them."""

import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from neojax.data import tokenizer as tokenizers
from neojax.data.encode import decode, to_bytes
from neojax.data.inputs import expand
from neojax.data.readers import Skip, read
from neojax.data.sources import TokenSource, end_of_document_id, open_source
from neojax.data.store import SPLITS, strip_suffix
from neojax.data.tfrecord import is_tfrecord
from neojax.errors import NeojaxError
from neojax.evaluate import wikitext
from neojax.models import Transformer
from neojax.sampling.requests import tokenizer_of
from neojax.storage.remote import place

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, eq=False)
class Document:
    """One document: where it is, its token ids, and of its text the bytes in UTF-8 and the words; None where
    there is no tokenizer that knows the text."""

    name: str
    tokens: np.ndarray
    n_bytes: int | None
    n_words: int | None


@dataclass(frozen=True)
class Reading:
    """How text files are read: the key of JSON lines and Parquet that holds the text; whether the files are
    WikiText's raw ones; whether such a file is one stream, as Hugging Face joins it, or pages."""

    text_key: str = "text"
    wikitext: bool = False
    joined: bool = False


def documents(model: Transformer, data: str, reading: Reading, split: str = "") -> Iterator[Document]:
    """The documents of `data`: a token store, a folder that `neojax prepare` wrote (its held-out part),
    TFRecords, or text that `prepare` would read. `split` is as for `open_source`. Raises `NeojaxError`."""
    if is_stored(data):
        if reading.wikitext:
            raise NeojaxError(f"--wikitext is for WikiText's raw text, and {data} holds tokens; leave it out")
        return _stored(model, open_source(data, "validation", split))
    return _texts(model, data, reading)


def is_stored(data: str) -> bool:
    """Whether `data` is tokens, not text."""
    path = place(data)
    if path.is_dir():
        names = {"prepared.json", *(f"{name}.idx" for name in SPLITS)}
        return any((path / name).is_file() for name in names) or any(map(is_tfrecord, path.glob("*")))
    prefix = strip_suffix(data)
    return (
        path.suffix in (".bin", ".idx")
        or prefix.with_name(f"{prefix.name}.idx").is_file()
        or is_tfrecord(path)
    )


def count_words(text: str) -> int:
    """The words of a text as lm-evaluation-harness counts them: one more than its runs of blanks."""
    return len(re.split(r"\s+", text))


def _stored(model: Transformer, source: TokenSource) -> Iterator[Document]:
    """The documents of a store without the token that ends each, which a text has not either."""
    tokenizer = model.tokenizer
    _check_tokenizer(model, source)
    n_vocab = model.config.n_vocab
    if source.extremes[1] >= n_vocab:
        raise NeojaxError(
            f"{source} holds id {source.extremes[1]}, but the model has {n_vocab}; is it the model's data?"
        )
    end = end_of_document_id(source)
    end = model.eos_token_id if end is None else end
    starts = source.starts
    for i in range(len(starts) - 1):
        tokens = np.asarray(source.read(int(starts[i]), int(starts[i + 1])), np.int32)
        tokens = tokens[:-1] if len(tokens) and tokens[-1] == end else tokens
        text = None if tokenizer is None else tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
        yield Document(
            f"{source.folder.name}:{i + 1}",
            tokens,
            None if text is None else len(text.encode(errors="replace")),
            None if text is None else count_words(text),
        )


def _check_tokenizer(model: Transformer, source: TokenSource) -> None:
    """Raises `NeojaxError` where the tokenizer beside a store gives other ids than the model's."""
    path = source.folder / TOKENIZER
    if model.tokenizer is None or not path.is_file():
        return
    if tokenizers.load(path).get_vocab() != model.tokenizer.get_vocab():
        raise NeojaxError(
            f"{source} was made with another tokenizer ({path}) than the model's, so that its ids mean other "
            "text; give the text itself, or prepare it with the model's tokenizer.json"
        )


def _texts(model: Transformer, data: str, reading: Reading) -> Iterator[Document]:
    tokenizer = tokenizer_of(model, "text")
    splits = tokenizers.is_splittable(tokenizer)
    files, skipped = expand([data])
    reasons = Counter(skip.reason for skip in skipped)
    for file in files:
        for record in read(file, reading.text_key, lambda _: None):
            text = record if isinstance(record, Skip) else decode(record, reading.text_key)
            if isinstance(text, Skip):
                reasons[text.reason] += 1
                continue
            for number, (original, shown) in enumerate(_parts(text, reading), start=1):
                name = f"{record.where}:{number}" if reading.wikitext and not reading.joined else record.where
                shown, _ = to_bytes(shown)
                pieces = list(tokenizers.split(shown)) if splits else [shown]
                found = tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
                ids = np.concatenate([np.array(piece.ids, np.int32) for piece in found])
                yield Document(name, ids, len(to_bytes(original)[1]), count_words(original))
    for reason, count in reasons.items():
        warnings.warn(f"{data}: {count} skipped: {reason}", stacklevel=2)


def _parts(text: str, reading: Reading) -> Iterator[tuple[str, str]]:
    """The documents of a text, as they are counted and as the model reads them."""
    if not reading.wikitext:
        yield text, text
    elif reading.joined:
        whole = wikitext.joined(text)
        yield whole, whole
    else:
        for page in wikitext.pages(text):
            yield page, wikitext.detokenized(page)
