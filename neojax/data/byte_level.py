"""GPT-2's byte-level BPE from the two files that it was published in: a table of ids, a list of merges."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from neojax.errors import NeojaxError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_DOCUMENT = "<|endoftext|>"


def read(vocab: Path, merges: Path) -> "Tokenizer":
    """The tokenizer of a `vocab.json` and its `merges.txt`, in which `<|endoftext|>` is special. Raises
    `NeojaxError`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    for file in (vocab, merges):
        if not file.is_file():
            raise NeojaxError(
                f"tokenizer {file} does not exist; expected the vocab.json and merges.txt of one BPE"
            )
    try:
        ids = json.loads(vocab.read_bytes())
    except ValueError as e:
        raise NeojaxError(f"{vocab} is not valid JSON: {e}") from None
    try:
        # Only a line feed ends a line: merges hold other characters that Python splits at.
        lines = merges.read_bytes().decode().split("\n")
        halves = [line.split() for line in lines if line.strip() and not line.startswith("#version")]
        model = models.BPE(ids, [(left, right) for left, right in halves])
    except Exception as e:  # the library raises plain Exception
        raise NeojaxError(
            f"{vocab} and {merges} are not a byte-level BPE: {' '.join(str(e).split())}"
        ) from None
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if tokenizer.token_to_id(END_OF_DOCUMENT) is not None:
        tokenizer.add_special_tokens([AddedToken(END_OF_DOCUMENT, special=True)])
    return tokenizer
