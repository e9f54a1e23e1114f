"""The names of classes in Hugging Face's config.json."""

from collections.abc import Mapping
from typing import Any

from neojax.config import ModelConfig
from neojax.errors import NeojaxError


def read_labels(raw: Mapping[str, Any], source: str) -> list[str] | None:
    """The names of the classes in their order, None where the file says nothing of them. Raises `NeojaxError`
    where `id2label`, `label2id` and `num_labels` disagree."""
    names, count = raw.get("id2label"), raw.get("num_labels")
    if count is not None and (type(count) is not int or count < 1):
        raise NeojaxError(f"{source}: num_labels={count!r}: expected how many classes there are")
    if names is None:
        return None if count is None else [f"LABEL_{i}" for i in range(count)]
    try:
        by_id = {int(number): str(name) for number, name in names.items()}
    except (AttributeError, ValueError):
        raise NeojaxError(f"{source}: id2label={names!r}: expected numbers and names") from None
    labels = [by_id[number] for number in sorted(by_id)]
    if sorted(by_id) != list(range(len(by_id))):
        raise NeojaxError(
            f"{source}: id2label has the numbers {sorted(by_id)}; expected 0 to {len(by_id) - 1}"
        )
    if count is not None and count != len(labels):
        raise NeojaxError(
            f"{source}: id2label names {len(labels)} classes, but num_labels is {count}; mend one"
        )
    numbers = raw.get("label2id") or {}
    if not isinstance(numbers, Mapping) or not all(type(number) is int for number in numbers.values()):
        raise NeojaxError(f"{source}: label2id={numbers!r}: expected names and numbers")
    for name, number in numbers.items():
        if by_id.get(number, name) != name:
            raise NeojaxError(
                f"{source}: label2id gives {name!r} the number {number}, which is {by_id[number]!r} in "
                "id2label; mend one"
            )
    return labels


def write_labels(config: ModelConfig) -> dict[str, Any]:
    """The names of the classes."""
    labels = config.head.labels
    return {
        "id2label": {str(i): name for i, name in enumerate(labels)},
        "label2id": {name: i for i, name in enumerate(labels)},
    }
