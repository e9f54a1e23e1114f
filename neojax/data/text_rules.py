"""How an encoder's tokenizer treats text, as the tokenizer_config.json beside its vocabulary says."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neojax.data.special_tokens import named_roles
from neojax.errors import NeojaxError

SETTINGS = "tokenizer_config.json"


@dataclass(frozen=True)
class TextRules:
    """The defaults are those of BERT's and ALBERT's uncased models."""

    lower_case: bool = True
    strip_accents: bool | None = None
    """None: where text is lower-cased"""
    split_chinese: bool = True
    """WordPiece: every Chinese character is a word"""
    special: Mapping[str, str] = field(default_factory=dict)
    """special tokens by role that have other names than the usual ones"""

    @property
    def strips_accents(self) -> bool:
        return self.lower_case if self.strip_accents is None else self.strip_accents

    def token(self, role: str, usual: str) -> str:
        """The special token of a role."""
        return self.special.get(role, usual)


def beside(file: Path) -> TextRules:
    """The rules in the folder of `file`; the defaults where no tokenizer_config.json lies there. Raises
    `NeojaxError` for one that is none."""
    path = file.with_name(SETTINGS)
    if not path.is_file():
        return TextRules()
    try:
        given: Any = json.loads(path.read_bytes())
        if not isinstance(given, dict):
            raise ValueError("expected an object")
    except (OSError, ValueError, RecursionError) as e:
        raise NeojaxError(f"{path} is not valid JSON: {' '.join(str(e).split())}") from None

    def flag(name: str, default: Any) -> Any:
        value = given.get(name)
        if value is not None and not isinstance(value, bool):
            raise NeojaxError(f"{path}: {name}: expected true or false, got {value!r}")
        return default if value is None else value

    keeps = flag("keep_accents", None)  # what ALBERT's calls the opposite
    return TextRules(
        lower_case=flag("do_lower_case", True),
        strip_accents=flag("strip_accents", None if keeps is None else not keeps),
        split_chinese=flag("tokenize_chinese_chars", True),
        special=named_roles(given),
    )
