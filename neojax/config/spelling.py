"""gpt-neo's flat spelling of the model's keys, and where each of them stands now.

A configuration may give `model.n_head` or `model.attention.heads`. Both are read into the second; where one
mapping gives both it is an error. Which key wins among files and overrides is a matter of their order, not of
their spelling.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from neojax.config.keys import DataConfig, TrainConfig
from neojax.config.model import ModelConfig
from neojax.config.paths import set_at, value_at
from neojax.errors import NeojaxError

# Flat key of the section model -> dotted name of the key that it is.
FLAT = {
    "n_head": "model.attention.heads",
    "attention_types": "model.attention.types",
    "window_size": "model.attention.window",
    "attention_bias": "model.attention.bias",
    "scale_attention": "model.attention.scale",
    "num_mem_kv": "model.attention.memory_slots",
    "attn_dropout": "model.attention.dropout",
    "n_inner": "model.mlp.width",
    "activation_function": "model.mlp.activation",
    "mlp_glu": "model.mlp.gated",
    "macaron": "model.mlp.macaron",
    "layer_norm_epsilon": "model.norm.epsilon",
    "tie_word_embeddings": "model.embedding.tied",
    "embed_dropout": "model.embedding.dropout",
    "res_dropout": "model.dropout",
    "initializer_range": "model.init.std",
    "scale_by_depth": "model.init.scale_by_depth",
    "scale_by_in": "model.init.scale_by_in",
    "init_from": "train.init_from",
    # Each of these turned one kind on, and stood beside the others; of two that are on, the later one here
    # wins.
    "scalenorm": "model.norm.kind",
    "rezero": "model.norm.kind",
    "axial_pos_emb": "model.positions.kind",
    "rotary_emb": "model.positions.kind",
}
# The kinds that they turn on, and that which there is without.
KINDS = {
    "scalenorm": ("scale", "layer"),
    "rezero": ("rezero", "layer"),
    "axial_pos_emb": ("axial", "learned"),
    "rotary_emb": ("rotary", "learned"),
}
GROUPS = {
    section: frozenset(f.name for f in dataclasses.fields(keys) if dataclasses.is_dataclass(f.default))
    for section, keys in (("model", ModelConfig), ("data", DataConfig), ("train", TrainConfig))
}
"""Section -> those of its keys that hold keys of their own."""


def lay_over(under: Mapping[str, Any], given: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The sections `under` with those `given`, in either spelling, in their place; the result has no flat
    key.

    What is no mapping where one should be, and what is no key, is left for the reader of keys to refuse.
    Raises `NeojaxError` where `given` has both spellings of one key.
    """
    tree = _copy(under)
    for section, keys in given.items():
        if not isinstance(keys, Mapping):
            tree[section] = tree.get(section) if keys is None else keys
            continue
        tree.setdefault(section, {})  # a section without keys, which may be none
        flat, groups = FLAT if section == "model" else (), GROUPS.get(section, ())
        for name, value in keys.items():
            if name in groups and isinstance(value, Mapping):
                for own, its in value.items():
                    set_at(tree, (section, name, own), its)
            elif name not in flat and not (name in groups and value is None):
                set_at(tree, (section, name), value)
    model = given.get("model")
    if isinstance(model, Mapping):
        said = {name: model[name] for name in FLAT if name in model}  # in the order of FLAT
        _refuse_both(said, given, source)
        for path, value in _grouped(said, tree, source):
            set_at(tree, path.split("."), value)
    return tree


def _grouped(flat: Mapping[str, Any], tree: Mapping[str, Any], source: str) -> Iterator[tuple[str, Any]]:
    """What flat keys say, as (dotted name, value); `tree` is what they are laid over."""
    kinds: dict[str, str] = {}
    for name, value in flat.items():
        path = FLAT[name]
        if name not in KINDS:
            yield path, value
            continue
        if name != "axial_pos_emb" and not isinstance(value, bool):
            raise NeojaxError(f"{source}: model.{name}: expected true or false, got {value!r}")
        on, without = KINDS[name]
        if value:
            kinds[path] = on
        elif kinds.get(path, value_at(tree, path)) == on:
            kinds[path] = without
    yield from kinds.items()
    if (kind := kinds.get("model.positions.kind")) is not None:
        yield "model.positions.axial", flat["axial_pos_emb"] if kind == "axial" else []


def _refuse_both(flat: Iterable[str], given: Mapping[str, Any], source: str) -> None:
    for name in flat:
        paths = [FLAT[name], *(["model.positions.axial"] if name in ("axial_pos_emb", "rotary_emb") else [])]
        for path in paths:
            if value_at(given, path, given) is not given:
                raise NeojaxError(
                    f"{source}: model.{name} and {path} are two spellings of one key; keep {path}"
                )


def _copy(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Sections whose dictionaries and groups of keys may be changed; values are the same (an anchor of YAML
    can make one hold itself)."""
    return {
        section: {name: dict(v) if isinstance(v, Mapping) else v for name, v in keys.items()}
        if isinstance(keys, Mapping)
        else keys
        for section, keys in sections.items()
    }
