"""A step that never ends: its process says where it hangs and ends, so that a scheduler starts the run anew.

One process that is alive and stuck holds up all others in a collective for ever; nothing else ends them. What
counts is a step, from the wait for its batch to the end of its computation, which goes on when Python is at
later steps already: a thread waits for the steps' results, another looks at the clock. The first step of a
run, which is compiled, and what happens between steps (evaluations, checkpoints) take as long as they take.
"""

import faulthandler
import queue
import socket
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from neojax.errors import NeojaxError
from neojax.layout.peers import RETRY, end
from neojax.storage.spool import Spool

FACTOR = 50  # times the median step, where train.stall_seconds says nothing
LEAST_SECONDS = 120.0  # and no less
UNKNOWN_SECONDS = 3600.0  # before there is a median
WRITE_SECONDS = 10.0  # for the log, on a file system that may hang too


class Watchdog:
    """Ends the process, with status `peers.RETRY`, when a step takes longer than `seconds`; a context
    manager.

    seconds: None for `FACTOR` times the median of the last 64 steps, at least `LEAST_SECONDS`; 0 for no
    watchdog.
    """

    def __init__(self, run_dir: str | Path | Spool, seconds: float | None = None):
        self._spool = run_dir if isinstance(run_dir, Spool) else Spool(run_dir)
        self.log = self._spool.folder / "logs" / f"{socket.gethostname()}-{jax.process_index()}.log"
        self._seconds = seconds
        self._lock = threading.Lock()
        self._open: deque[tuple[int, float]] = deque()  # steps that have not ended, and when they began
        self._results: queue.SimpleQueue = queue.SimpleQueue()
        self._last_end = time.monotonic()
        self._compiled = False
        self._took: deque[float] = deque(maxlen=64)
        self._closed = threading.Event()
        self._watching = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._seconds != 0:
            threading.Thread(target=self._wait, name="watchdog", daemon=True).start()
            self._watching.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._results.put(None)
        if self._seconds != 0:
            self._watching.join()  # it may be writing its log, and ends nothing after this

    @contextmanager
    def step(self, number: int) -> Iterator[Callable[[jax.Array], None]]:
        """One step's wait for input and its dispatch; gives the function to hand its result to, a small
        array. A step without a result was not run."""
        results: list[jax.Array] = []
        with self._lock:
            self._open.append((number, time.monotonic()))
        try:
            yield results.append
        finally:
            if not results:
                with self._lock:
                    self._open.pop()
            elif self._seconds != 0:
                self._results.put(results[0])
            else:
                self._open.clear()

    def limit(self) -> float:
        """Seconds that a step may take."""
        if self._seconds is not None:
            return self._seconds
        took = list(self._took)
        return max(LEAST_SECONDS, FACTOR * statistics.median(took)) if took else UNKNOWN_SECONDS

    def _wait(self) -> None:
        while (result := self._results.get()) is not None:
            try:
                jax.block_until_ready(result)
            except Exception:  # which the loop meets too
                return self._closed.set()
            with self._lock:
                _, began = self._open.popleft()
                now = time.monotonic()
                if self._compiled:
                    self._took.append(now - max(began, self._last_end))
                self._last_end, self._compiled = now, True

    def _watch(self) -> None:
        ticked = time.monotonic()
        while not self._closed.wait(every := min(self.limit() / 10, 5.0)):
            before, ticked = ticked, time.monotonic()
            with self._lock:
                if ticked - before > 2 * every + 1:  # this process was stopped itself, as by Ctrl-Z
                    self._last_end = ticked
                number, began = self._open[0] if self._open and self._compiled else (0, 0.0)
                spent = time.monotonic() - max(began, self._last_end)
            if number and spent > self.limit():
                return self._end(number, spent)

    def _end(self, number: int, spent: float) -> None:
        line = (
            f"step {number} has not ended after {spent:.0f} s (train.stall_seconds), on process "
            f"{jax.process_index()} of {jax.process_count()}, {socket.gethostname()}"
        )
        writer = threading.Thread(target=self._write, args=(line,), daemon=True)
        writer.start()
        writer.join(WRITE_SECONDS)
        if not self._closed.is_set():  # the loop may have come to its end while the log was written
            end(
                f"{line}; where each thread is stands in {self._spool.named(self.log)}; the same command "
                "goes on from the last whole checkpoint",
                RETRY,
            )

    def _write(self, line: str) -> None:
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S %z')} {line}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            self._spool.send()
        except (OSError, NeojaxError):
            faulthandler.dump_traceback(all_threads=True)
