"""A training run from a config: built, resumed or begun, and set going."""

import math
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import jax

from neojax.arguments import wrong
from neojax.config import Config
from neojax.errors import NeojaxError
from neojax.kernels.choice import Choice, describe, of_layers
from neojax.layout.devices import shape_text
from neojax.layout.hosts import agreed, on_first, owned
from neojax.layout.mesh import Layout, make_layout
from neojax.layout.processes import alone, join
from neojax.models import Transformer, pipeline
from neojax.models.compute import Compute, check_remat, compute_type, turns
from neojax.models.experts import check_groups
from neojax.models.fit import check_fit, without_effect
from neojax.runs import base
from neojax.runs import run_dir as runs
from neojax.runs.checkpoint import Checkpoints
from neojax.storage.remote import place
from neojax.storage.spool import Spool
from neojax.training.alike import check_alike
from neojax.training.asked import Asker, asked_of
from neojax.training.best import Best
from neojax.training.compiler import compiler_options
from neojax.training.feed import open_feed
from neojax.training.health import Health
from neojax.training.inputs import check_data, check_paths
from neojax.training.memory import check_memory
from neojax.training.metrics import Progress
from neojax.training.optimizer import Optimizer, make_optimizer
from neojax.training.resume import first_state, go_on, may_begin
from neojax.training.run import Run, evaluated
from neojax.training.signals import Stop
from neojax.training.state import abstract_state


def build(config: Config, layout: Layout) -> tuple[Transformer, Optimizer]:
    """The (abstract) model and the optimizer of `config`, to run on the devices of `layout`. Raises
    `NeojaxError` where the layout does not fit, or the run not into memory."""
    built = described(config, layout)
    check_memory(config, layout)
    return built


def described(config: Config, layout: Layout) -> tuple[Transformer, Optimizer]:
    """As `build`, for devices that may be described alone, and whatever they hold."""
    train = config.train
    check_remat(train.remat, layout.mesh)  # type: ignore[arg-type]
    compute = Compute(
        compute_type(train.precision, layout),
        train.reduce_dtype,
        train.remat,
        turns(train.unroll, layout),
        train.attention_kernel,
        rounds=train.pipeline_rounds,
    )
    model = Transformer(config.model, layout, compute, train.lora)
    model.stored()
    kernels_of(config, layout, compute.dtype)
    compiler_options(layout, train.compiler_options, train.deterministic)
    check_fit(model, train)
    return model, make_optimizer(train, model.dims(), config.model.n_vocab, model.depths())


def kernels_of(config: Config, layout: Layout, dtype: Any) -> dict[str, Choice]:
    """The kernel of every type of attention in the run, which computes in `dtype`. Raises `NeojaxError` where
    the one that `config` names cannot do it."""
    apart = config.data.isolate_documents or config.data.task != "none"
    return of_layers(config.train.attention_kernel, config.model, layout, dtype, apart)


def train(config: Config, stop: Stop | None = None, ask: Asker | None = None) -> None:
    """Runs (or resumes) the training run of `config` to its end, or until `stop` (default: one of its own) is
    asked. `ask` is for train.eval_tasks, see `neojax.evaluate.in_training.train`.

    Raises `NeojaxError` for what the user can mend.
    """
    if not isinstance(config, Config):
        raise wrong("config", config, "a neojax.config.Config, as neojax.config.load gives it")
    if stop is None:
        with Stop() as stop:
            return train(config, stop, ask)
    if not config.train.run_dir:
        raise NeojaxError(
            "train.run_dir is not set; name the folder of this run, such as train.run_dir=runs/first"
        )
    check_paths(config)
    join(config.mesh)
    config = replace(config, mesh=alone(config.mesh))
    if jax.process_count() > 1 and config.data.task == "none":
        # Reads what nobody has read before, and keeps what it finds for all.
        on_first(lambda: check_data(config))
    # Before anything else: wrong paths are the commonest error.
    feed = agreed(partial(open_feed, config))
    config = feed.config
    asked = agreed(partial(asked_of, ask, config, feed.tokenizer, feed.eos_token_id))
    layout = make_layout(config.mesh)
    model, optimizer = agreed(lambda: build(config, layout))
    agreed(lambda: check_groups(config.model, layout, feed.lengths(layout.row_multiple)))
    agreed(lambda: Best(config.train).check(evaluated(config, model, asked)))
    folder = place(config.train.run_dir)
    idle, lines = without_effect(model)
    if idle and not agreed(lambda: runs.is_run_dir(folder)):  # one that is there goes on
        raise NeojaxError(idle)
    tokenizer = feed.tokenizer
    meta = runs.meta(config, tokenizer, feed.eos_token_id, feed.fingerprints)
    check_alike(meta, layout)
    progress = Progress(config.train.steps)
    with owned(folder) as lock, ExitStack() as stack:
        stop.before_end(lock.release)
        stack.enter_context(jax.set_mesh(layout.mesh))  # type: ignore[arg-type]
        may_begin(config, progress.note)
        checkpoints = stack.enter_context(
            Checkpoints(folder, config.train.keep, dims=model.dims(), n_vocab=config.model.n_vocab)
        )
        abstract = abstract_state(model, optimizer)
        start, state = go_on(checkpoints, config, meta, abstract, progress.note, model.has_base)
        progress.begin(start)
        if start >= config.train.steps and state is None:
            progress.note(
                f"{folder} is finished: {start} of {config.train.steps} steps; raise train.steps to go on"
            )
            return
        on_first(lambda: runs.write(folder, config, tokenizer, feed.chat_template))
        health, unevaluated = Health(config.train), False
        best = Best(config.train)
        if state is not None:
            saved = checkpoints.restore_meta(start)
            best = Best(config.train, saved.get("best"))
            if best.is_over:
                progress.note(
                    f"{folder} is finished at step {start}{best.told()}; raise train.patience to go on"
                )
                return
            health, unevaluated = Health(config.train, saved.get("health")), saved.get("unevaluated", False)
            progress.note(f"resuming {folder} from step {start}")
        else:
            state = first_state(model, optimizer, config.train, progress.note)
            if model.has_base:
                base.write(folder, state.frozen)
        parameters, trained = (
            sum(math.prod(p.shape) for p in part.values()) for part in (state.params, state.trained)
        )
        progress.note(
            f"{parameters:,} parameters{f', {trained:,} of them trained,' if state.frozen else ''} on mesh "
            f"{shape_text(layout.mesh.shape)} ({layout.mesh.devices.flat[0].device_kind}), compute in "
            f"{model.compute.dtype}, run directory {folder}"
        )
        if chosen := kernels_of(config, layout, model.compute.dtype):
            progress.note(describe(chosen))
        if schedule := model.schedule(config.train.microbatches):
            progress.note(pipeline.describe(schedule))
        for line in (*filter(None, (idle, *lines)), *feed.notes):
            progress.note(line)
        run = Run(
            config,
            model,
            optimizer,
            state,
            start,
            progress,
            meta,
            stop,
            health,
            unevaluated,
            feed,
            asked,
            best,
        )
        run.go(checkpoints, lock, stack.enter_context(Spool(folder)))
