"""Where the processes of a run stop: when one of them is asked to, all stop behind the same step.

They agree as JAX's own preemption service does (which would take SIGTERM from `signals.Stop`), through the
key-value store of the coordination service, so that a step costs no communication. The loops of all processes
pass the same points, one after another. One that is asked leaves word; a thread in each process, which looks
for the word once a second, then holds its loop at the next point and tells how many points it has passed; the
run stops at the first point that none has.
"""

import itertools
import threading
from typing import Any

import jax
from jax._src import distributed

from neojax.errors import NeojaxError

POLL_SECONDS = 1.0
AGREE_SECONDS = 60
_runs = itertools.count()  # those of one Python process, which all processes of a job count alike


class Together:
    """Counts the points of a run and knows whether to stop at one; a context manager around the run."""

    def __init__(self) -> None:
        self._alone = jax.process_count() == 1
        self._name = f"neojax/stop/{next(_runs)}"
        self._lock = threading.Lock()  # held while the processes agree
        self._passed = 0
        self._at: int | None = None  # the point to stop at
        self._told = False
        self._error = ""
        self._ended = threading.Event()

    def __enter__(self) -> "Together":
        if not self._alone:
            self._client: Any = distributed.global_state.client
            self._listener = threading.Thread(target=self._listen, name="stop together", daemon=True)
            self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._alone:
            self._ended.set()

    def reached(self, asked: bool) -> bool:
        """Whether the run stops at this point; `asked`: whether this process was asked to. All processes call
        this equally often and get the same answers. Raises `NeojaxError` where they could not agree."""
        if self._alone:
            return asked
        if asked and not self._told:
            self._told = True
            self._client.key_value_set(self._name, str(jax.process_index()), allow_overwrite=True)
        with self._lock:
            if self._error:
                raise NeojaxError(
                    f"the processes could not agree on a step to stop at: {self._error}; the same command "
                    "goes on from the last whole checkpoint"
                )
            self._passed += 1
            return self._at is not None and self._passed >= self._at

    def _listen(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            if not self._is_asked():
                continue
            with self._lock:
                try:
                    self._agree()
                except Exception as e:
                    self._error = " ".join(str(e).split())
            return

    def _is_asked(self) -> bool:
        try:
            self._client.key_value_try_get(self._name)
        except Exception:  # there is no such key, or nobody to ask, which others notice
            return False
        return True

    def _agree(self) -> None:
        passed = f"{self._name}/passed"
        self._client.key_value_set(f"{passed}/{jax.process_index()}", str(self._passed))
        self._client.wait_at_barrier(passed, AGREE_SECONDS * 1000)
        self._at = 1 + max(int(value) for _, value in self._client.key_value_dir_get(f"{passed}/"))
