"""What a run reports: metrics.jsonl, TensorBoard, the progress bar, and throughput."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from neojax.errors import NeojaxError, SaveError
from neojax.output import Dispensable
from neojax.storage.remote import place
from neojax.storage.spool import Spool
from neojax.training.tensorboard import Board

METRICS = "metrics.jsonl"
PLAIN_SECONDS = 30.0  # between lines where there is no terminal


class MetricsWriter:
    """Appends one JSON object per logged step to RUN/metrics.jsonl, and the numbers to RUN/tensorboard.

    A resumed run says where it goes on, `resume_step`: lines of later steps, which a killed run logged after
    its last checkpoint, are dropped, so that the file holds each step once. Only process 0 writes.
    """

    def __init__(self, run_dir: str | Path | Spool, tensorboard: bool = True, resume_step: int = 0):
        self._spool = run_dir if isinstance(run_dir, Spool) else Spool(run_dir)
        self._path = self._spool.folder / METRICS
        self._file: Any = None
        self._board: Board | None = None
        self._pending = b""  # lines that could not be written yet
        if jax.process_index():
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._spool.fetch(METRICS)
            if self._path.exists():
                _drop_after(self._path, resume_step)
            self._file = self._path.open("ab", buffering=0)
        except OSError as e:
            raise self._unwritten(e) from None
        if tensorboard:
            self._board = Board(self._path.parent / "tensorboard", resume_step + 1)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Logs `values` (numbers, arrays of one number, lists of numbers, None) at `step`, on disk when it
        returns.

        Floats are written so that reading them gives the same double back; NaN and infinities as JSON's usual
        extension (NaN, Infinity), which Python and pandas read. Raises `SaveError` where it cannot be
        written; the next call tries again.
        """
        if self._file is None:
            return
        line = {"step": step, **{name: _plain(value) for name, value in values.items()}}
        self._pending += json.dumps(line).encode() + b"\n"
        numbers = {n: v for n, v in line.items() if n != "step" and isinstance(v, int | float)}
        try:
            self._append()
            if self._board:
                self._board.write(step, numbers)
        except OSError as e:
            raise self._unwritten(e) from None
        self._spool.poll()

    def has(self, step: int, names: Collection[str]) -> bool:
        """Whether the line of `step` has one of `names`; False where this process does not write."""
        if self._file is None:
            return False
        return any(
            row["step"] == step and not row.keys().isdisjoint(names)
            for row in read_metrics(self._path.parent)
        )

    def amend(self, step: int, values: Mapping[str, float]) -> None:
        """Adds `values` to the line of `step`, the last, where it is there; else logs them as `write`
        does."""
        if self._file is None:
            return
        try:
            rows = read_metrics(self._path.parent)
            if not rows or rows[-1]["step"] != step:
                return self.write(step, values)
            rows[-1] |= values
            _rewrite(self._path, rows)  # `_append` opens the new file
            if self._board:
                self._board.write(step, values)
        except OSError as e:
            raise self._unwritten(e) from None
        self._spool.poll()

    def _append(self) -> None:
        """Appends all lines that are pending, or nothing; to a new file where the run directory went away."""
        try:
            is_there = os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path))
        except FileNotFoundError:
            is_there = False
        if not is_there and self._path.parent.is_dir():
            former, self._file = self._file, self._path.open("ab", buffering=0)
            former.close()
        whole = self._file.seek(0, os.SEEK_END)
        try:
            done = 0
            while done < len(self._pending):
                done += self._file.write(self._pending[done:])
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(whole)
            raise
        self._pending = b""

    def _unwritten(self, error: OSError) -> SaveError:
        return SaveError(
            f"{self._path.parent}: the metrics could not be written: {error.strerror or error}; the same "
            "command goes on from the last checkpoint once that is mended"
        )

    def close(self) -> None:
        if self._file:
            self._file.close()
        if self._board:
            self._board.close()


