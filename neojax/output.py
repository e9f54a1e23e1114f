"""What is printed where nobody may take it: a reader that has left, a stream that is closed, a disk that is
full."""

import contextlib
import json
import os
import sys
from typing import Any, TextIO, cast

# What some readers of lines take for the end of one, though JSON need not escape it; `json` escapes the
# others.
_LINE_ENDS = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})


class Dispensable:
    """`stream`, of which what cannot be written is lost without an error: work goes on that nobody watches
    any more."""

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


def hold_streams() -> None:
    """Gives streams that the process was started without (`>&-`) a place that takes all: else the next file
    that is opened would get a stream's number, and whatever a library writes there would go into it."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 - as long as the process


def own_streams() -> None:
    """As `hold_streams`, for a process of our own: characters that stdout's encoding has not are shown
    escaped, and no message that stderr does not take ends what it is about."""
    hold_streams()
    if getattr(sys.stdout, "errors", "") == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.stderr = cast(TextIO, Dispensable(sys.stderr))


def complain(text: str) -> None:
    """A line on stderr; where nobody can read it, as on a full disk, the exit status says it alone."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{text}\n")  # at once: what C++ prints meanwhile would come before the line's end
        sys.stderr.flush()


def json_line(value: Any) -> str:
    """`value` as one line of JSON, whatever a reader takes for the end of a line and whatever stdout's
    encoding is."""
    text = json.dumps(value, ensure_ascii=False)
    with contextlib.suppress(UnicodeEncodeError):
        text.encode(sys.stdout.encoding or "ascii")
        return text.translate(_LINE_ENDS)
    return json.dumps(value)
