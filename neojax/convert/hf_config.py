"""Hugging Face's config.json of GPT-Neo and GPT-2, and the model section of ours.

Sources: `GPTNeoConfig` and `GPT2Config` of transformers, whose defaults stand for keys that a file leaves out.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neojax import config as configuration
from neojax.config import ModelConfig
from neojax.errors import NeojaxError, suggest

CONFIG = "config.json"

# model_type -> key of config.json -> (key of ModelConfig, transformers' default)
KEYS: dict[str, dict[str, tuple[str, Any]]] = {
    "gpt_neo": {
        "vocab_size": ("n_vocab", 50257),
        "max_position_embeddings": ("n_ctx", 2048),
        "hidden_size": ("n_embd", 2048),
        "num_layers": ("n_layer", 24),
        "num_heads": ("n_head", 16),
        "intermediate_size": ("n_inner", None),
        "window_size": ("window_size", 256),
        "activation_function": ("activation_function", "gelu_new"),
        "layer_norm_epsilon": ("layer_norm_epsilon", 1e-5),
        "embed_dropout": ("embed_dropout", 0.0),
        "attention_dropout": ("attn_dropout", 0.0),
        "resid_dropout": ("res_dropout", 0.0),
        "tie_word_embeddings": ("tie_word_embeddings", True),
    },
    "gpt2": {
        "vocab_size": ("n_vocab", 50257),
        "n_positions": ("n_ctx", 1024),
        "n_embd": ("n_embd", 768),
        "n_layer": ("n_layer", 12),
        "n_head": ("n_head", 12),
        "n_inner": ("n_inner", None),
        "activation_function": ("activation_function", "gelu_new"),
        "layer_norm_epsilon": ("layer_norm_epsilon", 1e-5),
        "embd_pdrop": ("embed_dropout", 0.1),
        "attn_pdrop": ("attn_dropout", 0.1),
        "resid_pdrop": ("res_dropout", 0.1),
        "scale_attn_weights": ("scale_attention", True),
        "tie_word_embeddings": ("tie_word_embeddings", True),
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
ATTENTION = ("global", "local")
# Keys that matter only to initial weights.
INITIAL = ("scale_by_depth", "scale_by_in", "initializer_range", "init_from")


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
    model = {ours: raw.get(theirs, default) for theirs, (ours, default) in KEYS[kind].items()}
    activation = model["activation_function"]
    model["activation_function"] = ACTIVATIONS.get(activation, activation)
    if model["activation_function"] not in SHARED_ACTIVATIONS:
        near = suggest(str(activation), [*SHARED_ACTIVATIONS, *ACTIVATIONS])
        raise NeojaxError(f"{source}: activation_function {activation!r} is not one that neojax has{near}")
    if kind == "gpt2":
        model |= {"attention_bias": True, "attention_types": ["global"]}
    else:
        model["attention_types"] = _attention_types(raw, str(source))
    config = configuration.from_dict({"model": model}, source=str(source)).model
    for attention in config.attention_layers:
        if attention not in ATTENTION:
            raise NeojaxError(
                f"{source}: attention type {attention!r} is not one of {kind}'s: {', '.join(ATTENTION)}"
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


def kind_of(model: ModelConfig) -> str:
    """The model_type whose attention `model` has: gpt2 where it is biased and all global, else gpt_neo."""
    return "gpt2" if model.attention_bias and set(model.attention_layers) == {"global"} else "gpt_neo"


def to_json(model: ModelConfig, eos_token_id: int | None) -> dict[str, Any]:
    """The contents of config.json for `model`. Raises `NeojaxError` for what transformers cannot express."""
    kind = kind_of(model)
    _check_exportable(model, kind)
    values = {theirs: getattr(model, ours) for theirs, (ours, _) in KEYS[kind].items()}
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


def _check_exportable(model: ModelConfig, kind: str) -> None:
    known = {ours for ours, _ in KEYS[kind].values()} | {"attention_types", "window_size", *INITIAL}
    known |= {"attention_bias"} if kind == "gpt2" else set()
    if others := set(model.attention_layers) - set(ATTENTION):
        raise NeojaxError(
            f"model.attention_types with {', '.join(sorted(others))} cannot be exported: transformers' {kind} has "
            f"only {' and '.join(ATTENTION)}"
        )
    for key in dataclasses.fields(model):
        value = getattr(model, key.name)
        if key.name not in known and value != key.default:
            raise NeojaxError(
                f"model.{key.name}={value} cannot be exported: transformers' {kind} has no such option"
            )
    if model.activation_function not in SHARED_ACTIVATIONS:
        raise NeojaxError(
            f"model.activation_function={model.activation_function} cannot be exported: transformers has "
            f"{', '.join(SHARED_ACTIVATIONS)}"
        )