def read_metrics(run_dir: str | Path, name: str = METRICS) -> list[dict[str, Any]]:
    """The lines of RUN/metrics.jsonl, or another file like it: objects with the `step` that they are of.

    A last line that a killed run left unfinished is left out. Raises `NeojaxError` for any other that is
    none.
    """
    path = place(run_dir) / name
    rows = []
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not (isinstance(row, dict) and type(row.get("step")) is int):
                raise ValueError
            rows.append(row)
        except (ValueError, RecursionError):
            if number < len(lines):
                raise NeojaxError(
                    f"{path}: line {number} is not JSON with a step; mend or delete that line"
                ) from None
    return rows


def _drop_after(path: Path, step: int) -> None:
    _rewrite(path, [row for row in read_metrics(path.parent) if row["step"] <= step])


def _rewrite(path: Path, rows: list[dict[str, Any]]) -> None:
    scratch = path.with_suffix(".jsonl.tmp")
    with scratch.open("w", encoding="utf-8") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)
        f.flush()
        os.fsync(f.fileno())
    scratch.replace(path)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str | list):
        return value
    return value.item()


class Throughput:
    """Tokens per second of training proper: without compilation, evaluation and checkpoints.

    The clock starts at the end of the first step, which compiled. `pause` takes other work out.
    """

    def __init__(self) -> None:
        self._start: float | None = None
        self._tokens = 0.0

    def add(self, tokens: float) -> None:
        """Call when a step's result is known (after waiting for the device), with the tokens it trained
        on."""
        if self._start is None:
            self._start = time.perf_counter()
        else:
            self._tokens += tokens

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time inside does not count."""
        began = time.perf_counter()
        try:
            yield
        finally:
            if self._start is not None:
                self._start += time.perf_counter() - began

    def rate(self) -> float | None:
        """Tokens per second since the last call, or None where no whole step has been timed."""
        if self._start is None or not self._tokens:
            return None
        now = time.perf_counter()
        rate = self._tokens / (now - self._start)
        self._start, self._tokens = now, 0
        return rate


class Stopwatch:
    """Seconds spent inside `with`, on average."""

    def __init__(self) -> None:
        self._seconds, self._times = 0.0, 0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds += time.perf_counter() - self._began
        self._times += 1

    def mean(self) -> float:
        """The mean since the last call; 0 where there was nothing to time."""
        mean = self._seconds / max(self._times, 1)
        self._seconds, self._times = 0.0, 0
        return mean


class Progress:
    """A progress bar for training with loss, tokens/s and time left; a line now and then where there is no
    terminal.

    A context manager; only process 0 shows anything. No output that cannot be written ends a run.
    """

    def __init__(self, steps: int):
        self._steps, self._start, self._began = steps, 0, time.monotonic()
        self._last_line = -math.inf
        self._shown = jax.process_index() == 0
        self._out = cast(TextIO, Dispensable(sys.stdout))
        self._console = Console(file=self._out)
        self._bar = None
        if self._shown and self._console.is_terminal:
            self._bar = Bar(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[status]}"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=self._console,
            )
            self._task = self._bar.add_task("train", total=steps, status="compiling")

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, step: int, loss: float, tokens_per_second: float | None = None) -> None:
        """Shows that `step` steps are done, with the loss (nats per token) and the rate of the last of
        them."""
        if not self._shown:
            return
        status = f"loss {loss:.4f}"
        if tokens_per_second:
            status += f"  {tokens_per_second:,.0f} tokens/s"
        if self._bar:
            self._bar.update(self._task, completed=step, status=status)
        elif time.monotonic() - self._last_line >= PLAIN_SECONDS or step == self._steps:
            self._last_line = time.monotonic()
            spent = self._last_line - self._began
            left = spent / max(step - self._start, 1) * (self._steps - step)
            print(f"step {step}/{self._steps}  {status}  {_clock(left)} left", file=self._out, flush=True)

    def begin(self, start: int) -> None:
        """The run goes on from `start`."""
        self._start = start
        if self._bar:
            self._bar.update(self._task, completed=start)

    def note(self, text: str) -> None:
        """Prints a line without disturbing the bar."""
        if self._shown:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
