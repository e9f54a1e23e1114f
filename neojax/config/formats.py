"""The format of a written configuration, and how older ones are read.

`config.yml` and the checkpoints of a run carry `format`. What has none is of format 1, neojax's before the
model's keys stood in groups; its flat spelling is read in every format (`neojax.config.spelling`).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from neojax.config.paths import value_at
from neojax.errors import NeojaxError

FORMAT = 2


def upgrade(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The sections of a configuration of any format as those of today's. Raises `NeojaxError` for a newer
    one."""
    sections = dict(raw)
    number = sections.pop("format", 1)
    if type(number) is not int or number < 1:
        raise NeojaxError(
            f"{source}: format: expected a whole number, {FORMAT} in this version, got {number!r}"
        )
    if number > FORMAT:
        raise NeojaxError(
            f"{source}: format {number} is newer than this neojax, which reads up to {FORMAT}; upgrade neojax"
        )
    for convert in _UPGRADES[number - 1 :]:
        sections = convert(sections)
    return sections


def _name_gpt2(sections: dict[str, Any]) -> dict[str, Any]:
    """1 -> 2: families had no names, and a model whose attention was biased and all global counted as a
    GPT-2.

    Such are all conversions of GPT-2. Only the flat spelling says so: the groups came with the names of
    families.
    """
    model = sections.get("model")
    if not isinstance(model, Mapping) or "family" in model or model.get("attention_bias") is not True:
        return sections
    try:
        if set(_words(model.get("attention_types"))) != {"global"}:
            return sections
    except RecursionError:  # a list that holds itself, which the reader of keys refuses
        return sections
    model = {**model, "family": "gpt2"}
    says = "scale_attention" in model or value_at(model, "attention.scale") is not None
    if not (says or model.get("init_from") or value_at(sections, "train.init_from")):
        model["scale_attention"] = False  # the default of then, which is not that of the family
    return {**sections, "model": model}


def _words(value: Any) -> Iterator[str]:
    """The names in nested lists, or in a text with commas."""
    if isinstance(value, str):
        yield from (word.strip() for word in value.split(","))
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _words(entry)


_UPGRADES = (_name_gpt2,)  # from format 1 to 2, from 2 to 3, ...
