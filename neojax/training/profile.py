"""A trace of some steps, which xprof and TensorBoard open. How to read it: docs/profiling.md."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax


class Profile:
    """Writes RUN/profile while the run is in `steps`, (first, last), both included; () for no trace.

    Steps are numbered as in metrics.jsonl, the first is 1. A run that is resumed among them traces the rest
    of them, one that is resumed behind them nothing. Every process writes a trace of its own devices.
    """

    def __init__(self, run_dir: str | Path, steps: tuple[int, ...]):
        self.folder = Path(run_dir) / "profile"
        self._steps = range(steps[0], steps[1] + 1) if steps else range(0)
        self._tracing = False

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Everything that the host does for step `number`; starts the trace where that is the first to be
        traced."""
        if number not in self._steps:
            yield
            return
        if not self._tracing:
            options = jax.profiler.ProfileOptions()
            # Every call of a Python function is slow to trace, and lets files grow past what can be written.
            options.python_tracer_level = 0
            jax.profiler.start_trace(self.folder, profiler_options=options)
            self._tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def ends(self, number: int) -> bool:
        """Whether `close` is due after step `number`."""
        return self._tracing and number == self._steps[-1]

    def close(self) -> None:
        """Writes the trace if one is under way; wait for the device first, to have the steps whole."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
