"""A training run from a config: build, resume or start, train, evaluate, checkpoint, stop cleanly."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from neojax.arguments import wrong
from neojax.config import Config
from neojax.config.tasks import metrics_of
from neojax.data.share import Share
from neojax.errors import NeojaxError
from neojax.kernels.choice import describe, of_layers
from neojax.layout.devices import shape_text
from neojax.layout.hosts import agreed, from_first, on_first, owned
from neojax.layout.mesh import Layout, make_layout
from neojax.layout.processes import alone, join
from neojax.lock import Lock
from neojax.models import Transformer
from neojax.models.compute import Compute, check_remat, compute_type, turns
from neojax.models.fit import check_fit
from neojax.models.flops import flops_per_token, mfu
from neojax.runs import base
from neojax.runs import run_dir as runs
from neojax.runs.checkpoint import Checkpoints
from neojax.storage.lock import BucketLock
from neojax.storage.remote import place
from neojax.storage.spool import Spool
from neojax.training.alike import check_alike
from neojax.training.asked import Asked, Asker, asked_of
from neojax.training.best import Best
from neojax.training.compiler import compiler_options
from neojax.training.feed import Feed, open_feed
from neojax.training.health import Health, not_finite
from neojax.training.inputs import check_data, check_paths
from neojax.training.measures import MEASURES
from neojax.training.memory import check_memory
from neojax.training.metrics import MetricsWriter, Progress, Stopwatch, Throughput
from neojax.training.optimizer import Optimizer, make_optimizer
from neojax.training.profile import Profile
from neojax.training.resume import first_state, go_on, may_begin
from neojax.training.signals import Stop, Stopped
from neojax.training.state import State, abstract_state
from neojax.training.step import make_train_step
from neojax.training.together import Together
from neojax.training.watchdog import Watchdog


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
    )
    model = Transformer(config.model, layout, compute, train.lora)
    model.stored()
    apart = config.data.isolate_documents or config.data.task != "none"
    of_layers(train.attention_kernel, config.model, layout, compute.dtype, apart)
    compiler_options(layout, train.compiler_options, train.deterministic)
    check_fit(model, train)
    return model, make_optimizer(train, model.dims(), config.model.n_vocab, model.depths())


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
    folder = place(config.train.run_dir)
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
        apart = config.data.isolate_documents or config.data.task != "none"
        dtype = model.compute.dtype
        chosen = of_layers(config.train.attention_kernel, config.model, layout, dtype, apart)
        if chosen:
            progress.note(describe(chosen))
        for line in feed.notes:
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


class Run:
    """The state of a run in progress, and what happens at each step."""

    def __init__(
        self,
        config: Config,
        model: Transformer,
        optimizer: Optimizer,
        state: State,
        step: int,
        progress: Progress,
        meta: dict[str, Any],
        stop: Stop,
        health: Health,
        unevaluated: bool,
        feed: Feed,
        asked: Asked | None,
        best: Best,
    ):
        self.config, self.model, self.state, self.step, self.progress = config, model, state, step, progress
        self.meta, self.stop, self.health = meta, stop, health
        self.unevaluated = unevaluated  # whether the run stopped before an evaluation of this step was done
        self.feed, self.asked, self.best = feed, asked, best
        self.together = Together()
        self.train_step = make_train_step(model, optimizer, config.train)
        self.evaluations = feed.evaluations(model)
        told = [f"{source}_{name}" for source in self.evaluations for name in metrics_of(config.data.task)]
        best.check(self.evaluations, [*told, *(asked.names if asked else ())])
        self.share = Share(model.layout, config.train.microbatch or config.train.batch_size)

    def go(self, checkpoints: Checkpoints, lock: Lock | BucketLock, spool: Spool) -> None:
        """Trains to the last step, or to a signal, and leaves a checkpoint of where it stopped."""
        train = self.config.train
        batches = self.feed.batches(self.step, self.share)
        metrics = agreed(lambda: MetricsWriter(spool, train.tensorboard, resume_step=self.step))
        throughput, waiting = Throughput(), Stopwatch()
        profile = Profile(spool.folder, train.profile_steps)
        first = timed = saved = self.step
        stops = False
        watchdog = Watchdog(spool, train.stall_seconds)
        try:
            with self.progress, self.together, watchdog:
                if self.unevaluated:
                    stops = not self.make_up(metrics) or self.best.is_over
                if self.step == 0 and 0 in train.checkpoint_steps:
                    self.save(checkpoints, lock, spool)
                while self.step < train.steps and not stops:
                    with profile.step(self.step + 1), watchdog.step(self.step + 1) as ran:
                        try:
                            with waiting, jax.profiler.TraceAnnotation("input"):
                                batch = self.share.place(self.next_of(batches))
                        except Stopped:
                            break
                        self.state, values = self.train_step(self.state, batch, jnp.int32(self.step))
                        ran(values["loss"])
                    self.step += 1
                    self.health.add(self.step, values)
                    self.stop.protect(train.grace_seconds)
                    if profile.ends(self.step):
                        jax.block_until_ready(values)
                        with throughput.pause():
                            profile.close()
                    last = self.step == train.steps
                    logs = last or self.step % train.log_every == 0
                    evaluates = last or (train.eval_every > 0 and self.step % train.eval_every == 0)
                    evaluates &= bool(self.config.data.validation or self.asked)
                    stops = self.is_stopping()
                    saves = last or stops or self.step % train.checkpoint_every == 0
                    saves |= self.step in train.checkpoint_steps
                    if logs or evaluates or saves or self.step == first + 1:
                        self.check(checkpoints)  # waits for the step
                        # A checkpoint in the middle of bad steps could push out the last one that is known to
                        # be good.
                        saves &= last or stops or not self.health.in_a_row
                        throughput.add((self.step - timed) * self.feed.tokens_a_step)
                        timed = self.step
                    row = self.training_row(values, throughput.rate(), waiting.mean()) if logs else {}
                    with throughput.pause():
                        self.unevaluated = evaluates and (stops or not self.evaluate_into(row))
                        if self.unevaluated:
                            stops = saves = True
                        elif evaluates:
                            saves |= self.best.add(self.step, row)
                            saves |= self.best.is_over
                            stops |= self.best.is_over
                        if row:
                            self.written(partial(metrics.write, self.step, row))
                            self.written(checkpoints.poll)
                        if saves:
                            saved = self.step
                            self.save(checkpoints, lock, spool)
                if saved < self.step:  # stopped in wait for input
                    self.check(checkpoints)
                    self.save(checkpoints, lock, spool)
                checkpoints.wait()
        finally:
            profile.close()
            metrics.close()
        if self.best.is_over and not self.unevaluated:
            self.progress.note(
                f"finished at step {self.step}: {train.patience} evaluations in a row were no better"
                f"{self.best.told()}"
            )
        elif self.step < train.steps or self.unevaluated:
            self.progress.note(f"stopped at step {self.step}; the same command goes on from there")
        else:
            self.progress.note(
                f"finished {train.steps} steps; {runs.use_of(self.config.model, train.run_dir)}"
                f"{self.best.told()}"
            )

    def save(self, checkpoints: Checkpoints, lock: Lock | BucketLock, spool: Spool) -> None:
        """Starts to save the state, where the run directory is still this run's and all numbers are
        finite."""
        on_first(lock.check)
        saved = self.state.saved(self.model.has_base)
        if bad := not_finite(saved):
            raise NeojaxError(
                f"{bad[0]} holds infinities or NaN after step {self.step}, which is not saved; "
                f"{good(checkpoints)}: {CURE}, and run again"
            )
        meta = {**self.meta, "health": self.health.saved(), "unevaluated": self.unevaluated}
        meta["best"] = self.best.saved()
        self.written(self.write_anew)
        self.written(spool.send)
        self.written(checkpoints.wait)  # that the one before failed is no reason not to try
        self.written(lambda: checkpoints.save(self.step, saved, meta, self.best.step))

    def write_anew(self) -> None:
        """Makes a run directory again of one that was renamed or deleted meanwhile, so that what is saved can
        be used."""
        folder = place(self.config.train.run_dir)
        if any(from_first([(folder / runs.CONFIG).exists()])):
            return
        if not jax.process_index():
            self.progress.note(
                f"WARNING: {folder} was renamed or deleted while it was being trained; it is made anew, and "
                "what is logged and saved from now on lies there"
            )
            runs.write(folder, self.config, self.meta["tokenizer"], self.feed.chat_template)
        if self.model.has_base:
            base.write(folder, self.state.frozen)

    def written(self, write: Callable[[], None]) -> None:
        """Calls `write`; with `train.on_save_error: continue`, what it cannot write is only said."""
        try:
            agreed(write)
        except NeojaxError as e:
            if self.config.train.on_save_error == "stop":
                raise
            self.progress.note(f"WARNING: {e} (train.on_save_error=continue: training goes on)")

    def is_stopping(self) -> bool:
        """Whether the run stops at this point because it, or a peer, was asked to."""
        return self.together.reached(self.stop.asked)

    def next_of(self, batches: Iterator) -> Any:
        """The next batch, None behind the last. Raises `Stopped` where the run is asked to stop before it
        comes.

        A process among others waits on: they may have begun the step already, and the state is whole only
        together.
        """
        if jax.process_count() == 1:
            return self.stop.waiting(next, batches, None)
        return next(batches, None)

    def until_stopped(self, batches: Iterator) -> Iterator:
        """`batches`, one by one. Raises `Stopped` where the run is to stop before the next."""
        while (batch := self.next_of(batches)) is not None:
            yield batch
            if self.is_stopping():
                raise Stopped

    def check(self, checkpoints: Checkpoints) -> None:
        """Waits for the step, tells which were skipped, and ends a run in which too many in a row were."""
        for line in self.health.take():
            self.progress.note(line)
        if self.health.is_hopeless():
            raise NeojaxError(
                f"{self.health.in_a_row} steps in a row had no finite loss and gradient and were skipped "
                f"(train.max_bad_steps); {good(checkpoints)}: {CURE}, and run again"
            )

    def training_row(
        self, values: dict[str, jax.Array], rate: float | None, input_seconds: float
    ) -> dict[str, Any]:
        """What metrics.jsonl says of a step; also moves the progress bar.

        Model FLOPs are told where all parameters are trained: what frozen ones save depends on where they
        are.
        """
        loss = float(values["loss"])
        self.progress.update(self.step, loss, rate)
        row = {
            "tokens": round(self.step * self.feed.tokens_a_step),
            "loss": loss,
            **self.perplexity(loss),
            "grad_norm": float(values["grad_norm"]),
            "learning_rate": float(values["learning_rate"]),
            **{n: np.asarray(x, np.float64).tolist() for n, x in values.items() if n not in ALWAYS},
            "tokens_per_second": rate,
            "input_seconds": input_seconds,
            **self.health.row(),
        }
        if rate and not self.state.frozen and self.config.data.task == "none":
            row["model_flops_per_second"] = rate * flops_per_token(self.config.model)
            used = mfu(rate, self.config.model, self.model.layout.mesh.devices.flat)
            if used is not None:
                row["mfu"] = used
        return row

    def evaluate_into(self, row: dict[str, Any]) -> bool:
        """Evaluates, and adds what comes of it to `row`; False, and nothing added, where the run is to stop
        meanwhile."""
        try:
            row.update(self.evaluation_row())
        except Stopped:
            return False
        return True

    def make_up(self, metrics: MetricsWriter) -> bool:
        """Evaluates where the run was stopped before, unless another resume has done so; False as for
        `evaluate_into`."""
        names = [f"{name}_loss" for name in self.evaluations]
        names += self.asked.names if self.asked else []
        row: dict[str, Any] = {}
        is_known = any(from_first([metrics.has(self.step, names)]))
        if names and (not is_known or self.best.metric):
            if not self.evaluate_into(row):
                return False
            self.best.add(self.step, row)
            if not is_known:
                self.written(partial(metrics.amend, self.step, row))
        self.unevaluated = False
        return True

    def evaluation_row(self) -> dict[str, Any]:
        """What the model reports of every validation store, and the perplexity where there is one; and what
        it answers to train.eval_tasks. Raises `Stopped` where the run is to stop meanwhile."""
        row: dict[str, Any] = {}
        for name, evaluation in self.evaluations.items():
            means = evaluation(self.state.params, self.share, self.until_stopped)
            loss = means["loss"]
            row |= {f"{name}_{what}": mean for what, mean in means.items()}
            row |= self.perplexity(loss, f"{name}_")
            more = {what: mean for what, mean in means.items() if what in MEASURES}
            told = "".join(f", {what} {mean:.4f}" for what, mean in more.items())
            self.progress.note(f"step {self.step}: {name} loss {loss:.4f}{told}")
        if self.asked:
            answers = self.asked(self.model.bind(self.state.params), self.unless_stopped)
            told = ", ".join(f"{name} {value:.4f}" for name, value in answers.items())
            self.progress.note(f"step {self.step}: {told}")
            row |= answers
        return row

    def unless_stopped(self) -> None:
        """Raises `Stopped` where the run is to stop at this point."""
        if self.is_stopping():
            raise Stopped

    def perplexity(self, loss: float, name: str = "") -> dict[str, float]:
        """exp(loss), kept finite; nothing where the loss is no negative log-likelihood."""
        if self.config.train.loss != "cross_entropy" or self.config.model.head.kinds[0] not in ("lm", "mlm"):
            return {}
        return {f"{name}perplexity": math.exp(min(loss, 700.0))}


ALWAYS = ("loss", "grad_norm", "learning_rate")  # metrics of every model
CURE = "lower train.learning_rate or train.clip_norm, or raise train.warmup_steps"


def good(checkpoints: Checkpoints) -> str:
    """Where to go on from, for a message."""
    step = checkpoints.latest()
    return f"the last good checkpoint is {'none' if step is None else f'step {step}'} in {checkpoints.path}"
