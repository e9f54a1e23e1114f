"""Encoding in processes of their own.

A worker is `python -m neojax.data.workers`, fed through its pipes: unlike multiprocessing's, it neither forks
a process that runs threads nor imports the caller's script, and it ends by itself when the caller does.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from neojax.data.encode import Encoded, Encoder, Piece, Settings
from neojax.data.readers import Record, Skip
from neojax.errors import NeojaxError

SUSPECT = (
    1 << 20
)  # bytes of a document that may itself be the cause where a process ends; a shorter one is not


class Pool:
    """Encoder processes. Used in a `with` block, it ends them."""

    def __init__(self, workers: int, settings: Settings):
        self._settings = settings
        self._processes: list[subprocess.Popen] = []
        self._mine = threading.local()
        self._workers = workers
        self._threads = ThreadPoolExecutor(workers, "neojax-encode", initializer=self._start)

    # What an encoder runs; a thread of ours waits for each.
    command = (sys.executable, "-m", "neojax.data.workers")

    def _start(self) -> None:
        """Every thread here does nothing but talk with a process of its own."""
        package_root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH"))))
        self._mine.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # One thread each: the processes already fill the cores.
            env={**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"},
        )
        self._processes.append(self._mine.process)
        pickle.dump(self._settings, self._mine.process.stdin)

    def _encode(self, task: list[Record] | Piece) -> Encoded:
        """What becomes of a task. A long document on which its process ends is passed over, and the rest is
        kept."""
        process = self._mine.process
        try:
            pickle.dump(task, process.stdin)
            process.stdin.flush()
            return pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            status = process.wait()
        if isinstance(task, Piece) or all(len(record.data) < SUSPECT for record in task):
            raise NeojaxError(
                f"an encoding process ended with status {status}; where it ran out of memory, use fewer "
                "--workers"
            )
        if len(task) == 1:
            found = Encoded.nothing([Skip(task[0].where, "needs more memory than an encoding process had")])
        self._start()
        return found if len(task) == 1 else Encoded.joined([self._encode([record]) for record in task])

    def map(self, tasks: Iterable[list[Record] | Piece]) -> Iterator[Encoded]:
        """What becomes of each task, in their order; reads only a few tasks ahead."""
        waiting: deque[Future] = deque()
        for task in tasks:
            waiting.append(self._threads.submit(self._encode, task))
            if len(waiting) >= 3 * self._workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *exception: Any) -> None:
        for process in self._processes if exception[0] else ():
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            with contextlib.suppress(BrokenPipeError):  # it ended before, with a task not wholly taken
                process.communicate()


def main() -> None:
    """The worker: settings, then tasks from standard input; what becomes of each to standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the caller decides what it means
    tasks, results = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not break the stream of results
    encoder = Encoder(pickle.load(tasks))
    while True:
        try:
            task = pickle.load(tasks)
            pickle.dump(encoder(task), results, protocol=5)
            results.flush()
        except EOFError:
            return
        except MemoryError:
            os._exit(1)  # the caller tells which document that was


if __name__ == "__main__":
    main()
