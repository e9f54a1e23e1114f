"""Reading a configuration: YAML and overrides as the dataclasses of `neojax.config.keys`, checked key by key.

A wrong key, type or value raises `NeojaxError` with one line that names the key.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from neojax.config.checks import check
from neojax.config.declare import LARGEST_FLOAT
from neojax.config.families import FAMILIES
from neojax.config.formats import FORMAT, upgrade
from neojax.config.keys import Config, SourceConfig
from neojax.config.model import ModelConfig
from neojax.config.paths import value_at
from neojax.config.recipes import RECIPES
from neojax.config.spelling import FLAT, GROUPS, lay_over
from neojax.config.tasks import INSTEAD, TASKS, recipe_of
from neojax.errors import NeojaxError, nearest, suggest
from neojax.storage.remote import place


def load(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Reads a YAML configuration and applies `section.key=value` overrides. Raises `NeojaxError`.

    `neojax.convert.configs.load` reads other formats too, and what `init_from` says.
    """
    return from_dict(read_yaml(path), overrides, source=str(path))


def read_yaml(path: str | Path) -> Any:
    """The nested dictionaries of a YAML file. Raises `NeojaxError`."""
    try:
        return parse(place(path).read_bytes(), str(path))
    except (OSError, ValueError) as e:  # ValueError: a name that is none for a file
        if "=" in str(path):
            raise NeojaxError(
                f"{path} stands where the configuration should; name that first, such as meshconfigs/125M.yml"
            ) from None
        raise NeojaxError(f"cannot read config {path}: {getattr(e, 'strerror', None) or e}") from None


def parse(text: str | bytes, source: str) -> Any:
    """The nested dictionaries of a YAML text; `source` is its name for error messages. Raises
    `NeojaxError`."""
    try:
        loader = _OnceLoader(text)
        loader.name = source
        raw = loader.get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as e:  # ValueError: a date or text that is none
        raise NeojaxError(f"{source}: not valid YAML: {' '.join(str(e).split())}") from None
    return {} if raw is None else raw


class _OnceLoader(yaml.SafeLoader):
    """YAML in which a key that is given twice is an error, as its specification says; PyYAML takes the
    last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and lines.setdefault(key.value, line) != line:
                raise NeojaxError(
                    f"{self.name}: key {key.value} is given twice, in lines {lines[key.value]} and {line}; "
                    "keep one"
                )
        return super().construct_mapping(node, deep)


def of_run(run_dir: str | Path, overrides: Iterable[str] = ()) -> Config:
    """The config of a run directory: its config.yml, in which everything is resolved."""
    return load(place(run_dir) / "config.yml", overrides)


def from_dict(raw: Any, overrides: Iterable[str] = (), source: str = "config") -> Config:
    """Builds a `Config` from nested dictionaries (as YAML gives them), applies overrides and checks it.

    Keys of the model that are not given are as its family has them, so that the config says everything.
    """
    overrides = list(overrides)
    family = value_at(override(raw, overrides, source), "model.family", ModelConfig.family)
    if not isinstance(family, str) or family not in FAMILIES:
        near = nearest(str(family), FAMILIES)
        raise NeojaxError(
            f"{source}: model.family: there is no family {family!r}; known: {', '.join(FAMILIES)}"
            + (f"; did you mean {near}?" if near else "")
        )
    said = override(raw, overrides, source)
    pairs, task = (value_at(said, f"data.{key}", "none") for key in ("pairs", "task"))
    recipe = RECIPES.get(pairs, {}) if isinstance(pairs, str) else {}
    usual = FAMILIES[family]
    if isinstance(task, str) and task in TASKS:
        recipe = recipe | recipe_of(task, family, value_at(said, "train", None) or {})
        head = {"kinds": [TASKS[task].head], "multilabel": TASKS[task].multilabel}
        usual = {**usual, "head": {**usual.get("head", {}), **head}}
    tree = override(raw, overrides, source, {"model": usual, "train": recipe})
    tree.pop("format")
    config = _build(Config, tree, "", source)
    check(config)
    return config


def override(
    raw: Any, overrides: Iterable[str], source: str, under: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The sections `raw`, in any format and spelling, with `section.key=value` overrides applied, over those
    `under`.

    The result is in today's spelling. Raises `NeojaxError`.
    """
    if not isinstance(raw, Mapping):
        raise NeojaxError(f"{source}: expected sections model, mesh, data, train; got {type(raw).__name__}")
    tree = lay_over(under or {}, upgrade(raw, source), source)
    for text in overrides:
        given = _parse_override(text)
        tree = lay_over(_without_other(tree, given), given, "command line")
    return {"format": FORMAT, **tree}


