"""The files of a run directory that grow: metrics, TensorBoard's events, logs and traces.

No object can be appended to. Where the run directory lies in a bucket, these files are written to a folder of
this machine, and each that has changed is sent whole, at most every EVERY seconds and before each checkpoint:
what a killed run had not sent lies behind the checkpoint that it is resumed from, and is logged again.
"""

import contextlib
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, cast

from neojax.errors import SaveError
from neojax.storage.remote import BucketPath, is_remote

EVERY = 30.0


class Spool:
    """`folder` is where to write such files of `run_dir`: itself, or a temporary folder. A context
    manager."""

    def __init__(self, run_dir: str | Path):
        self._remote = BucketPath(str(run_dir)) if is_remote(run_dir) else None
        self.folder = Path(run_dir) if self._remote is None else Path(tempfile.mkdtemp(prefix="neojax-run-"))
        self._sent: dict[str, tuple[int, int]] = {}
        self._last = time.monotonic()
        self._sending: threading.Thread | None = None
        self._cause: str | None = None

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        """Sends the rest."""
        try:
            with contextlib.suppress(SaveError) if kind else contextlib.nullcontext():
                self.send()
        finally:
            if self._remote is not None:
                shutil.rmtree(self.folder, ignore_errors=True)

    def named(self, file: Path) -> Path:
        """What a file in `folder` is called in the run directory."""
        if self._remote is None:
            return file
        return cast(Path, self._remote / file.relative_to(self.folder).as_posix())

    def fetch(self, name: str) -> None:
        """Brings a file of the run directory here, if it is there, to be appended to. Raises `OSError`."""
        if self._remote is not None and (self._remote / name).is_file():
            (self._remote / name).download(self.folder / name)
            self._sent[name] = _state(self.folder / name)

    def poll(self) -> None:
        """Sends in the background what has changed, if it is time to. Raises `SaveError` where it failed the
        last time."""
        if self._remote is None or (self._sending is not None and self._sending.is_alive()):
            return
        self._raise()
        if time.monotonic() - self._last > EVERY:
            self._sending = threading.Thread(target=self._send, name="neojax-spool", daemon=True)
            self._sending.start()

    def send(self) -> None:
        """Sends what has changed, and returns when it is there. Raises `SaveError`."""
        if self._remote is not None:
            if self._sending is not None:
                self._sending.join()
            self._cause = None  # it is tried again
            self._send()
            self._raise()

    def _send(self) -> None:
        assert self._remote is not None
        self._last = time.monotonic()
        try:
            for file in self.folder.rglob("*"):
                name = str(file.relative_to(self.folder))
                if file.is_file() and self._sent.get(name) != (state := _state(file)):
                    (self._remote / name).upload(file)
                    self._sent[name] = state
        except OSError as e:
            self._cause = e.strerror or str(e)

    def _raise(self) -> None:
        cause, self._cause = self._cause, None
        if cause is not None:
            raise SaveError(
                f"{self._remote}: metrics and logs could not be written: {cause}; the same command goes on "
                "from the last checkpoint once that is mended"
            )


def _state(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns
