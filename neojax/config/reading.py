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

from neojax.config.declare import LARGEST_FLOAT
from neojax.config.families import FAMILIES
from neojax.config.formats import FORMAT, upgrade
from neojax.config.keys import Config, SourceConfig, TrainConfig
from neojax.config.model import HEADS, ModelConfig, PositionsConfig
from neojax.config.paths import value_at
from neojax.config.recipes import RECIPES, check_pairs
from neojax.config.spelling import FLAT, GROUPS, lay_over
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
    pairs = value_at(override(raw, overrides, source), "data.pairs", "none")
    recipe = RECIPES.get(pairs, {}) if isinstance(pairs, str) else {}
    tree = override(raw, overrides, source, {"model": FAMILIES[family], "train": recipe})
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
        tree = lay_over(tree, _parse_override(text), "command line")
    return {"format": FORMAT, **tree}


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
    if len(keys) > 1 and not (section == "model" and keys[0] in GROUPS):  # such as data.train.path: no group
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
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, f"{name}.", source)
    if hint == tuple[SourceConfig, ...]:
        entries = [value] if isinstance(value, str | Mapping) else value
        if value == "":  # `data.validation=` on the command line: none
            entries = []
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


def check(config: Config) -> None:
    """Checks what spans several keys. Raises `NeojaxError`; the mesh is checked by `neojax.layout.mesh`."""
    model, train = config.model, config.train
    _check_heads(model)
    _ = model.attention_layers  # raises where the pattern does not fit n_layer
    _check_rotary(model)
    _check_axial(model)
    _check_sharing(model)
    _check_head(model)
    if train.microbatch and train.batch_size % train.microbatch:
        raise NeojaxError(
            f"train.microbatch={train.microbatch} does not divide train.batch_size={train.batch_size}"
        )
    match train.profile_steps:
        case ():
            pass
        case (int(first), int(last)) if 1 <= first <= last:
            pass
        case _:
            raise NeojaxError(
                f"train.profile_steps={list(train.profile_steps)}: expected the first and the last step to "
                "trace, such as [10, 12]; the first step of a run is 1"
            )
    if train.optimizer == "adafactor" and train.moment_dtype != "float32":
        raise NeojaxError(
            f"train.moment_dtype={train.moment_dtype}: adafactor's state is float32; leave it out or use "
            "adamw"
        )
    _check_mlm(model, train)
    check_pairs(config)
    if not all(type(step) is int and step >= 0 for step in train.checkpoint_steps):
        raise NeojaxError(
            f"train.checkpoint_steps={list(train.checkpoint_steps)}: expected a list of steps, such as "
            "[0, 1, 2, 4]"
        )
    if config.data.merges and not config.data.tokenizer:
        raise NeojaxError(
            f"data.merges={config.data.merges} goes with a vocab.json, which data.tokenizer does not name"
        )
    decays = train.schedule not in ("constant", "inverse_sqrt") and not train.warmup_scales_decay
    if decays and train.warmup_steps >= (train.decay_steps or train.steps):
        raise NeojaxError(
            f"train.warmup_steps={train.warmup_steps} leaves nothing of the "
            f"{train.decay_steps or train.steps} steps to decay over; lower it or raise train.steps"
        )


def _check_heads(model: ModelConfig) -> None:
    attention, heads = model.attention, model.attention.heads
    if attention.head_dim is None and model.n_embd % heads:
        raise NeojaxError(
            f"model.n_embd={model.n_embd} is not a multiple of model.attention.heads={heads}; change one of "
            "them"
        )
    if heads % model.kv_heads:
        raise NeojaxError(
            f"model.attention.kv_heads={model.kv_heads} does not divide model.attention.heads={heads}: every "
            "head of keys is read by equally many of queries; change one of them"
        )
    if model.kv_heads < heads and attention.memory_slots:
        raise NeojaxError(
            f"model.attention.memory_slots={attention.memory_slots} is for models with as many kv_heads as "
            f"heads ({heads}), this has {model.kv_heads}; leave one of the two out"
        )


def _check_mlm(model: ModelConfig, train: TrainConfig) -> None:
    is_language_model = "lm" in model.head.kinds
    if (model.causal or is_language_model) and model.causal != (train.mlm_mask_id is None):
        raise NeojaxError(
            f"model.causal={str(model.causal).lower()} with train.mlm_mask_id={train.mlm_mask_id}: masked "
            "tokens are predicted by a model that is not causal, and by no other; set both or neither"
        )
    if train.mlm_mask_id is None:
        return
    for name in ("mlm_mask_id", "mlm_cls_token_id"):
        if (value := getattr(train, name)) is not None and value >= model.n_vocab:
            raise NeojaxError(f"train.{name}={value} is not below model.n_vocab={model.n_vocab}")
    if not all(isinstance(id, int) for id in train.mlm_mask_ignore_ids):
        raise NeojaxError(
            f"train.mlm_mask_ignore_ids={list(train.mlm_mask_ignore_ids)}: expected a list of ids"
        )
    if train.mlm_same_token_prob + train.mlm_random_token_prob > 1:
        raise NeojaxError("train.mlm_same_token_prob + mlm_random_token_prob is a share of at most 1")


def _check_sharing(model: ModelConfig) -> None:
    groups, inner = model.layer_groups, model.inner_layers
    if not model.share_parameters and (groups, inner) != (1, 1):
        raise NeojaxError(
            f"model.layer_groups={groups} and model.inner_layers={inner} are for "
            "model.share_parameters=true; set that, or leave them out"
        )
    if model.n_layer % (groups * inner):
        raise NeojaxError(
            f"model.n_layer={model.n_layer} is not a multiple of model.layer_groups={groups} times "
            f"model.inner_layers={inner}; every group has as many layers, and every set of weights as many "
            "turns"
        )


def _check_head(model: ModelConfig) -> None:
    kinds, usual = model.head.kinds, FAMILIES[model.family].get("head", {}).get("kinds", ["lm"])
    given = f"model.head.kinds={list(kinds)}"
    if unknown := [kind for kind in kinds if kind not in HEADS]:
        raise NeojaxError(f"{given}: there is no head {unknown[0]!r}{suggest(unknown[0], HEADS)}")
    if len(set(kinds)) < len(kinds):
        raise NeojaxError(f"{given} names one head twice; name each once")
    if "lm" in usual:
        if kinds != ("lm",):
            raise NeojaxError(f"{given}: a {model.family} has the head lm alone; leave the key out")
        if model.embedding.width is not None:
            raise NeojaxError(
                f"model.embedding.width={model.embedding.width}: the head lm has no table of another width "
                "than n_embd; leave it out"
            )
        return
    if "lm" in kinds or (len(kinds) > 1 and set(kinds) != {"mlm", "pair"}):
        raise NeojaxError(
            f"{given}: a {model.family} has mlm, pair, both of them, or one of {', '.join(HEADS[3:])}"
        )
    if model.causal:
        raise NeojaxError(
            f"model.causal=true: the tokens of a {model.family} see those after them; leave it out"
        )
    if not model.head.labels or len(set(model.head.labels)) < len(model.head.labels):
        raise NeojaxError(
            f"model.head.labels={list(model.head.labels)}: expected the names of the classes, each once"
        )


def _check_rotary(model: ModelConfig) -> None:
    dims, kind = model.positions.rotary_dims, model.positions.kind
    usual, positions = PositionsConfig(), model.positions
    if kind != "rotary":
        for name in ("rotary_dims", "interleaved", "scaling"):
            if (value := getattr(positions, name)) != getattr(usual, name):
                raise NeojaxError(
                    f"model.positions.{name}={value} is for model.positions.kind=rotary, which is {kind}; "
                    "set that, or leave it out"
                )
        return
    width = "attention.head_dim" if model.attention.head_dim else "n_embd / attention.heads"
    if dims is None and model.head_dim % 2:
        raise NeojaxError(
            f"model.positions.kind=rotary rotates pairs of features, but {width} = {model.head_dim} is odd; "
            "change model.attention.heads"
        )
    if dims is not None and (dims % 2 or dims > model.head_dim):
        raise NeojaxError(
            f"model.positions.rotary_dims={dims}: expected an even number, at most {width} = {model.head_dim}"
        )
    if positions.scaling == "none" and positions.scaling_factor != usual.scaling_factor:
        raise NeojaxError(
            f"model.positions.scaling_factor={positions.scaling_factor} needs "
            "model.positions.scaling, linear or llama3"
        )
    if positions.scaling == "llama3" and positions.scaling_long >= positions.scaling_short:
        raise NeojaxError(
            f"model.positions.scaling_long={positions.scaling_long} is not below scaling_short="
            f"{positions.scaling_short}: wavelengths between the two are stretched in part; change one"
        )


def _check_axial(model: ModelConfig) -> None:
    axial, kind = model.positions.axial, model.positions.kind
    given = f"model.positions.axial={list(axial)}"
    if kind != "axial":
        if axial:
            raise NeojaxError(
                f"{given} is for model.positions.kind=axial, which is {kind}; set that, or leave it out"
            )
        return
    match axial:
        case (int(rows), int(columns)) if rows > 0 and columns > 0:
            if rows * columns < model.n_ctx:
                raise NeojaxError(
                    f"{given} has {rows * columns} positions, but model.n_ctx={model.n_ctx}; make their "
                    "product at least that"
                )
        case _:
            raise NeojaxError(f"{given}: expected two counts, [a, b]")


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
