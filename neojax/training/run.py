"""A run in progress: what happens at each step, and how it stops."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from neojax.config import Config, TrainConfig
from neojax.config.tasks import metrics_of
from neojax.data.share import Share
from neojax.errors import NeojaxError
from neojax.layout.hosts import agreed, from_first, on_first
from neojax.lock import Lock
from neojax.models import Transformer
from neojax.models.fit import reported
from neojax.models.flops import flops_per_token, mfu
from neojax.runs import base
from neojax.runs import run_dir as runs
from neojax.runs.checkpoint import Checkpoints
from neojax.storage.lock import BucketLock
from neojax.storage.remote import place
from neojax.storage.spool import Spool
from neojax.training.asked import Asked
from neojax.training.best import Best
from neojax.training.feed import Feed
from neojax.training.health import Health, not_finite
from neojax.training.inputs import named_sources
from neojax.training.measures import MEASURES
from neojax.training.metrics import MetricsWriter, Progress, Stopwatch, Throughput
from neojax.training.optimizer import Optimizer
from neojax.training.profile import Profile
from neojax.training.signals import Stop, Stopped
from neojax.training.state import State
from neojax.training.step import make_train_step
from neojax.training.together import Together
from neojax.training.watchdog import Watchdog


class Due(NamedTuple):
    """What is done behind a step, by its number alone."""

    last: bool
    logs: bool
    evaluates: bool
    saves: bool


def due(train: TrainConfig, step: int) -> Due:
    """What `train` asks for behind `step`."""
    last = step == train.steps
    evaluates = last or (train.eval_every > 0 and step % train.eval_every == 0)
    saves = last or step % train.checkpoint_every == 0 or step in train.checkpoint_steps
    return Due(last, last or step % train.log_every == 0, evaluates, saves)


def evaluated(config: Config, model: Transformer, asked: Asked | None) -> list[str]:
    """The metrics of a run's evaluations."""
    names = [*reported(model, config.train.batch_size, config.model.n_ctx), *metrics_of(config.data.task)]
    names += ["perplexity"] if has_perplexity(config) else []
    held_out = named_sources(config.data.validation)
    return [*(f"{source}_{name}" for source in held_out for name in names), *(asked.names if asked else ())]


def has_perplexity(config: Config) -> bool:
    """Whether the loss is a negative log-likelihood of tokens."""
    return config.train.loss == "cross_entropy" and config.model.head.kinds[0] in ("lm", "mlm")


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
                    last, logs, evaluates, saves = due(train, self.step)
                    evaluates &= bool(self.config.data.validation or self.asked)
                    stops = self.is_stopping()
                    saves |= stops
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
            shown = {*MEASURES, *metrics_of(self.config.data.task)}
            more = {what: mean for what, mean in means.items() if what in shown}
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
        return {f"{name}perplexity": math.exp(min(loss, 700.0))} if has_perplexity(self.config) else {}


ALWAYS = ("loss", "grad_norm", "learning_rate")  # metrics of every model
CURE = "lower train.learning_rate or train.clip_norm, or raise train.warmup_steps"


def good(checkpoints: Checkpoints) -> str:
    """Where to go on from, for a message."""
    step = checkpoints.latest()
    return f"the last good checkpoint is {'none' if step is None else f'step {step}'} in {checkpoints.path}"
