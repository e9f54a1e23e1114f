"""Orbax's voice: it tells every step it takes through absl's logger, and absl then gives the root logger a
handler; what fails in its threads is told once more by asyncio, whose tasks nobody waits for any longer."""

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

import absl.logging  # noqa: F401 - makes its logger, which is of a class of its own

LOGGERS = ("absl", "asyncio", "concurrent.futures")

_lock = threading.Lock()
_inside = 0  # how many are inside at once, in whatever order they come and go
_levels: dict[str, int] = {}
_handler: logging.Handler | None = None
_hook: Any = None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, these loggers are silent: they tell the tracebacks of Orbax's threads too, and what concerns a
    user is raised as a `NeojaxError`. Afterwards they, and the root logger's handlers, are as they were. All
    else that is logged goes where it went."""
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _inside, _handler, _hook
    with _lock:
        _inside += 1
        if _inside > 1:
            return
        for name in LOGGERS:
            _levels[name] = logging.getLogger(name).level
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        _hook, sys.unraisablehook = sys.unraisablehook, _unraisable
        root = logging.getLogger()
        if not root.handlers:  # where absl would add one that stays: what Python itself falls back on
            _handler = logging.lastResort or logging.NullHandler()
            root.addHandler(_handler)


def _leave() -> None:
    global _inside, _handler
    with _lock:
        _inside -= 1
        if _inside:
            return
        for name, level in _levels.items():
            logging.getLogger(name).setLevel(level)
        if sys.unraisablehook is _unraisable:
            sys.unraisablehook = _hook
        if _handler is not None:
            logging.getLogger().removeHandler(_handler)
            _handler = None


def _unraisable(error: Any) -> None:
    """Passes all on but what a thread of a failed save meets when it reports to an event loop that has
    ended."""
    if not (isinstance(error.exc_value, RuntimeError) and "Event loop is closed" in str(error.exc_value)):
        _hook(error)
