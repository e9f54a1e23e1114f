"""The tokenizer of a Hugging Face directory: tokenizer.json, the two files of GPT-2's byte-level BPE, or the
one file of BERT's or ALBERT's."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neojax.convert.hf_config import CONFIG, read_json
from neojax.data import tokenizer as tokenizers
from neojax.data.special_tokens import SpecialTokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
# The names that transformers and OpenAI gave the same two files.
PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))


def read_tokenizer(path: str | Path) -> "Tokenizer | None":
    """The tokenizer in folder `path`, None where there is none. Raises `NeojaxError` where it cannot be
    read."""
    path = Path(path)
    if (path / TOKENIZER).is_file():
        return tokenizers.load(path / TOKENIZER)
    for vocab, merges in PAIRS:
        if (path / vocab).is_file() and (path / merges).is_file():
            return tokenizers.load(path / vocab, path / merges)
    file = tokenizers.file_in(path)
    return None if file is None else tokenizers.load(file)


def read_eos_token_id(path: str | Path) -> int | None:
    """The id that ends a text, by generation_config.json or config.json; the first where there are
    several."""
    for name in ("generation_config.json", CONFIG):
        file = Path(path) / name
        if file.is_file():
            value = read_json(file).get("eos_token_id")
            value = value[0] if isinstance(value, list) and value else value
            if isinstance(value, int):
                return value
    return None


def write_tokenizer(
    tokenizer: "Tokenizer",
    folder: Path,
    n_ctx: int,
    eos_token_id: int | None,
    first_tokens: Sequence[int] = (),
    token_types: bool = False,
) -> None:
    """Writes tokenizer.json, and the tokenizer_config.json that lets `transformers.AutoTokenizer` load it.
    `first_tokens`: those that the tokenizer puts before a text. `token_types`: whether the model is told
    which tokens are of a second text: versions of transformers differ where nothing is said of it."""
    (folder / TOKENIZER).write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": n_ctx,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", *(["token_type_ids"] if token_types else []), "attention_mask"],
    }
    token = None if eos_token_id is None else tokenizer.id_to_token(eos_token_id)
    if token is not None:
        settings |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), token)
    special = SpecialTokens.of(tokenizer)
    roles = {"pad": special.pad, "unk": special.unk, "cls": special.cls, "sep": special.sep}
    if token is not None:
        roles["bos"] = first_tokens[0] if first_tokens else special.cls
    for role, id in {**roles, "mask": special.mask}.items():
        if id is not None:
            settings[f"{role}_token"] = tokenizer.id_to_token(id)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
