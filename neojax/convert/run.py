"""Writing a converted model as a run directory, from which it is sampled, evaluated and trained on."""

import os
import shutil
from pathlib import Path

import jax

from neojax import config as configuration
from neojax.config import Config, TrainConfig
from neojax.convert.hf import check_free
from neojax.models import Transformer
from neojax.training import run_dir as runs
from neojax.training.checkpoint import Checkpoints
from neojax.training.optimizer import make_optimizer


def write_run(model: Transformer, path: str | Path) -> None:
    """Writes `model`, with its tokenizer where it has one, as the run directory `path` at step 0.

    The config holds the model and defaults for the rest; optimizer state is that before the first step. The
    directory appears when it is complete. Raises `NeojaxError` where `path` is in use.
    """
    path = Path(path)
    check_free(path)
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    config = Config(model=model.config, train=TrainConfig(run_dir=str(path)))
    tokenizer = getattr(model, "tokenizer", None)
    text = None if tokenizer is None else tokenizer.to_str()
    runs.write_text(partial / runs.CONFIG, configuration.dump(config))
    if text is not None:
        runs.write_text(partial / runs.TOKENIZER, text)
    params = model.params()
    with jax.set_mesh(model.layout.mesh), Checkpoints(partial, keep=1) as checkpoints:  # type: ignore[arg-type]
        opt_state = jax.jit(make_optimizer(config.train, model.dims()).init)(params)
        checkpoints.save(0, {"params": params, "opt_state": opt_state}, runs.meta(config, text))
    os.replace(partial, path)
