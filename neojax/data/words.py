"""Which pieces of a tokenizer begin a word, so that whole words can be masked."""

import json
import string
from typing import TYPE_CHECKING

import numpy as np

from neojax.data.unigram import WORD
from neojax.errors import NeojaxError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BLANK = "Ġ"  # what byte-level BPE writes for a blank
_ENGLISH = frozenset(string.ascii_letters)
_OF_WORDS = _ENGLISH | frozenset('!"#$%&()*+,-./:;?@[\\]^_`{|}~£€')


def word_starts(tokenizer: "Tokenizer", n_ids: int) -> np.ndarray:
    """bool [n_ids]: whether a piece begins a word; true of special tokens. Raises `NeojaxError` for a
    tokenizer of which that is not known.

    WordPiece marks what does not begin one. Of unigrams, as in Google's code for ALBERT, a piece does that
    begins with the mark of a word, is a punctuation mark, or holds a character that is neither English nor
    punctuation; of byte-level BPE, one that begins with a blank, or holds what is no letter.
    """
    spec = json.loads(tokenizer.to_str())
    kind = spec["model"]["type"]
    decoder = (spec["decoder"] or {}).get("type")
    if kind == "WordPiece":
        prefix = spec["model"]["continuing_subword_prefix"]

        def begins(piece: str) -> bool:
            return not piece.startswith(prefix)
    elif decoder == "Metaspace":

        def begins(piece: str) -> bool:
            alone = len(piece) == 1 and piece not in _ENGLISH
            return piece.startswith(WORD) or alone or not _OF_WORDS.issuperset(piece)
    elif decoder == "ByteLevel":

        def begins(piece: str) -> bool:
            return not _ENGLISH.issuperset(piece) and (piece.startswith(_BLANK) or piece.isascii())
    else:
        raise NeojaxError(
            "train.mlm_whole_words: which pieces of this tokenizer begin a word is not known; it is neither "
            "WordPiece nor byte-level BPE, nor marks words as SentencePiece does; set the key to false"
        )
    special = {token["content"] for token in spec["added_tokens"]}
    found = np.ones(n_ids, bool)
    for piece, id in tokenizer.get_vocab(with_added_tokens=True).items():
        found[id] = piece in special or begins(piece)
    return found
