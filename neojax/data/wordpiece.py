"""WordPiece, BERT's tokenizer: words, split greedily into the longest pieces that the vocabulary has.

A piece that does not begin a word is written with ## before it. Devlin et al. 2018,
https://arxiv.org/abs/1810.04805, and its `vocab.txt`.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from neojax.data.alphabet import alphabet
from neojax.data.special_tokens import enclose
from neojax.data.text_rules import TextRules
from neojax.errors import NeojaxError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

INNER = "##"
LONGEST = 100  # characters of a word; a longer one is unknown
SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def read(path: Path, rules: TextRules) -> "Tokenizer":
    """The tokenizer of a `vocab.txt`, a piece a line, whose number is its id. Raises `NeojaxError`."""
    try:
        # Only a line feed ends a line: vocabularies hold other characters that Python splits at.
        lines = path.read_bytes().decode().removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise NeojaxError(f"tokenizer {path} cannot be read: {e}") from None
    vocab = {line.removesuffix("\r"): number for number, line in enumerate(lines)}
    needed = [rules.token(role, SPECIAL[role]) for role in ("unk", "cls", "sep")]
    if absent := [name for name in needed if name not in vocab]:
        raise NeojaxError(
            f"tokenizer {path} is not a WordPiece vocabulary: it has no line {' and no line '.join(absent)}"
        )
    return with_vocabulary(vocab, rules)


def with_vocabulary(vocab: Mapping[str, int], rules: TextRules) -> "Tokenizer":
    """The tokenizer whose pieces and special tokens are in `vocab`, piece -> id."""
    from tokenizers import Tokenizer, models

    special = {role: rules.token(role, name) for role, name in SPECIAL.items()}
    model = models.WordPiece(
        dict(vocab),
        unk_token=special["unk"],
        max_input_chars_per_word=LONGEST,
        continuing_subword_prefix=INNER,
    )
    tokenizer = Tokenizer(model)
    _set_text(tokenizer, rules)
    enclose(tokenizer, special, vocab)
    return tokenizer


def train(texts: Iterable[str], n_vocab: int, rules: TextRules) -> "Tokenizer":
    """A tokenizer of at most `n_vocab` pieces, trained on `texts`, which are read twice."""
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk"]))
    _set_text(tokenizer, rules)
    # Every character is there twice, as it is and as an inner piece.
    characters = alphabet(texts, tokenizer.normalizer, n_vocab // 4)
    first = [*SPECIAL.values(), *characters, *(INNER + c for c in characters)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=n_vocab,
        special_tokens=first,
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        continuing_subword_prefix=INNER,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return with_vocabulary(json.loads(tokenizer.to_str())["model"]["vocab"], rules)


def _set_text(tokenizer: "Tokenizer", rules: TextRules) -> None:
    from tokenizers import decoders, normalizers, pre_tokenizers

    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=rules.split_chinese,
        strip_accents=rules.strip_accents,
        lowercase=rules.lower_case,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=INNER)
