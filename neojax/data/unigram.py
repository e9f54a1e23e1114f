"""SentencePiece's unigram model, ALBERT's tokenizer: the split of a word whose pieces are likeliest together.

A piece that begins a word is written with ▁ before it. Kudo 2018, https://arxiv.org/abs/1804.10959. A
`spiece.model` is a protocol buffer (`ModelProto` of sentencepiece_model.proto), which is read here field by
field, and nothing of it is executed.

ALBERT cleans text before the model does: `` and '' become ", accents and upper case go. After it, Google's
code split a piece that ends in a digit and a comma anew without its comma. As in the published
tokenizer.json, such pieces are made too unlikely to be used instead.
"""

import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from neojax.data.alphabet import alphabet, within
from neojax.data.special_tokens import enclose
from neojax.data.text_rules import TextRules
from neojax.errors import NeojaxError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WORD = "\u2581"
SPECIAL = {"pad": "<pad>", "unk": "<unk>", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
UNLIKELY = 100.0  # taken off the log-probability of a piece that is not to be used
_ADDED = 1e-4  # between the log-probabilities of characters that a trainer adds in the end
_UNIGRAM = 1  # TrainerSpec.ModelType
_UNKNOWN = 2  # SentencePiece.Type; a piece without one is an ordinary piece, 1


class SpmModel(NamedTuple):
    """What of a `spiece.model` a tokenizer needs."""

    pieces: list[tuple[str, float]]
    """every piece with its log-probability, by id"""
    unk_id: int
    charsmap: bytes
    """how characters are normalised before, in SentencePiece's own form; empty: not at all"""


def read(path: Path, rules: TextRules) -> "Tokenizer":
    """The tokenizer of ALBERT's `spiece.model`. Raises `NeojaxError` for a file that is none, or that has no
    [CLS] and [SEP]: another model's, whose text rules are others."""
    try:
        model = parse(path.read_bytes())
    except OSError as e:
        raise NeojaxError(f"tokenizer {path} cannot be read: {e.strerror or e}") from None
    except ValueError as e:
        raise NeojaxError(f"tokenizer {path} is not a SentencePiece unigram model: {e}") from None
    names = {name for name, _ in model.pieces}
    if absent := [n for role in ("cls", "sep") if (n := rules.token(role, SPECIAL[role])) not in names]:
        raise NeojaxError(
            f"tokenizer {path} has no piece {' and no piece '.join(absent)}, as ALBERT's have; give its "
            "model's tokenizer.json instead"
        )
    pieces = [(name, score - UNLIKELY * _ends_in_digit_and_comma(name)) for name, score in model.pieces]
    try:
        return with_pieces(pieces, model.unk_id, rules, model.charsmap)
    except Exception as e:  # the library raises plain Exception
        raise NeojaxError(f"tokenizer {path} is damaged: {' '.join(str(e).split())}") from None


def with_pieces(
    pieces: list[tuple[str, float]], unk_id: int, rules: TextRules, charsmap: bytes | None = None
) -> "Tokenizer":
    """The tokenizer of these pieces, each with its log-probability, the special tokens among them. Characters
    are normalised by `charsmap`, or by NFKC."""
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.Unigram(pieces, unk_id, False))
    _set_text(tokenizer, rules, charsmap)
    ids = {name: id for id, (name, _) in enumerate(pieces)}
    special = {role: rules.token(role, name) for role, name in SPECIAL.items()}
    enclose(tokenizer, special, ids)
    return tokenizer


def train(texts: Iterable[str], n_vocab: int, rules: TextRules) -> "Tokenizer":
    """A tokenizer of at most `n_vocab` pieces, trained on `texts`, which are read twice."""
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(models.Unigram())
    _set_text(tokenizer, rules, None)
    trainer = trainers.UnigramTrainer(
        vocab_size=n_vocab,
        special_tokens=list(SPECIAL.values()),
        unk_token=SPECIAL["unk"],
        show_progress=False,
    )
    characters = alphabet(texts, tokenizer.normalizer, n_vocab // 4)
    tokenizer.train_from_iterator(within(texts, tokenizer.normalizer, characters), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return with_pieces(_settled(model["vocab"]), model["unk_id"], rules)


def _settled(vocab: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """The trained pieces as they are in every process. Of the trainer, sums depend on the order of a hash
    table in their last digits, and so does which characters it adds in the end, each a step likelier than the
    one before: these all become as unlikely as the first."""
    special, found = vocab[: len(SPECIAL)], dict(vocab[len(SPECIAL) :])
    least, characters = min(found.values(), default=0.0), [piece for piece in found if len(piece) == 1]
    for character in characters:
        steps = (found[character] - least) / _ADDED
        if round(steps) < len(characters) and abs(steps - round(steps)) < 0.01:
            found[character] = least
    rounded = [(piece, round(score, 4)) for piece, score in found.items()]
    return [*((p, s) for p, s in special), *sorted(rounded, key=lambda entry: (-entry[1], entry[0]))]


def _set_text(tokenizer: "Tokenizer", rules: TextRules, charsmap: bytes | None) -> None:
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    steps: list[Any] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if rules.strips_accents:
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if rules.lower_case:
        steps.append(normalizers.Lowercase())
    if charsmap is None:
        steps.append(normalizers.NFKC())
    elif charsmap:
        steps.append(normalizers.Precompiled(charsmap))
    steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(WORD, "always")]
    )
    tokenizer.decoder = decoders.Metaspace(WORD, "always")


def _ends_in_digit_and_comma(piece: str) -> bool:
    return len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit()


def parse(data: bytes) -> SpmModel:
    """Reads a `ModelProto`: 1 pieces (1 text, 2 score, 3 type), 2 how it was trained (3 type of model), 3 how
    it normalises (2 map of characters). Raises `ValueError` where it is none, or not of unigrams."""
    pieces: list[tuple[str, float]] = []
    unk_id: int | None = None
    charsmap: bytes = b""
    kind: int | bytes = _UNIGRAM
    for field, value in _fields(data):
        if field == 1:
            piece = dict(_fields(_bytes(value)))
            if piece.get(3, 1) == _UNKNOWN:
                unk_id = len(pieces)
            pieces.append((_bytes(piece.get(1, b"")).decode(), _float(piece.get(2, b"\0\0\0\0"))))
        elif field == 2:
            kind = dict(_fields(_bytes(value))).get(3, _UNIGRAM)
        elif field == 3:
            charsmap = _bytes(dict(_fields(_bytes(value))).get(2, b""))
    if kind != _UNIGRAM:
        raise ValueError(f"it is of type {kind!r}; give its model's tokenizer.json instead")
    if unk_id is None:
        raise ValueError("it has no piece for what is unknown")
    return SpmModel(pieces, unk_id, charsmap)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol buffer's message: (number, value), whole numbers as ints, all else as
    bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            number, at = _varint(data, at)
            yield tag >> 3, number
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError("it holds no protocol buffer")
        if at + size > len(data):
            raise ValueError("it is cut off")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("it holds no protocol buffer")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("it holds other fields than a SentencePiece model")
    return value


def _float(value: int | bytes) -> float:
    if len(_bytes(value)) != 4:
        raise ValueError("it holds other fields than a SentencePiece model")
    return struct.unpack("<f", _bytes(value))[0]
