"""The bytes of a data file, of this machine or in a bucket, read where they are wanted.

A file of this machine is mapped into memory. One in a bucket is read by ranges, a request for each: a host of
many reads the rows of batches that it holds, and no more, where a copy of all data on every host would read
the whole of it as many times. What waits for the network is hidden by reading ahead in THREADS threads
(`neojax.data.loader`).
"""

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple, cast

import google_crc32c
import numpy as np

from neojax.errors import NeojaxError
from neojax.storage.remote import BucketPath

THREADS = 16
_SPANS, _SPAN = 64, 1 << 16  # at most; bytes


class Stat(NamedTuple):
    """What changes with a file: its bytes, and when it was written (in a bucket: a number that each writing
    changes)."""

    st_size: int
    st_mtime_ns: int


def stat(file: Path) -> Stat:
    """Of a file of this machine or in a bucket. Raises `OSError`."""
    if not isinstance(file, BucketPath):
        found = file.stat()
        return Stat(found.st_size, found.st_mtime_ns)
    info = file.info()
    written = info.get("generation") or info["LastModified"].timestamp() * 1e6
    return Stat(info["size"], int(written))


class Ranges:
    """The elements of a file in a bucket: `file[start:stop]` reads these. Raises `NeojaxError` where it
    cannot."""

    def __init__(self, file: BucketPath, dtype: np.dtype):
        self._file, self._dtype = file, dtype

    def __getitem__(self, span: slice) -> np.ndarray:
        width = self._dtype.itemsize
        start, stop = span.start or 0, span.stop
        try:
            read = self._file.read_range(start * width, stop * width) if stop > start else b""
        except OSError as e:
            raise NeojaxError(f"cannot read {self._file}: {e.strerror or e}") from None
        if len(read) != (stop - start) * width:
            raise NeojaxError(f"{self._file} has changed: it ends before byte {stop * width}")
        return np.frombuffer(read, self._dtype)


def elements(file: Path, dtype: np.dtype) -> np.ndarray:
    """The elements of a file, which is not empty, to be sliced."""
    if isinstance(file, BucketPath):
        return cast(np.ndarray, Ranges(file, dtype))
    return np.memmap(file, dtype, mode="r")


def whole(file: Path) -> np.ndarray:
    """All bytes of a file, which is not empty, mapped; those of one in a bucket from a copy that has no
    name."""
    if not isinstance(file, BucketPath):
        return np.memmap(file, np.uint8, mode="r")
    with tempfile.NamedTemporaryFile(prefix="neojax-") as copy:
        file.download(Path(copy.name))
        return np.memmap(copy.name, np.uint8, mode="r")


def stream(file: Path) -> IO[bytes]:
    """A file, opened to be read from its beginning to its end."""
    if isinstance(file, BucketPath):
        return file.open()
    return open(file, "rb")


def sample(file: Path, size: int) -> int:
    """The CRC-32C of spans of a file of `size` bytes, spread from the first byte to the last (up to 4 MiB: of
    all of it): what tells it from another of that size wherever it is copied to. Raises `OSError`, or
    `NeojaxError`."""
    if not size:
        return 0
    data = elements(file, np.dtype(np.uint8))
    last = max(size - _SPAN, 0)
    starts = np.linspace(0, last, min(_SPANS, -(-size // _SPAN)), dtype=np.int64)
    with ThreadPoolExecutor(THREADS if isinstance(file, BucketPath) else 1) as pool:
        spans: Iterator[np.ndarray] = pool.map(lambda start: data[start : min(start + _SPAN, size)], starts)
        crc = 0
        for span in spans:
            crc = google_crc32c.extend(crc, span.tobytes())
    return crc
