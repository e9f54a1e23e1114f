"""Records of what is asked and what a model is to answer, as tokens of which those of the answers are
scored."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from neojax.data.chat_template import ChatTemplate, Pieces
from neojax.data.records import Record
from neojax.errors import NeojaxError, nearest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FORMS = (
    ("prompt", "completion"),
    ("messages",),
    ("conversations",),
    ("instruction", "output"),
    ("instruction", "response"),
    ("text",),
)
"""The keys of records; the first form that one has counts."""
ROLES = {"human": "user"} | dict.fromkeys(("gpt", "chatgpt", "bing", "bard"), "assistant")
"""ShareGPT's names."""
KNOWN = ("system", "developer", "user", "assistant", "tool", "function")
"""Roles that templates have; some have others."""


class Scored(NamedTuple):
    """A sequence of tokens, int32 [length], and which of them the model is to learn to say, bool [length]."""

    tokens: np.ndarray
    scored: np.ndarray


def uses_template(record: Record) -> bool:
    """Whether a record is written by a chat template."""
    return form_of(record)[0] not in ("prompt", "text") or not isinstance(
        record.values.get("prompt", ""), str
    )


def form_of(record: Record) -> tuple[str, ...]:
    """Which of `FORMS` a record has. Raises `NeojaxError` for none."""
    found = next((form for form in FORMS if all(key in record.values for key in form)), None)
    if found is None:
        known = "; ".join(" and ".join(form) for form in FORMS)
        raise NeojaxError(f"{record.where} has {', '.join(record.values) or 'no key'}; expected {known}")
    return found


def pieces_of(record: Record, template: ChatTemplate) -> Pieces:
    """The text of a record, and which of it is scored. Raises `NeojaxError`, which names the record."""
    values, form = record.values, form_of(record)
    try:
        match form:
            case ("prompt", "completion") if isinstance(values["prompt"], str):
                return [(values["prompt"], False), (_text(values, "completion"), True)]
            case ("prompt", "completion"):
                return template.pieces([*_messages(values, "prompt"), *_messages(values, "completion")])
            case ("text",):
                return [(_text(values, "text"), True)]
            case ("messages" | "conversations" as key,):
                return template.pieces(_messages(values, key))
        asked = _text(values, "instruction")
        more = next((key for key in ("input", "context") if values.get(key)), None)
        asked += "" if more is None else "\n\n" + _text(values, more)
        answer = {"role": "assistant", "content": _text(values, form[1])}
        return template.pieces([{"role": "user", "content": asked}, answer])
    except NeojaxError as e:
        raise NeojaxError(f"{record.where}: {e}") from None


def _text(values: Mapping[str, Any], key: str) -> str:
    if not isinstance(values[key], str):
        raise NeojaxError(f"{key!r} is {str(values[key])[:60]}; expected a text")
    return values[key]


def _messages(values: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = []
    if not isinstance(values[key], list):
        raise NeojaxError(f"{key!r} is {str(values[key])[:60]}; expected a list of messages")
    for number, message in enumerate(values[key], 1):
        keys = ("from", "value") if key == "conversations" else ("role", "content")
        own = [message.get(k) for k in keys] if isinstance(message, dict) else []
        if len(own) < 2 or not all(isinstance(part, str) for part in own):
            raise NeojaxError(
                f"{key!r}, message {number}: expected an object with {' and '.join(keys)}, texts"
            )
        role = ROLES.get(str(own[0]), str(own[0]))
        word = role.strip().lower()
        near = word if word in KNOWN else nearest(word, ("assistant",))  # would be left out as no answer
        if role not in KNOWN and near:
            raise NeojaxError(f"{key!r}, message {number}: the role {role!r} is none; did you mean {near}?")
        found.append({**message, "role": role, "content": own[1]})
    return found


def encoded(
    tokenizer: "Tokenizer", texts: Sequence[Pieces], end: int, firsts: Sequence[Sequence[int]] | None = None
) -> list[Scored]:
    """Every text as tokens: its pieces one by one, so that a prompt has the tokens that it has alone, and
    behind what the model is to say last the token that ends it, unless it is there already, with no more than
    blanks behind it as some templates have. firsts: the tokens that stand before each text, which are not
    scored."""
    flat = [text for pieces in texts for text, _ in pieces]
    ids = iter(tokenizer.encode_batch(flat, add_special_tokens=False))
    found = []
    for pieces, first in zip(texts, firsts or [()] * len(texts)):
        own = [(list(first), False), *((next(ids).ids, is_scored) for _, is_scored in pieces)]
        if own and own[-1][1] and not _ends(tokenizer, own[-1][0], end):
            own.append(([end], True))
        tokens = [token for part, _ in own for token in part]
        scored = [is_scored for part, is_scored in own for _ in part]
        found.append(Scored(np.array(tokens, np.int32), np.array(scored, bool)))
    return found


def _ends(tokenizer: "Tokenizer", ids: Sequence[int], end: int) -> bool:
    """Whether `end` stands in `ids` with nothing but blanks behind it."""
    if end not in ids:
        return False
    behind = list(ids)[len(ids) - list(ids)[::-1].index(end) :]
    return not tokenizer.decode(behind, skip_special_tokens=False).strip()
