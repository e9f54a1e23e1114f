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


def read_problem(raw: Mapping[str, Any], source: str, kinds: tuple[str, ...]) -> bool:
    """Whether any number of the classes of a head of `kinds` may hold. Raises `NeojaxError` for several
    numbers."""
    problem = raw.get("problem_type")
    if kinds != ("sequence_classification",):
        return False
    labels = read_labels(raw, source) or ["LABEL_0", "LABEL_1"]
    if problem == "regression" and len(labels) > 1:
        raise NeojaxError(
            f"{source}: problem_type regression with {len(labels)} labels is not supported; one number is"
        )
    return bool(problem == "multi_label_classification")


def write_labels(config: ModelConfig) -> dict[str, Any]:
    """The names of the classes, and whether any number of them may hold. Raises `NeojaxError` where another
    head is said to have such."""
    labels, kinds = config.head.labels, config.head.kinds
    if config.head.multilabel and kinds != ("sequence_classification",):
        raise NeojaxError(f"model.head.multilabel=true cannot be exported with the heads {list(kinds)}")
    problem = {"problem_type": "multi_label_classification"} if config.head.multilabel else {}
    return {
        **problem,
        "id2label": {str(i): name for i, name in enumerate(labels)},
        "label2id": {name: i for i, name in enumerate(labels)},
    }
