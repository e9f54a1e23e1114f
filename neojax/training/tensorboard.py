"""TensorBoard's event files, written where they are logged: tensorboardX's own writer dies in its thread when
the disk is full, with a traceback, and then holds the run up for ever."""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FLUSH = 30.0  # seconds between flushes, each of which waits for the disk


class Board:
    """Appends numbers to a new event file in `folder`.

    Events from step `begin` on that older files hold are hidden: those steps are trained again.
    """

    def __init__(self, folder: Path, begin: int):
        self._folder, self._begin = folder, begin
        self._writer: Any = None
        self._flushed = 0.0

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Logs `values` at `step`. Raises `OSError`; what is logged later then goes into another file."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        try:
            if self._writer is None:
                self._open()
            for name, value in values.items():
                self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
            if time.monotonic() - self._flushed > _FLUSH:
                self._writer.flush()
                self._flushed = time.monotonic()
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        with contextlib.suppress(OSError):  # metrics.jsonl has all of it
            if self._writer is not None:
                self._writer.close()
        self._writer = None

    def _open(self) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(self._folder / "events"))
        start = SessionLog(status=SessionLog.SessionStatus.START)
        self._writer.write_event(Event(wall_time=time.time(), step=self._begin, session_log=start))
        self._flushed = time.monotonic()
