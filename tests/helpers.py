"""What several test files share: a tiny model and its layouts."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from neojax.commands.launch import free_port
from neojax.config import MeshConfig, ModelConfig, from_dict, to_dict
from neojax.layout.mesh import Layout, make_layout
from neojax.layout.names import parse_shape

N_VOCAB = 61  # divides by no axis, so that every split vocabulary is padded


def tiny(**changes) -> ModelConfig:
    """Two groups of a global and a local layer; the window is shorter than the context and does not divide
    it."""
    sizes = {"n_layer": 4, "n_embd": 32, "n_head": 4, "n_ctx": 24, "n_vocab": N_VOCAB, "window_size": 7}
    return model_config(**{**sizes, **changes})


def model_config(base: ModelConfig | None = None, **keys) -> ModelConfig:
    """A model's config from keys in either spelling, over `base` or the defaults."""
    raw = {"model": {} if base is None else to_dict(base)}
    override = [f"model.{key}={json.dumps(value)}" for key, value in keys.items()]
    causal = keys.get("causal", base is None or base.causal)
    return from_dict(raw, [*override, *([] if causal else ["train.mlm_mask_id=0"])]).model


def layout_of(shape: str, layout: str = "", param_layout: str = "") -> Layout:
    """A layout on the first devices, as many as `shape` needs."""
    count = math.prod(parse_shape(shape).values())
    return make_layout(MeshConfig(shape, layout, param_layout), jax.devices()[:count])


def random_tokens(batch: int = 8, length: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, N_VOCAB, (batch, length)).astype(np.int32)


def true_rows(params) -> dict[str, np.ndarray]:
    """Parameters (or gradients) as numpy arrays, without the rows that pad the vocabulary."""
    return {n: np.asarray(p)[:N_VOCAB] if n == "wte" else np.asarray(p) for n, p in params.items()}


def perturbed(params, seed: int = 0):
    """Parameters with noise, so that biases and scales are not all zeros and ones, and scores are not
    tiny."""
    rng = np.random.default_rng(seed)
    changed = {}
    for name, p in params.items():
        noise = rng.normal(size=p.shape).astype("f4") * (0.3 if "scale" in name or "bias" in name else 0.1)
        changed[name] = jax.device_put(np.asarray(p) + noise, p.sharding)
    return changed


def noisy(config, layout=None, seed=0):
    """A model with the same noisy weights whatever the layout; rows that pad the vocabulary are noise as
    well."""
    from neojax.models import Transformer

    plain = Transformer(config).init(seed)
    weights = perturbed(plain.params(), seed)
    if layout is None:
        return plain.bind(weights)
    model = Transformer(config, layout)
    noise = np.random.default_rng(9)
    values = {}
    for name, spec in model.stored().items():
        value = noise.normal(size=spec.shape).astype(np.float32)
        value[tuple(map(slice, weights[name].shape))] = weights[name]
        values[name] = jax.device_put(value, spec.sharding)
    return model.bind(values)


def write_data(folder, n_tokens: int = 4000, n_vocab: int = N_VOCAB):
    """A folder as `neojax prepare` leaves it: a learnable sequence of ids in train and validation stores."""
    from neojax.data.store import StoreWriter

    for seed, split in enumerate(("train", "validation")):
        noise = np.random.default_rng(seed).integers(0, 3, n_tokens)
        with StoreWriter(folder / split, n_vocab) as writer:
            writer.add(np.cumsum(noise + 5) % n_vocab, np.full(n_tokens // 100, 100, np.int32))
    (folder / "prepared.json").write_text("{}")
    return folder


def run_hosts(
    program: str, count: int, *args: object, timeout: float, environment: Mapping[str, str] | None = None
) -> list[Any]:
    """Runs `program` in `count` processes at once, each given its number, the same free port and `args`;
    what each says in the last line of its output, which is JSON. `environment` is added to this one."""
    arguments = [str(free_port()), *map(str, args)]
    own = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(index), *arguments],
            env={**own, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    results = [host.communicate(timeout=timeout) for host in hosts]
    assert [host.returncode for host in hosts] == [0] * count, results
    return [json.loads(out.splitlines()[-1]) for out, _ in results]


def written_run(folder, config, params, tokenizer) -> str:
    """The path of a run directory with one checkpoint, as a run of `config` leaves it."""
    from neojax import config as configuration
    from neojax.runs.checkpoint import Checkpoints
    from neojax.runs.run_dir import meta

    with Checkpoints(folder, keep=1) as checkpoints:
        state = {"params": params, "opt_state": {"count": np.zeros((), np.float32)}}
        checkpoints.save(1, state, meta(config, tokenizer.to_str(), 0))
        checkpoints.wait()
    (folder / "config.yml").write_text(configuration.dump(config))
    return str(folder)


def failure(capsys, *command) -> str:
    """The one line that the command ends with, status 2 and nothing on stdout."""
    from neojax.cli import main

    try:
        status = main(list(command))
    except SystemExit as e:
        status = e.code
    out, err = capsys.readouterr()
    assert status == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err
