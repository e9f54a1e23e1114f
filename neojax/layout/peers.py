"""What a process does when another of its job is gone: it ends with one line and a status that asks for a new
start.

JAX's coordination service, in process 0, notices within a heartbeat's timeout that a process is dead; its
clients notice at once that process 0 is. JAX then aborts the process from a thread in C++, with a stack and
status 134. Its client can call us instead, but no such call reaches Python (jax 0.10.2 to 0.12: the argument,
a C++ status, has no form there), and ends as an uncaught C++ exception. So the handler of those is ours too.
"""

import contextlib
import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax

from neojax.errors import NeojaxError, PeerError

RETRY = PeerError.status  # start the same command again
HEARTBEAT_SECONDS = 30  # without a sign from a process it counts as dead, and the others end
GONE = re.compile(r"Gloo|[Ss]ocket closed|[Cc]onnection (reset|refused|closed)|coordination service")
_handlers: list[Any] = []  # C functions that have to outlive every use


def end(line: str, status: int = RETRY) -> NoReturn:
    """Ends this process from any thread, whatever the others are doing, with one line `error: ...`.

    Past Python's buffers, whose locks the main thread may hold. Nothing is lost: all that a run writes
    appears whole, by a rename.
    """
    with contextlib.suppress(OSError):  # nobody may take our output any longer
        os.write(2, f"error: {line}\n".encode())
        if os.isatty(1):
            os.write(1, b"\x1b[?25h")  # the cursor, which the progress bar hides
    os._exit(status)


def lost() -> NoReturn:
    """Ends this process since another is gone."""
    end(
        "another process of this run has ended or cannot be reached, so this one ends too; the same command "
        "on all hosts goes on from the last whole checkpoint"
    )


@contextlib.contextmanager
def ends_without_peers() -> Iterator[None]:
    """Inside, an exception by which a collective tells that a peer is gone ends this process with one line.

    Another exception that this process alone may have met ends it at once, behind its traceback: on the usual
    way out it would wait for the others, which wait for it.
    """
    try:
        yield
    except Exception as e:
        if isinstance(e, NeojaxError | OSError) or jax.process_count() == 1:
            raise
        if GONE.search(str(e)):
            lost()
        sys.excepthook(type(e), e, e.__traceback__)
        os._exit(1)


@contextlib.contextmanager
def told_of_peers() -> Iterator[None]:
    """Inside, `jax.distributed.initialize` makes a client that calls `lost` where it would abort the
    process."""
    from jaxlib import _jax

    made = getattr(_jax, "get_distributed_runtime_client", None)
    if made is None:  # a JAX that makes it elsewhere keeps its own way to end
        yield
        return

    def client(*args: Any, **kwargs: Any) -> Any:
        return made(*args, missed_heartbeat_callback=lambda _: lost(), **kwargs)

    _on_uncaught(lost)
    _jax.get_distributed_runtime_client = client
    try:
        yield
    finally:
        _jax.get_distributed_runtime_client = made


def cause(error: Exception) -> str:
    """What a failed `jax.distributed.initialize` says, as a clause: nothing where it had no form in Python,
    see above."""
    return "" if "bad_cast" in str(error) else f": {' '.join(str(error).split())}"


def forget_peers() -> None:
    """Drops what a failed `jax.distributed.initialize` leaves, which at the end of the process would say in a
    traceback that it failed."""
    with contextlib.suppress(ImportError, AttributeError):
        from jax._src.distributed import global_state

        global_state.client = global_state.service = None


def _on_uncaught(handler: Callable[[], Any]) -> None:
    """Has C++ call `handler` for a cast that nothing catches, where its library is the usual one."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libstdc++.so.6")
        kind, set_handler = library.__cxa_current_exception_type, library._ZSt13set_terminatePFvvE
        kind.restype = set_handler.restype = ctypes.c_void_p

        def uncaught() -> None:
            type_info = kind()  # vtable, name
            if type_info and ctypes.c_char_p.from_address(type_info + 8).value == b"St8bad_cast":
                handler()
            ctypes.CFUNCTYPE(None)(before)()

        function = ctypes.CFUNCTYPE(None)(uncaught)
        before = set_handler(function)
        _handlers.append(function)