def _without_other(tree: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` without the key of `train` that says in another way what `given` says, so that the latter
    stands: train.steps on the command line takes the place of a file's train.epochs."""
    train = value_at(given, "train", None)
    own = {key for key, other in INSTEAD.items() if isinstance(train, Mapping) and other in train}
    had = value_at(tree, "train", None)
    if not own or not isinstance(had, Mapping):
        return tree
    return {**tree, "train": {key: value for key, value in had.items() if key not in own}}


def _parse_override(override: str) -> dict[str, Any]:
    """One override as the nested dictionaries that it stands for."""
    name, equals, text = override.partition("=")
    section, *keys = name.strip().split(".")
    if not equals or not keys:
        raise NeojaxError(f"override {override!r}: expected section.key=value, such as train.steps=100")
    sections = [f.name for f in dataclasses.fields(Config)]
    if section not in sections:
        raise NeojaxError(f"override {override!r}: unknown section {section!r}{suggest(section, sections)}")
    try:
        value = yaml.safe_load(text) if text.strip() else ""
    except (yaml.YAMLError, ValueError, RecursionError):
        raise NeojaxError(f"override {override!r}: the value is not valid YAML") from None
    if len(keys) > 1 and keys[0] not in GROUPS.get(section, ()):  # such as data.train.path: no group
        keys = [".".join(keys)]
    for key in reversed(keys):
        value = {key: value}
    return {section: value}


def _build(cls: type, raw: Any, prefix: str, source: str) -> Any:
    """Builds dataclass `cls` from a mapping; `prefix` is the dotted path for error messages."""
    if raw is None:
        raw = {}
    if not isinstance(raw, Mapping):
        raise NeojaxError(f"{source}: {prefix.rstrip('.')}: expected keys and values, got {raw!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    values = {}
    for name, value in raw.items():
        if name not in fields:
            raise NeojaxError(f"{source}: unknown key {prefix}{name}{_meant(str(name), prefix, fields)}")
        values[name] = _convert(value, hints[name], fields[name].metadata, f"{prefix}{name}", source)
    return cls(**values)


def _meant(name: str, prefix: str, known: Iterable[str]) -> str:
    """What to say of a key `name` that is none of those `known` where it stands: the keys that it may be
    instead."""
    elsewhere: dict[str, list[str]] = {}
    for known_path, *_ in describe():
        elsewhere.setdefault(known_path.rpartition(".")[2], []).append(known_path)
    elsewhere |= {flat: [path] for flat, path in FLAT.items()}
    path = f"{prefix}{name}"
    if "." in name and path in elsewhere.get(path.rpartition(".")[2], ()):  # a dot makes no group in a file
        nested = functools.reduce(lambda inner, key: f"{{{key}: {inner}}}", reversed(path.split(".")), "...")
        return f"; write it nested: {nested}"
    if paths := elsewhere.get(name.rpartition(".")[2]):
        paths = [path for path in paths if path.endswith(f".{name}")] or paths
        return f"; did you mean {' or '.join(paths)}?"
    here = {key: f"{prefix}{key}" for key in known} | (FLAT if prefix == "model." else {})
    near = nearest(name, here)
    return suggest(name, known) if near is None else f"; did you mean {here[near]}?"


def _convert(value: Any, hint: Any, meta: Mapping, name: str, source: str) -> Any:
    def wrong(expected: str) -> NeojaxError:
        return NeojaxError(f"{source}: {name}: expected {expected}, got {value!r}")

    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(t for t in typing.get_args(hint) if t is not type(None))
    if value == "" and (hint is tuple or typing.get_origin(hint) is tuple):
        value = []  # `data.validation=` on the command line: none
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, f"{name}.", source)
    if hint == tuple[SourceConfig, ...]:
        entries = [value] if isinstance(value, str | Mapping) else value
        if not isinstance(entries, list | tuple):
            raise wrong("a path or a list of {path, weight}")
        entries = [{"path": e} if isinstance(e, str) else e for e in entries]
        return tuple(_build(SourceConfig, e, f"{name}[{i}].", source) for i, e in enumerate(entries))
    if hint == tuple[str, ...]:
        entries = [value] if isinstance(value, str) else value
        if not isinstance(entries, list | tuple) or not all(isinstance(e, str) for e in entries):
            raise wrong("a list of texts")
        return tuple(entries)
    if hint is tuple:
        entries = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        if not isinstance(entries, list | tuple):
            raise wrong("a list")
        try:
            return _freeze(entries)
        except RecursionError:  # a YAML anchor can make a list hold itself
            raise wrong("a list that ends") from None
    if hint is bool:
        if not isinstance(value, bool):
            raise wrong("true or false")
        return value
    if hint in (int, float):
        number, kind = _number(value, hint), "a whole number" if hint is int else "a number"
        if number is None:
            raise wrong(kind)
        bounds = meta["range"].of_counts() if hint is int else meta["range"]
        if not bounds.holds(number):
            raise wrong(f"{kind}, {bounds}")
        return number
    if not isinstance(value, str):
        raise wrong("a text")
    if meta["choices"] and value not in meta["choices"]:
        raise NeojaxError(
            f"{source}: {name}: {value!r} is not one of its values{suggest(value, meta['choices'])}"
        )
    return value


def _number(value: Any, kind: type) -> int | float | None:
    """`value`, which may be a text, as an int or a float that float32 can hold; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
        if kind is float:
            return number if abs(number) <= LARGEST_FLOAT else None
        if isinstance(value, int):
            return value
        return int(number) if number == int(number) else None
    except (ValueError, OverflowError):
        return None


def _freeze(value: Any) -> Any:
    """Lists as tuples, all the way down, so that a config can be hashed."""
    return tuple(_freeze(v) for v in value) if isinstance(value, list | tuple) else value


def to_dict(config: Any) -> dict[str, Any]:
    """The config, or a part of one, as plain nested dictionaries; a whole one with its format."""
    values = dataclasses.asdict(config)
    return {"format": FORMAT, **values} if isinstance(config, Config) else values


def dump(config: Config) -> str:
    """The fully resolved config as YAML; `load` gives the same config back."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def describe() -> list[tuple[str, str, Any, str]]:
    """Every key as (dotted name, type, default, meaning), in order of declaration."""
    return list(_keys(Config, ""))


def _keys(cls: type, prefix: str) -> Iterator[tuple[str, str, Any, str]]:
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        hint, name = hints[f.name], f"{prefix}{f.name}"
        if dataclasses.is_dataclass(hint):
            yield from _keys(typing.cast(type, hint), f"{name}.")
        else:
            kind = " | ".join(f.metadata["choices"]) or getattr(hint, "__name__", str(hint))
            yield name, kind, f.default, f.metadata["doc"]
