"""Numbers of every feature of the model, in `pins.json`: initial weights, losses and gradients. Run by hand
to keep them:

python tests/models/pins.py COMMIT

They are those of an earlier version, and are not to be made again by a later one that means to compute the
same.
"""

import json
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    import conftest  # noqa: F401  # the devices and the compiler's settings of the tests

import jax
import numpy as np
from helpers import layout_of
from recorded import circumstances

import neojax.config
from neojax.data.batch import Batch
from neojax.models import Transformer

KEPT = Path(__file__).with_name("pins.json")
SIZES = {"n_layer": 2, "n_embd": 8, "n_head": 2, "n_inner": 16, "n_ctx": 16, "n_vocab": 61, "window_size": 5}
DROPOUT = {"embed_dropout": 0.1, "attn_dropout": 0.1, "res_dropout": 0.1}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt-neo": {"n_layer": 4},
    "gpt2": {
        "attention_types": ["global"], "attention_bias": True, "scale_attention": True, "initializer_range": 0.02,  # noqa: E501
        "scale_by_depth": True,
    },
    "rotary": {"attention_types": [[["global"], 1], [["local"], 1]], "rotary_emb": True, "scale_by_in": True},
    "axial": {"axial_pos_emb": [4, 5], "activation_function": "gelu", "layer_norm_epsilon": 1e-6},
    "linear": {"attention_types": ["linear", "global"], "activation_function": "prelu"},
    "none, macaron": {"attention_types": ["global", "none"], "macaron": True, "activation_function": "aria"},
    "glu, scalenorm": {"mlp_glu": True, "scalenorm": True, "activation_function": "silu", "n_inner": None},
    "rezero, untied": {"rezero": True, "tie_word_embeddings": False},
    "shared, memory": {"share_parameters": True, "num_mem_kv": 3, "attention_types": ["global"]},
    "not causal": {"causal": False, "n_layer": 3, "attention_types": ["global", "local", "linear"]},
    "together": {
        "n_layer": 4, "attention_types": ["local", "none"], "axial_pos_emb": [4, 4], "rezero": True, "macaron": True,  # noqa: E501
        "share_parameters": True, "tie_word_embeddings": False, "activation_function": "psoftplus",
    },
}  # fmt: skip
SPLIT = {
    "shape": "data:2, model:2",
    "layout": "batch:data, heads:model, mlp:model, vocab:model",
    "param_layout": "embd:data",
}
ONE = {"shape": "data:1", "layout": ""}


def build(keys: Mapping[str, Any], mesh: Mapping[str, str]) -> Any:
    """The model of flat `keys` on `mesh`, with the initial weights of seed 3."""
    train = {} if keys.get("causal", True) else {"mlm_mask_id": 1}
    config = neojax.config.from_dict({"model": {**SIZES, **DROPOUT, **keys}, "train": train})
    return Transformer(config.model, layout_of(**mesh)).init(3)


def loss_and_gradients(model: Any, params: Mapping[str, Any], tokens: np.ndarray, key: Any = None) -> Any:
    """Nats a token and their gradients, by the names of `params`; with `key`, under dropout."""

    def loss(params: Mapping[str, Any], key: Any) -> Any:
        losses = model.bind(params).loss(Batch(tokens[:, :-1], tokens[:, 1:]), dropout_key=key)
        return losses.nats / losses.scored

    with jax.set_mesh(model.layout.mesh):
        return jax.jit(jax.value_and_grad(loss))(params, key)


def noisy(params: Mapping[str, Any], sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """`params` with noise that depends on their names alone, so that no scale is 1 and no gate or bias 0.
    `sizes` are their shapes without padding, which stays zero."""
    changed = {}
    for name, value in params.items():
        noise = np.random.default_rng(zlib.crc32(name.encode())).normal(size=sizes[name]) * 0.2
        whole = np.asarray(value).copy()
        whole[tuple(map(slice, sizes[name]))] += noise.astype(np.float32)
        changed[name] = jax.device_put(whole, value.sharding)
    return changed


def of_arrays(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Of every array its shape, the checksum of its bytes, and three numbers that any change of it would
    change: its norm and two sums over it with fixed random weights."""
    found = {}
    for name, value in sorted(arrays.items()):
        exact = np.asarray(value)
        wide = exact.astype(np.float64).ravel()
        weights = np.random.default_rng(0).normal(size=(2, wide.size))
        numbers = [float(f"{number:.9g}") for number in (np.linalg.norm(wide), *(weights @ wide))]
        found[name] = {"shape": list(exact.shape), "crc32": zlib.crc32(exact.tobytes()), "numbers": numbers}
    return found


def measured(name: str) -> dict[str, Any]:
    """All that is kept of a configuration."""
    tokens = np.random.default_rng(7).integers(0, SIZES["n_vocab"], (4, SIZES["n_ctx"] + 1)).astype(np.int32)
    model = build(CONFIGS[name], ONE)
    initial = model.params()
    params = noisy(initial, {n: p.shape for n, p in initial.items()})
    loss, gradients = loss_and_gradients(model, params, tokens)
    dropped, dropped_gradients = loss_and_gradients(model, params, tokens, jax.random.key(5))
    split = build(CONFIGS[name], SPLIT)
    on_mesh, _ = loss_and_gradients(
        split, noisy(split.params(), {n: p.shape for n, p in initial.items()}), tokens
    )
    return {
        "weights": of_arrays(initial),
        "loss": float(loss),
        "gradients": of_arrays(gradients),
        "loss with dropout": float(dropped),
        "gradients with dropout": of_arrays(dropped_gradients),
        "loss on a mesh": float(on_mesh),
    }


def main() -> None:
    (commit,) = sys.argv[1:]
    kept = {"commit": commit, **circumstances(), "pins": {name: measured(name) for name in CONFIGS}}
    text = json.dumps(kept).replace("}, ", "},\n").replace(": {", ":\n{")  # an array a line
    KEPT.write_text(text + "\n")


if __name__ == "__main__":
    main()
