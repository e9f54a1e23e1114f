"""The models on which ours and the original are compared: configs, weights, optimizer slots and batches, all
made anew from their names by numpy, so that only what the original computes of them has to be kept."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

KEPT = Path(__file__).parent / "original.npz"

ADAM = {"opt_name": "adam", "lr": 3e-3, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.1}
SMALL = {
    "n_head": 2,
    "n_embd": 16,
    "n_vocab": 53,
    "n_ctx": 24,
    "local_attention_radius": 7,
    "batch": 2,
    **ADAM,
}
# A loss and its gradients, at one batch.
VALUES = {
    "global and local": {"attention_types": [[["global", "local"], 1]], "z_loss": 1e-2},
    "linear": {"attention_types": [[["linear"], 2]]},
    "rotary, memory": {"attention_types": [[["global", "linear"], 1]], "rotary_emb": True, "num_mem_kv": 3},
}
# Logits, of models that see all tokens. Not local ones, whose windows are wider by a key on the left here.
BIDIRECTIONAL = {
    "bidirectional": {"attention_types": [[["linear", "global"], 1]], "mlm_training": True, "mlm_mask_id": 1}
}
# Six steps from a checkpoint, with the slots of steps before.
WIDE = {
    "n_head": 5,
    "n_embd": 140,
    "n_vocab": 257,
    "n_ctx": 40,
    "attention_types": [[["global", "local"], 1]],
}
DEEP = {"n_head": 2, "n_embd": 64, "n_vocab": 61, "attention_types": [[["global", "local", "linear"], 2]]}
ADAFACTOR = {"opt_name": "adafactor", "lr": 1e-2, "weight_decay": 0.9, "beta1": None}
RESUMED = {
    "adafactor": WIDE | ADAFACTOR,
    "adafactor with momentum": DEEP | ADAFACTOR | {"beta1": 0.9},
    "adafactor, clipped, the paper's decay": WIDE
    | ADAFACTOR
    | {"weight_decay": None, "gradient_clipping": 0.5},
}
# Logits in bfloat16 and in float32, of the same weights, which bfloat16 holds. (The angles of rotary
# positions, which gpt-neo rounded too, are another story.)
ROUNDED = {"bfloat16": {"attention_types": [[["global", "local"], 1]], "n_embd": 64} | ADAFACTOR}
STEPS, START = 6, 30


def config_of(name: str, cases: Mapping[str, dict]) -> dict:
    """The config of a case, as gpt-neo's JSON has it; `batch` is its batch size."""
    config = {**SMALL, **cases[name]}
    layers = sum(len(pattern) * times for pattern, times in config["attention_types"])
    return {key: value for key, value in {**config, "n_layer": layers}.items() if value is not None}


def weights(config: dict) -> dict[str, np.ndarray]:
    """Random values of every variable of the model, float32."""
    d, head = config["n_embd"], config["n_embd"] // config["n_head"]
    shapes = {"wte": (config["n_vocab"], d), "ln_f/g": (d,), "ln_f/b": (d,)}
    if "rotary_emb" not in config:
        shapes["wpe"] = (config["n_ctx"], d)
    kinds = [kind for pattern, times in config["attention_types"] for kind in pattern * times]
    for layer, kind in enumerate(kinds):
        own = {f"norm_{i}/{x}": (d,) for i in (1, 2) for x in "gb"}
        own |= {f"attn/{x}": (d, d) for x in "qkvo"} | {"attn/compute_output_bias/o_b": (d,)}
        if kind == "global" and config.get("num_mem_kv"):
            own |= {f"attn/attention/mem_{x}": (config["num_mem_kv"], config["n_head"], head) for x in "kv"}
        for name, size in (("c_fc", (d, 4 * d)), ("c_proj", (4 * d, d))):
            own |= {f"mlp/conv1d_main/{name}/kernel": size, f"mlp/conv1d_main/{name}/bias": size[1:]}
        shapes |= {f"h{layer}/{name}": shape for name, shape in own.items()}

    def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
        noise = random(name).normal(size=shape)
        if len(shape) == 1:
            return name.endswith("/g") + 0.1 * noise
        return noise * (0.05 if name in ("wte", "wpe") else shape[0] ** -0.5)

    return {f"gpt2/{name}": value(name, shape).astype("f4") for name, shape in shapes.items()}


def rounded_weights(config: dict) -> dict[str, np.ndarray]:
    """`weights`, in bfloat16."""
    return {name: value.astype(ml_dtypes.bfloat16) for name, value in weights(config).items()}


def slots(config: dict, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adafactor's slots for these variables, as if there had been steps before: mean squares of gradients of
    the size that they have, factored where both axes have 128 entries, and a momentum."""
    found = {}
    for name, value in values.items():
        size = np.float32(1e-5)
        if value.ndim == 2 and min(value.shape) >= 128:
            rows, columns = (random(name + axis).uniform(0.5, 1.5, n) for axis, n in zip("rc", value.shape))
            squares = np.outer(rows, columns) * size
            longest = int(value.shape[1] > value.shape[0])
            found[f"{name}_slot_vr"], found[f"{name}_slot_vc"] = (
                squares.mean(longest),
                squares.mean(1 - longest),
            )
        else:
            found[f"{name}_slot_v"] = random(name).uniform(0.5, 1.5, value.shape) * size
        if config.get("beta1"):
            found[f"{name}_slot_m"] = random(name + "m").normal(size=value.shape) * 1e-4
    return {name: value.astype("f4") for name, value in found.items()}


def batches(config: dict, count: int) -> list[np.ndarray]:
    """Tokens [batch, n_ctx + 1] that a model can learn something of."""
    steps = random("batches").integers(5, 8, (count, config["batch"], config["n_ctx"] + 1))
    return list((np.cumsum(steps, -1) % config["n_vocab"]).astype(np.int32))


def write_config(folder: Path, config: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    run = {"train_steps": 1000, "train_batch_size": config["batch"]}
    kept = {key: value for key, value in config.items() if key not in ("batch", "exact_angles")}
    (folder / "config.json").write_text(json.dumps(kept | run))


def random(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))
