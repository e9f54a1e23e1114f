"""Writing a converted model as a run directory, from which it is sampled, evaluated and trained on."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from neojax import config as configuration
from neojax.config import Config, LoraConfig
from neojax.files import new_folder
from neojax.models import Transformer
from neojax.runs import base
from neojax.runs import run_dir as runs
from neojax.runs.checkpoint import Checkpoints
from neojax.training.optimizer import make_optimizer
from neojax.training.state import State, init_state


def write_run(
    model: Transformer,
    path: str | Path,
    config: Config = Config(),  # noqa: B008 - frozen
    step: int = 0,
    opt_state: Any = None,
    *,
    replace: bool = False,
) -> None:
    """Writes `model`, with its tokenizer and end-of-document token, as the run directory `path` at `step`.

    Its config is `config` with this model and run directory; optimizer state is `opt_state`, or that before
    the first step. The directory appears when it is complete. Raises `NeojaxError` where `path` is in use,
    unless it is to `replace` what is there.
    """
    lora = LoraConfig() if model.adapters is None else model.adapters.lora
    train = dataclasses.replace(config.train, run_dir=str(path), lora=lora)
    config = dataclasses.replace(config, model=model.config, train=train)
    text = None if model.tokenizer is None else model.tokenizer.to_str()
    optimizer = make_optimizer(train, model.dims(), model.config.n_vocab, model.depths())
    mesh: Any = model.layout.mesh
    with new_folder(path, replace) as folder, jax.set_mesh(mesh):
        runs.write_text(folder / runs.CONFIG, configuration.dump(config))
        if text is not None:
            runs.write_text(folder / runs.TOKENIZER, text)
        if opt_state is None:
            state = init_state(model, optimizer)
        else:
            state = State(*optimizer.split(model.params()), opt_state)
        if model.has_base:
            base.write(folder, state.frozen)
        meta = runs.meta(config, text, model.eos_token_id)
        with Checkpoints(folder, keep=1) as checkpoints:
            checkpoints.save(step, state.saved(model.has_base), meta)
