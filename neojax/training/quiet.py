"""Orbax's voice: it tells every step it takes through absl's logger, and absl then gives the root logger a handler."""

import contextlib
import logging
import threading
from collections.abc import Iterator

import absl.logging  # noqa: F401 - makes its logger, which is of a class of its own

_lock = threading.Lock()
_inside = 0  # how many are inside at once, in whatever order they come and go
_level = logging.NOTSET
_handler: logging.Handler | None = None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, absl's logger is silent: it tells the tracebacks of Orbax's threads too, and what concerns a user is
    raised as a `NeojaxError`. Afterwards it, and the root logger's handlers, are as they were. All else that is logged
    goes where it went."""
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _inside, _level, _handler
    with _lock:
        _inside += 1
        if _inside > 1:
            return
        absl, root = logging.getLogger("absl"), logging.getLogger()
        _level = absl.level
        absl.setLevel(logging.CRITICAL + 1)
        if not root.handlers:  # where absl would add one that stays: what Python itself falls back on
            _handler = logging.lastResort or logging.NullHandler()
            root.addHandler(_handler)


def _leave() -> None:
    global _inside, _handler
    with _lock:
        _inside -= 1
        if _inside:
            return
        logging.getLogger("absl").setLevel(_level)
        if _handler is not None:
            logging.getLogger().removeHandler(_handler)
            _handler = None
