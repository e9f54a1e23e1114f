"""A run that is asked to stop, by SIGTERM, Ctrl-C or the end of its terminal (SIGHUP): it saves first, within
a time; a second signal ends it at once.

The first signal only leaves word; the loop looks for it where the state is whole: between steps, between the
batches of an evaluation, and while it waits for input. Python runs a signal's handler on the main thread
between two of its own instructions, and that thread may be in the compiler or in a dead file system for as
long as those like. So the word also goes through a pipe, which the interpreter's handler in C writes to, to a
thread that can end the process. Ending it does no harm at any moment: checkpoints and all else that a run
writes appear whole, by a rename. That thread also wakes a wait for input that the signal missed: one that
arrives just before the main thread begins to wait for a lock leaves word and interrupts nothing.
"""

import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
WAKE = signal.SIGURG  # to the main thread, from ours; ignored by default, so that a late one does no harm
WAKE_SECONDS = 0.1  # between two

T = TypeVar("T")


class Stopped(Exception):
    """The run is to stop here."""


class _GivenUp(BaseException):
    """Raised in the main thread out of a wait; no library on the way takes it for an error of its own."""


class Stop:
    """Whether the run has been asked to stop; catches the signals inside `with`, on the main thread.

    `ends_process`: the process is this run's own, as on the command line. Then a signal before the first step
    ends it at once, for there is nothing to save; a second signal does, and `grace_seconds` after the first,
    whatever the main thread is doing. The exit status is then 128 plus the signal's number. Otherwise a
    signal before the first step, and a second one, raise `KeyboardInterrupt`.
    """

    def __init__(self, ends_process: bool = False):
        self._ends_process = ends_process
        self._number = 0  # of the first signal
        self._grace: float | None = None  # seconds; None: there is nothing to save
        self._waits = self._gave_up = False
        self._last_calls: list[Callable[[], object]] = []
        self._done: int | None = None  # the exit status, when all that is left is to end

    @property
    def asked(self) -> bool:
        return self._number != 0

    def protect(self, grace_seconds: float) -> None:
        """From now on there is something to save, which may take `grace_seconds`."""
        self._grace = grace_seconds

    def before_end(self, call: Callable[[], object]) -> None:
        """Has `call` called, in a thread of its own that is waited for a second, when a signal ends the
        process."""
        self._last_calls.append(call)

    def waiting(self, call: Callable[..., T], *args: Any) -> T:
        """`call(*args)`, which only waits for something: given up when the run is asked to stop. Raises
        `Stopped` then."""
        try:
            try:
                self._waits = True
                if self.asked:
                    raise _GivenUp
                return call(*args)
            finally:
                self._waits = False
        except _GivenUp:
            self._gave_up = True
            raise Stopped from None

    def __enter__(self) -> "Stop":
        self._caught = threading.current_thread() is threading.main_thread()
        if not self._caught:  # where Python delivers no signals
            return self
        caught = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]  # nohup
        self._previous = {number: signal.signal(number, self._handle) for number in caught}
        self._previous[WAKE] = signal.signal(WAKE, lambda *_: None)
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._previous_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._main = threading.get_ident()
        self._watcher = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._caught:
            return
        if self._ends_process and self.asked:
            # The watcher stays, for a thread that reads what never comes would hold up the end of the
            # process.
            self._done = 0 if kind is None else 2
            if kind is None and (self._gave_up or _is_alone()):
                sys.stdout.flush()
                os._exit(0)
            return
        signal.set_wakeup_fd(self._previous_fd)
        os.close(self._write)
        self._watcher.join()
        os.close(self._read)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: Any) -> None:
        again = self.asked and number != signal.SIGHUP
        self._number = self._number or number
        if not self._ends_process and (again or self._grace is None):
            raise KeyboardInterrupt
        if self._waits and self._grace is not None:
            self._waits = False
            raise _GivenUp

    def _watch(self) -> None:
        """Reads the numbers of arriving signals until the pipe is closed; wakes the main thread where it
        still waits, and ends the process when it is time."""
        first, deadline = 0, math.inf
        while True:
            left = deadline - time.monotonic()
            wakes = first and (self._waits or not self.asked)  # else `waiting` gives up by itself
            timeout = max(0.0, min(left, WAKE_SECONDS if wakes else math.inf))
            if not select.select([self._read], [], [], None if timeout == math.inf else timeout)[0]:
                if left <= 0:
                    self._end(first, f"not saved within train.grace_seconds={self._grace:g}; {_GOES_ON}")
                if self._waits:
                    signal.pthread_kill(self._main, WAKE)
                continue
            numbers = os.read(self._read, 64)
            if not numbers:
                return
            for number in numbers:
                if number not in SIGNALS:
                    continue
                if not self._ends_process:
                    first = first or number
                    continue
                if (
                    first and number == signal.SIGHUP
                ):  # a shell passes it on, and then the terminal sends its own
                    continue
                if first:
                    self._end(number, f"ended at once by a second signal; {_GOES_ON}")
                if self._grace is None:
                    self._end(number, "stopped before the first step, with nothing to save")
                first, deadline = number, time.monotonic() + self._grace
                _say(first, "stopping after saving; a second signal ends the run at once")

    def _end(self, number: int, why: str) -> NoReturn:
        if self._done is not None:
            os._exit(self._done)
        _say(number, why)
        for call in self._last_calls:
            last = threading.Thread(target=call, daemon=True)
            last.start()
            last.join(1.0)
        if os.isatty(1):
            with contextlib.suppress(OSError):
                os.write(1, b"\x1b[?25h")  # the cursor, which the progress bar hides
        os._exit(128 + number)


def _is_alone() -> bool:
    """Whether no other process waits for this one to take its leave, as JAX does at the end of the
    interpreter."""
    jax = sys.modules.get("jax")
    return jax is None or not jax.distributed.is_initialized()


_GOES_ON = "the same command goes on from the last whole checkpoint"


def _say(number: int, text: str) -> None:
    """One line on stderr, past Python's buffers, whose locks the main thread may hold."""
    with contextlib.suppress(OSError):  # who read it may have been ended by the same signal
        os.write(2, f"{signal.Signals(number).name}: {text}\n".encode())
