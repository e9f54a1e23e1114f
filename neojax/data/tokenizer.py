"""The tokenizer of prepared text: read from a file or trained, and its end-of-document token.

Byte-level BPE is GPT-2's kind; WordPiece is BERT's (`wordpiece`), unigrams are ALBERT's (`unigram`). Whatever
a tokenizer was read from, it is a `tokenizers.Tokenizer`, and is kept as a `tokenizer.json`.
"""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from neojax.data import byte_level, text_rules, unigram, wordpiece
from neojax.data.byte_level import END_OF_DOCUMENT
from neojax.data.text_rules import TextRules
from neojax.errors import NeojaxError, suggest
from neojax.storage.remote import place

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_OTHER_ENDS = ("</s>", "<|end_of_text|>", "<eos>", "[EOS]", "<|eos|>", "[SEP]")
FILES = ("tokenizer.json", "vocab.txt", "spiece.model")
KINDS = ("bpe", "wordpiece", "unigram")
# ids: every byte, and end of document; else special tokens and some characters
_LEAST = {"bpe": 257, "wordpiece": 32, "unigram": 32}
_PIECE = 1 << 22  # characters; what encoding holds in memory is a hundred times as many bytes

# Normalizers that look at a character and the marks on it, and know nothing of blanks.
_OF_CHARACTERS = ("BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "StripAccents", "Lowercase", "Precompiled")

# Before the blanks between words: GPT-2's pattern always ends a word there, and blanks go with what follows.
_BREAK = re.compile(r"(?<=\S)(?=[ \n])")


def load(path: str | Path, merges: str | Path = "") -> "Tokenizer":
    """Reads a `tokenizer.json`, a `vocab.txt` of WordPiece or a `spiece.model` of ALBERT, or the folder that
    holds one of them; a tokenizer_config.json beside the latter two says how they treat text. With `merges`,
    a `vocab.json` of GPT-2's byte-level BPE. Truncation and padding that it asks for are switched off. Raises
    `NeojaxError`."""
    path = place(path)
    if merges:
        return byte_level.read(path, place(merges))
    if path.is_dir():
        if not (found := file_in(path)):
            raise NeojaxError(f"tokenizer {path} is a folder without {', '.join(FILES)}; name a tokenizer")
        path = found
    if not path.is_file():
        raise NeojaxError(f"tokenizer {path} does not exist; expected a tokenizer.json")
    if path.suffix == ".txt":
        return wordpiece.read(path, text_rules.beside(path))
    if path.suffix == ".model":
        return unigram.read(path, text_rules.beside(path))
    return parse(path.read_bytes().decode("utf-8", errors="replace"), f"tokenizer {path}")


def file_in(folder: Path) -> Path | None:
    """The file of the tokenizer in `folder`; None where there is none."""
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


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


def train(texts: Iterable[str], n_vocab: int, kind: str = "bpe", cased: bool = False) -> "Tokenizer":
    """Trains a tokenizer of at most `n_vocab` ids on `texts`; the same texts give the same tokenizer.

    kind: bpe, a byte-level BPE as GPT-2's, in which `<|endoftext|>` is id 0; wordpiece, BERT's; unigram,
    ALBERT's. The latter two begin with special tokens for rows of segments, take away upper case and accents
    unless they are `cased`, and read `texts`, which may then be no iterator, twice. Raises `NeojaxError`.
    """
    if kind not in KINDS:
        raise NeojaxError(f"there is no tokenizer of kind {kind!r}{suggest(kind, KINDS)}")
    if n_vocab < _LEAST[kind]:
        what = "all bytes and end of document" if kind == "bpe" else "special tokens and some characters"
        raise NeojaxError(f"vocabulary size {n_vocab}: expected at least {_LEAST[kind]}, {what}")
    pieces = _Pieces(texts)
    rules = TextRules(lower_case=not cased)
    match kind:
        case "wordpiece":
            return wordpiece.train(pieces, n_vocab, rules)
        case "unigram":
            return unigram.train(pieces, n_vocab, rules)
    return _train_bpe(pieces, n_vocab)


class _Pieces:
    """Long texts in pieces, as often as they are iterated over."""

    def __init__(self, texts: Iterable[str]):
        self._texts = texts

    def __iter__(self) -> Iterator[str]:
        return (piece for text in self._texts for piece in split(text))


def _train_bpe(pieces: Iterable[str], n_vocab: int) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(pieces, trainer)
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


def first_tokens(tokenizer: "Tokenizer") -> tuple[int, ...]:
    """The tokens that its post-processor puts before every text, such as Llama's <s>; none for most."""
    found = tokenizer.encode("a")
    return tuple(id for id, _ in takewhile(lambda pair: pair[1], zip(found.ids, found.special_tokens_mask)))


def is_splittable(tokenizer: "Tokenizer") -> bool:
    """Whether a text cut by `split` gives the same tokens: true of byte-level BPE over GPT-2's words, and of
    what takes words apart at blanks, unless it adds tokens that take in the blanks beside them."""
    spec = json.loads(tokenizer.to_str())
    blanks = any(
        token["lstrip"]
        or token["rstrip"]
        or (len(token["content"].split()) and re.search(r"\s", token["content"]))
        for token in spec["added_tokens"]
    )
    steps = spec["pre_tokenizer"] or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    first = steps[0] if steps else {}
    if first.get("type") == "ByteLevel":
        words = len(steps) == 1 and first["use_regex"] and not first["add_prefix_space"]
        return words and not blanks and spec["normalizer"] in (None, {"type": "NFC"})
    normalizer = spec["normalizer"] or {"type": "Sequence", "normalizers": []}
    normal = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    within_words = all(step["type"] in _OF_CHARACTERS or _joins_blanks(step) for step in normal)
    return first.get("type") in ("WhitespaceSplit", "BertPreTokenizer") and within_words and not blanks


def _joins_blanks(step: dict) -> bool:
    """Whether a step of a normalizer takes away nothing but blanks beside blanks, or characters."""
    blank = step.get("pattern") == {"Regex": " {2,}"} and step.get("content") == " "
    return step["type"] == "Replace" and (
        blank or not re.search(r"\s", str(step["pattern"].get("String", " ")))
    )


def split(text: str, size: int = _PIECE) -> Iterator[str]:
    """Cuts a long text into pieces of about `size` characters, each but the first from the blanks before a
    word."""
    start = 0
    while len(text) - start > size and (cut := _BREAK.search(text, start + size)):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]
