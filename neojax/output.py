"""What is printed where nobody may take it: a reader that has left, a terminal that is gone, a disk that is full."""

import contextlib
import os
import sys
from typing import Any, TextIO


class Dispensable:
    """`stream`, of which what cannot be written is lost without an error: work goes on that nobody watches any more."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def drop_untaken() -> None:
    """Drops what of our output nobody takes: closing stdout would complain of it again."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
