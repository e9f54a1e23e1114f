"""What one process of a run does for all of them, such that all of them know how it went."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from neojax.errors import NeojaxError
from neojax.lock import Lock

_LINE = 2000  # bytes of an error that the other processes get to see


def on_first(action: Callable[[], object]) -> None:
    """Process 0 calls `action`; the `NeojaxError` that it raises there is raised by every process.

    Every process calls this at the same point: an error of one alone would leave the others waiting for it for ever.
    """
    error: NeojaxError | None = None
    if jax.process_index() == 0:
        try:
            action()
        except NeojaxError as e:
            error = e
    if jax.process_count() > 1:
        line = np.frombuffer(str(error or "").encode()[:_LINE].ljust(_LINE, b"\0"), np.uint8)
        line = np.asarray(multihost_utils.broadcast_one_to_all(line))
        text = line.astype(np.uint8).tobytes().rstrip(b"\0").decode(errors="ignore")
        if text and error is None:
            error = NeojaxError(text)
    if error is not None:
        raise error


@contextmanager
def owned(run_dir: Path) -> Iterator[Lock]:
    """Makes this run, with all its processes, the one that trains `run_dir`. Raises `NeojaxError` where another does."""
    lock = Lock(run_dir, "trained")
    try:
        on_first(lock.take)
        yield lock
    finally:
        lock.release()
