"""Hugging Face's config.json of GPT-Neo and GPT-2, and the model section of ours.

Sources: `GPTNeoConfig` and `GPT2Config` of transformers, whose defaults stand for keys that a file leaves out.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neojax import config as configuration
from neojax.config import ModelConfig
from neojax.errors import NeojaxError, suggest

CONFIG = "config.json"

# model_type, which is the family's name -> key of config.json -> (key of ModelConfig, transformers' default)
KEYS: dict[str, dict[str, tuple[str, Any]]] = {
    "gpt_neo": {
        "vocab_size": ("n_vocab", 50257),
        "max_position_embeddings": ("n_ctx", 2048),
        "hidden_size": ("n_embd", 2048),
        "num_layers": ("n_layer", 24),
        "num_heads": ("attention.heads", 16),
        "intermediate_size": ("mlp.width", None),
        "window_size": ("attention.window", 256),
        "activation_function": ("mlp.activation", "gelu_new"),
        "layer_norm_epsilon": ("norm.epsilon", 1e-5),
        "embed_dropout": ("embedding.dropout", 0.0),
        "attention_dropout": ("attention.dropout", 0.0),
        "resid_dropout": ("dropout", 0.0),
        "tie_word_embeddings": ("embedding.tied", True),
    },
    "gpt2": {
        "vocab_size": ("n_vocab", 50257),
        "n_positions": ("n_ctx", 1024),
        "n_embd": ("n_embd", 768),
        "n_layer": ("n_layer", 12),
        "n_head": ("attention.heads", 12),
        "n_inner": ("mlp.width", None),
        "activation_function": ("mlp.activation", "gelu_new"),
        "layer_norm_epsilon": ("norm.epsilon", 1e-5),
        "embd_pdrop": ("embedding.dropout", 0.1),
        "attn_pdrop": ("attention.dropout", 0.1),
        "resid_pdrop": ("dropout", 0.1),
        "scale_attn_weights": ("attention.scale", True),
        "tie_word_embeddings": ("embedding.tied", True),
    },
}
# Other names that transformers takes for the same keys.
ALIASES = {
    "gpt_neo": {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"},
    "gpt2": {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
}
ARCHITECTURES = {"GPTNeo": "gpt_neo", "GPT2": "gpt2"}
UNSUPPORTED = ("scale_attn_by_inverse_layer_idx", "add_cross_attention", "quantization_config")
# Names of activations that transformers has under another name than ours.
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new", "swish": "silu"}
SHARED_ACTIVATIONS = ("gelu_new", "gelu", "relu", "silu", "sigmoid", "tanh", "mish")
ATTENTION = {"gpt_neo": ("global", "local"), "gpt2": ("global",)}
# Keys that matter only to initial weights.
INITIAL = ("init.std", "init.scale_by_depth", "init.scale_by_in")


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


def model_type(raw: Mapping[str, Any], source: str) -> str:
    """gpt_neo or gpt2: by `model_type`, else by `architectures`. Raises `NeojaxError` for anything else."""
    kind = raw.get("model_type")
    if kind is None:
        named = " ".join(map(str, raw.get("architectures") or ()))
        kind = next((kind for name, kind in ARCHITECTURES.items() if named.startswith(name)), None)
    if kind is None:  # neither is there: only GPT-Neo has attention types
        kind = next(
            (k for k, key in (("gpt_neo", "attention_types"), ("gpt2", "n_embd")) if key in raw), None
        )
    if kind not in KEYS:
        given = "no model_type" if kind is None else f"model_type {kind!r}"
        raise NeojaxError(f"{source}: {given}; neojax reads {' and '.join(KEYS)}")
    return kind


def read_config(path: str | Path) -> ModelConfig:
    """The model that config.json in folder `path` describes. Raises `NeojaxError`."""
    source = Path(path) / CONFIG
    raw = read_json(source)
    kind = model_type(raw, str(source))
    for key in UNSUPPORTED:
        if raw.get(key):
            raise NeojaxError(
                f"{source}: {key}={json.dumps(raw[key])} is not supported; only a model without it is"
            )
    raw = {ALIASES[kind].get(key, key): value for key, value in raw.items()}
    model: dict[str, Any] = {"family": kind}
    for theirs, (ours, default) in KEYS[kind].items():
        configuration.set_at(model, ours.split("."), raw.get(theirs, default))
    activation = model["mlp"]["activation"]
    model["mlp"]["activation"] = ACTIVATIONS.get(activation, activation)
    if model["mlp"]["activation"] not in SHARED_ACTIVATIONS:
        near = suggest(str(activation), [*SHARED_ACTIVATIONS, *ACTIVATIONS])
        raise NeojaxError(f"{source}: activation_function {activation!r} is not one that neojax has{near}")
    if kind == "gpt_neo":
        model["attention"]["types"] = _attention_types(raw, str(source))
    config = configuration.from_dict({"model": model}, source=str(source)).model
    for attention in config.attention_layers:
        if attention not in ATTENTION[kind]:
            raise NeojaxError(
                f"{source}: attention type {attention!r} is not one of {kind}'s: {', '.join(ATTENTION[kind])}"
            )
    return config


def _attention_types(raw: Mapping[str, Any], source: str) -> list:
    """`attention_types` in either file's form; a list of layers where it is missing."""
    types, layers = raw.get("attention_types"), raw.get("attention_layers")
    if types is None:
        return layers or ["global", "local"]
    if layers is not None and list(configuration.expand_attention_types(types, len(layers))) != layers:
        raise NeojaxError(
            f"{source}: attention_types {types} and attention_layers {layers} disagree; mend one"
        )
    return types


def to_json(model: ModelConfig, eos_token_id: int | None) -> dict[str, Any]:
    """The contents of config.json for `model`. Raises `NeojaxError` for what transformers cannot express."""
    kind = model.family
    _check_exportable(model)
    values = {theirs: configuration.value_at(model, ours) for theirs, (ours, _) in KEYS[kind].items()}
    if kind == "gpt_neo":
        layers = list(model.attention_layers)
        values |= {"attention_types": [[layers, 1]], "attention_layers": layers}
    return {
        "architectures": ["GPTNeoForCausalLM" if kind == "gpt_neo" else "GPT2LMHeadModel"],
        "model_type": kind,
        **values,
        "bos_token_id": eos_token_id,
        "eos_token_id": eos_token_id,
        "dtype": "float32",
    }


def _check_exportable(model: ModelConfig) -> None:
    kind = model.family
    if kind not in KEYS:
        raise NeojaxError(
            f"model.family={kind} cannot be exported: neojax writes {' and '.join(KEYS)} for transformers"
        )
    if others := set(model.attention_layers) - set(ATTENTION[kind]):
        raise NeojaxError(
            f"model.attention.types with {', '.join(sorted(others))} cannot be exported: transformers' {kind} has "
            f"only {' and '.join(ATTENTION[kind])}"
        )
    free = {ours for ours, _ in KEYS[kind].values()} | {"attention.types", "attention.window", *INITIAL}
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
