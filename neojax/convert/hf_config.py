"""Hugging Face's config.json and the model section of ours, by the table of the model's family."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neojax import config as configuration
from neojax.config import ModelConfig
from neojax.config.families import FAMILIES
from neojax.errors import NeojaxError, suggest
from neojax.models.families import HuggingFace, class_names, family

CONFIG = "config.json"

UNSUPPORTED = ("scale_attn_by_inverse_layer_idx", "add_cross_attention", "quantization_config")
# Names of activations that transformers has under another name than ours.
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new", "swish": "silu"}
SHARED_ACTIVATIONS = ("gelu_new", "gelu", "relu", "silu", "sigmoid", "tanh", "mish")
# Keys that matter only to initial weights.
INITIAL = ("init.std", "init.scale_by_depth", "init.scale_by_in", "init.method", "init.output")


def is_hf_dir(path: str | Path) -> bool:
    """Whether `path` is a folder with a Hugging Face config.json."""
    return (Path(path) / CONFIG).is_file()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `NeojaxError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise NeojaxError(f"cannot read {path}: {e.strerror or e}") from None
    except (ValueError, RecursionError) as e:  # RecursionError: brackets within brackets, a thousand deep
        raise NeojaxError(f"{path} is not valid JSON: {e}") from None
    if not isinstance(value, dict):
        raise NeojaxError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def exported() -> dict[str, HuggingFace]:
    """Family -> its names at Hugging Face, for those that transformers has."""
    found = {name: family(name).hugging_face for name in FAMILIES}
    return {name: names for name, names in found.items() if names is not None}


def names_of(name: str) -> HuggingFace:
    """The names of the family `name` at Hugging Face. Raises `NeojaxError` where transformers has no such
    family."""
    names = family(name).hugging_face
    if names is None:
        raise NeojaxError(
            f"model.family={name} cannot be exported: neojax writes {' and '.join(exported())} for "
            "transformers"
        )
    return names


def family_of(raw: Mapping[str, Any], source: str) -> str:
    """The family by `model_type`, else by `architectures`, else by the keys that a family alone has. Raises
    `NeojaxError` for anything else."""
    known = exported()
    kind = raw.get("model_type")
    if kind is None:
        classes = " ".join(class_names(raw, source))
        own = {name: {names.architecture, *names.architectures} for name, names in known.items()}
        kind = next((known[name].model_type for name in known if own[name] & set(classes.split())), None)
    if kind is None:  # neither is there
        kind = next((n.model_type for n in known.values() if n.telltale and n.telltale in raw), None)
    found = next((name for name, names in known.items() if names.model_type == kind), None)
    if found is None:
        given = "no model_type" if kind is None else f"model_type {kind!r}"
        *first, last = (names.model_type for names in known.values())
        read = f"{', '.join(first)} and {last}"
        raise NeojaxError(f"{source}: {given}; neojax reads {read}")
    return found


def read_config(path: str | Path) -> ModelConfig:
    """The model that config.json in folder `path` describes. Raises `NeojaxError`."""
    source = Path(path) / CONFIG
    return config_of(read_json(source), str(source))


def config_of(raw: Mapping[str, Any], source: str) -> ModelConfig:
    """The model that the keys `raw` describe; `source` is their name for error messages. Raises
    `NeojaxError`."""
    kind = family_of(raw, source)
    names = names_of(kind)
    for key in UNSUPPORTED:
        if raw.get(key):
            raise NeojaxError(
                f"{source}: {key}={json.dumps(raw[key])} is not supported; only a model without it is"
            )
    raw = {names.aliases.get(key, key): value for key, value in raw.items()}
    model: dict[str, Any] = {"family": kind}
    for theirs, (ours, default) in names.keys.items():
        configuration.set_at(model, ours.split("."), raw.get(theirs, default))
    activation = model["mlp"]["activation"]
    model["mlp"]["activation"] = ACTIVATIONS.get(str(activation), activation)
    if model["mlp"]["activation"] not in SHARED_ACTIVATIONS:
        near = suggest(str(activation), [*SHARED_ACTIVATIONS, *ACTIVATIONS])
        key = next(key for key, (ours, _) in names.keys.items() if ours == "mlp.activation")
        raise NeojaxError(f"{source}: {key} {activation!r} is not one that neojax has{near}")
    for ours, value in names.read(raw, source).items():
        configuration.set_at(model, ours.split("."), value)
    config = configuration.from_dict({"model": model}, source=source).model
    for attention in config.attention_layers:
        if attention not in names.attention:
            raise NeojaxError(
                f"{source}: attention type {attention!r} is not one of {kind}'s: {', '.join(names.attention)}"
            )
    return config


def to_json(model: ModelConfig) -> dict[str, Any]:
    """The contents of config.json for `model`, without its special tokens. Raises `NeojaxError` for what
    transformers cannot express."""
    names = names_of(model.family)
    _check_exportable(model, names)
    return {
        "architectures": [names.architecture_of(model.head.kinds)],
        "model_type": names.model_type,
        **{theirs: configuration.value_at(model, ours) for theirs, (ours, _) in names.keys.items()},
        **names.write(model),
        "dtype": "float32",
    }


def _check_exportable(model: ModelConfig, names: HuggingFace) -> None:
    kind = model.family
    if others := set(model.attention_layers) - set(names.attention):
        raise NeojaxError(
            f"model.attention.types with {', '.join(sorted(others))} cannot be exported: transformers' "
            f"{kind} has only {' and '.join(names.attention)}"
        )
    free = {ours for ours, _ in names.keys.values()} | {"attention.types", "attention.window", *INITIAL}
    free |= set(names.written)
    usual = configuration.from_dict({"model": {"family": kind}}).model
    for name, *_ in configuration.describe():
        section, _, key = name.partition(".")
        if section == "model" and key not in free:
            value = configuration.value_at(model, key)
            if value != configuration.value_at(usual, key):
                raise NeojaxError(
                    f"{name}={value} cannot be exported: transformers' {kind} has no such option"
                )
    if model.mlp.activation not in SHARED_ACTIVATIONS:
        raise NeojaxError(
            f"model.mlp.activation={model.mlp.activation} cannot be exported: transformers has "
            f"{', '.join(SHARED_ACTIVATIONS)}"
        )
