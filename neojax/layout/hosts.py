"""What the processes of a run do such that all of them know how it went on each."""

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from neojax import config as configuration
from neojax.config import MeshConfig
from neojax.errors import NeojaxError, PeerError
from neojax.layout.processes import find, join
from neojax.lock import Lock
from neojax.output import complain
from neojax.storage.lock import BucketLock
from neojax.storage.remote import is_remote

_LINE = 2000  # bytes of an error that the other processes get to see
_TIMEOUT = 1200  # seconds at a barrier, as long as Orbax waits at its own

T = TypeVar("T")


def agreed(work: Callable[[], T]) -> T:
    """`work()`, which every process calls at the same point: the `NeojaxError` that it raises on one is
    raised on all.

    An error of one alone would leave the others waiting for it for ever.
    """
    if jax.process_count() == 1:
        return work()
    error: NeojaxError | None = None
    try:
        result = work()
    except NeojaxError as e:
        error = NeojaxError(
            f"{e} (process {jax.process_index()} of {jax.process_count()}, {socket.gethostname()})"
        )
    line = np.frombuffer(str(error or "").encode()[:_LINE].ljust(_LINE, b"\0"), np.uint8)
    for found in np.asarray(multihost_utils.process_allgather(line)):
        if text := found.astype(np.uint8).tobytes().rstrip(b"\0").decode(errors="ignore"):
            raise NeojaxError(text)
    return result


def on_first(action: Callable[[], object]) -> None:
    """Process 0 calls `action`, and the `NeojaxError` that it raises there is raised by every process, see
    `agreed`."""
    agreed(lambda: action() if jax.process_index() == 0 else None)


@contextmanager
def told_before_joining(overrides: Iterable[str]) -> Iterator[None]:
    """Inside, the `NeojaxError` of a process that has not joined the others yet, as of a configuration that
    its host lacks, is raised by all of them at their first `agreed`; they would wait for it as long as hosts
    may start apart.

    What names the processes is read from the environment and from `overrides`, section.key=value.
    """
    try:
        yield
    except PeerError:
        raise
    except NeojaxError as e:
        own = e
        mesh = None if jax.distributed.is_initialized() else _mesh(overrides)
        if mesh is None or mesh.distributed is False or find(mesh, os.environ) is None:
            raise
        complain(f"error: {e}")  # the others may take their time

        def failed() -> None:
            raise own

        try:
            join(mesh)
            agreed(failed)
        except NeojaxError:
            raise SystemExit(2) from None


def _mesh(overrides: Iterable[str]) -> MeshConfig | None:
    """The keys of `mesh` among `overrides`; None where they make none."""
    try:
        keys = [override for override in overrides if override.startswith("mesh.")]
        return configuration.from_dict({}, keys).mesh
    except NeojaxError:
        return None


def from_first(numbers: Sequence[int]) -> list[int]:
    """The numbers, each below 2^31, that process 0 has."""
    if jax.process_count() == 1:
        return list(numbers)
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(numbers))))
    mine = np.zeros(count, np.int32) if jax.process_index() else np.array(numbers, np.int32)
    return [int(n) for n in np.asarray(multihost_utils.broadcast_one_to_all(mine))]


def barrier(name: str) -> None:
    """Waits, in any thread, until all processes have come to `name`. Raises what JAX does where one does
    not."""
    if jax.process_count() > 1:
        from orbax.checkpoint.multihost import get_barrier_sync_fn

        get_barrier_sync_fn()(key=name, timeout_ms=_TIMEOUT * 1000)


@contextmanager
def owned(run_dir: Path) -> Iterator[Lock | BucketLock]:
    """Makes this run, with all its processes, the one that trains `run_dir`. Raises `NeojaxError` where
    another does."""
    lock = BucketLock(str(run_dir), "trained") if is_remote(run_dir) else Lock(run_dir, "trained")
    try:
        on_first(lock.take)
        yield lock
    finally:
        lock.release()
