"""The special tokens of a tokenizer by the role that they have, whatever their ids are."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from neojax.errors import NeojaxError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The names that tokenizers give to the token of a role; the first that is in the vocabulary counts.
NAMES = {
    "pad": ("[PAD]", "<pad>", "<|pad|>"),
    "unk": ("[UNK]", "<unk>", "<|unk|>"),
    "bos": ("[BOS]", "<s>", "<bos>", "<|begin_of_text|>"),
    "eos": ("[EOS]", "</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
    "cls": ("[CLS]", "<cls>"),
    "sep": ("[SEP]", "<sep>"),
    "mask": ("[MASK]", "<mask>"),
}


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids by role; None where the tokenizer has no such token."""

    pad: int | None = None
    """fills up rows"""
    unk: int | None = None
    """stands for what the vocabulary cannot write"""
    bos: int | None = None
    """begins a text"""
    eos: int | None = None
    """ends a text"""
    cls: int | None = None
    """begins a row of an encoder, which classifies from it"""
    sep: int | None = None
    """ends each segment of such a row"""
    mask: int | None = None
    """stands in the place of a token that is to be told"""

    @classmethod
    def of(cls, tokenizer: "Tokenizer", names: Mapping[str, str] | None = None) -> "SpecialTokens":
        """Those of `tokenizer`; `names` are the tokens of some roles (tokenizer_config.json's), and come
        before the usual ones."""
        found: dict[str, int | None] = {}
        for role in ROLES:
            given = (names or {}).get(role)
            candidates = (tokenizer.token_to_id(n) for n in ((given,) if given else NAMES[role]))
            found[role] = next((id for id in candidates if id is not None), None)
        return cls(**found)

    def need(self, *roles: str, why: str) -> tuple[int, ...]:
        """The ids of `roles`. Raises `NeojaxError`, which says what they are wanted for, where one lacks."""
        ids = asdict(self)
        if absent := [role for role in roles if ids[role] is None]:
            raise NeojaxError(
                f"the tokenizer has no {' and no '.join(absent)} token, as {why} needs; use one that has "
                f"{' and '.join(NAMES[role][0] for role in absent)}, such as one that `neojax prepare "
                "--train-tokenizer N --tokenizer-kind wordpiece` trains"
            )
        return tuple(ids[role] for role in roles)

    def ids(self) -> frozenset[int]:
        """The ids of all roles that there are."""
        return frozenset(id for id in asdict(self).values() if id is not None)


ROLES = tuple(field.name for field in fields(SpecialTokens))


def named_roles(settings: Mapping[str, Any]) -> dict[str, str]:
    """The tokens of roles as a tokenizer_config.json or special_tokens_map.json names them."""
    found = {}
    for role in ROLES:
        value = settings.get(f"{role}_token")
        value = value.get("content") if isinstance(value, Mapping) else value
        if isinstance(value, str):
            found[role] = value
    return found


def enclose(tokenizer: "Tokenizer", special: Mapping[str, str], ids: Mapping[str, int]) -> None:
    """Makes `special`, role -> token, of those in `ids` special tokens of BERT's or ALBERT's `tokenizer`,
    which then writes [CLS] A [SEP] and [CLS] A [SEP] B [SEP], with token types 0 and 1."""
    from tokenizers import AddedToken, processors

    tokenizer.add_special_tokens([AddedToken(n, special=True) for n in special.values() if n in ids])
    cls, sep = special["cls"], special["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(name, ids[name]) for name in (cls, sep)],
    )
