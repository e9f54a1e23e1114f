"""The tokenizer of prepared text: read from a `tokenizer.json` or trained, and its end-of-document token."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from neojax.errors import NeojaxError, suggest
from neojax.storage.remote import place

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_DOCUMENT = "<|endoftext|>"
_OTHER_ENDS = ("</s>", "<|end_of_text|>", "<eos>", "[EOS]", "<|eos|>", "[SEP]")
_LEAST = 257  # every byte, and end of document
_PIECE = 1 << 22  # characters; what encoding holds in memory is a hundred times as many bytes

# Before the blanks between words: GPT-2's pattern always ends a word there, and blanks go with what follows.
_BREAK = re.compile(r"(?<=\S)(?=[ \n])")


def load(path: str | Path) -> "Tokenizer":
    """Reads a `tokenizer.json`; truncation and padding that it asks for are switched off. Raises
    `NeojaxError`."""
    path = place(path)
    if not path.is_file():
        raise NeojaxError(f"tokenizer {path} does not exist; expected a tokenizer.json")
    return parse(path.read_bytes().decode("utf-8", errors="replace"), f"tokenizer {path}")


def parse(text: str, source: str) -> "Tokenizer":
    """As `load`, from the text of a `tokenizer.json`; `source` names it in errors."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as e:  # the library raises plain Exception
        raise NeojaxError(f"{source} is not a tokenizer.json: {' '.join(str(e).split())}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def train(texts: Iterable[str], n_vocab: int) -> "Tokenizer":
    """Trains a byte-level BPE as GPT-2's, of at most `n_vocab` ids; `<|endoftext|>` is id 0. The same texts
    give the same tokenizer. Raises `NeojaxError`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if n_vocab < _LEAST:
        raise NeojaxError(
            f"vocabulary size {n_vocab}: expected at least {_LEAST}, all bytes and end of document"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((piece for text in texts for piece in split(text)), trainer)
    return tokenizer


def n_ids(tokenizer: "Tokenizer") -> int:
    """One more than the largest id the tokenizer gives."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def end_of_document(tokenizer: "Tokenizer", name: str | None = None) -> tuple[str, int]:
    """The end-of-document token and its id: `name`, or the first usual one that is in the vocabulary. Raises
    `NeojaxError`."""
    for candidate in (name,) if name is not None else (END_OF_DOCUMENT, *_OTHER_ENDS):
        is_text = candidate == candidate.encode(errors="replace").decode()  # the library takes no other
        if is_text and (found := tokenizer.token_to_id(candidate)) is not None:
            return candidate, found
    if name is not None:
        near = suggest(name, [t for t in tokenizer.get_vocab() if len(t) > 2][:100_000])
        raise NeojaxError(f"end-of-document token {name!r} is not in the tokenizer's vocabulary" + near[:80])
    raise NeojaxError("the tokenizer has no usual end-of-document token; name one of its tokens with --eod")


def usual_end(tokenizer: "Tokenizer") -> int | None:
    """The id of the usual end-of-document token; None where the tokenizer has none."""
    try:
        return end_of_document(tokenizer)[1]
    except NeojaxError:
        return None


def is_splittable(tokenizer: "Tokenizer") -> bool:
    """Whether a text cut by `split` gives the same tokens: true of byte-level BPE over GPT-2's words, unless
    it adds tokens that take in the blanks beside them."""
    spec = json.loads(tokenizer.to_str())
    steps = spec["pre_tokenizer"] or {}
    words = steps.get("type") == "ByteLevel" and steps["use_regex"] and not steps["add_prefix_space"]
    blanks = any(
        token["lstrip"]
        or token["rstrip"]
        or (len(token["content"].split()) and re.search(r"\s", token["content"]))
        for token in spec["added_tokens"]
    )
    return words and not blanks and spec["normalizer"] in (None, {"type": "NFC"})


def split(text: str, size: int = _PIECE) -> Iterator[str]:
    """Cuts a long text into pieces of about `size` characters, each but the first from the blanks before a
    word."""
    start = 0
    while len(text) - start > size and (cut := _BREAK.search(text, start + size)):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]
