"""Dotted names, such as model.attention.heads: what stands there in nested dictionaries, or in a config."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def value_at(tree: Any, path: str, default: Any = None) -> Any:
    """What stands at `path` in nested mappings, or in (a part of) a config; `default` where nothing does."""
    for name in path.split("."):
        if isinstance(tree, Mapping):
            if name not in tree:
                return default
            tree = tree[name]
        elif dataclasses.is_dataclass(tree):
            tree = getattr(tree, name)
        else:
            return default
    return tree


def set_at(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Sets what stands in nested dictionaries under the names `path`, making the dictionaries on the way
    there."""
    *groups, name = path
    for group in groups:
        if not isinstance(tree.get(group), dict):
            tree[group] = {}
        tree = tree[group]
    tree[name] = value


def replaced(config: T, path: str, value: Any) -> T:
    """(A part of) a config with another value at `path`."""
    name, dot, rest = path.partition(".")
    inner = replaced(getattr(config, name), rest, value) if dot else value
    return dataclasses.replace(config, **{name: inner})  # type: ignore[type-var]
