"""Writing a converted model as a run directory, from which it is sampled, evaluated and trained on."""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import jax

from neojax import config as configuration
from neojax.config import Config
from neojax.convert.hf import check_free
from neojax.models import Transformer
from neojax.training import run_dir as runs
from neojax.training.checkpoint import Checkpoints
from neojax.training.optimizer import make_optimizer


def write_run(
    model: Transformer,
    path: str | Path,
    config: Config = Config(),  # noqa: B008 - frozen
    step: int = 0,
    opt_state: Any = None,
) -> None:
    """Writes `model`, with its tokenizer and end-of-document token, as the run directory `path` at `step`.

    Its config is `config` with this model and run directory; optimizer state is `opt_state`, or that before the
    first step. The directory appears when it is complete. Raises `NeojaxError` where `path` is in use.
    """
    path = Path(path)
    check_free(path)
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    train = dataclasses.replace(config.train, run_dir=str(path))
    config = dataclasses.replace(config, model=model.config, train=train)
    text = None if model.tokenizer is None else model.tokenizer.to_str()
    runs.write_text(partial / runs.CONFIG, configuration.dump(config))
    if text is not None:
        runs.write_text(partial / runs.TOKENIZER, text)
    params = model.params()
    with jax.set_mesh(model.layout.mesh), Checkpoints(partial, keep=1) as checkpoints:  # type: ignore[arg-type]
        if opt_state is None:
            opt_state = jax.jit(make_optimizer(train, model.dims()).init)(params)
        meta = runs.meta(config, text, model.eos_token_id)
        checkpoints.save(step, {"params": params, "opt_state": opt_state}, meta)
    os.replace(partial, path)
