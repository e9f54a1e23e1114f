"""What is found by reading a file of tokens through, kept so that it is read once: the range of its ids, and
of a TFRecord file where each record begins and how many tokens it holds.

It lies beside the file (`.NAME.index`), in a bucket too, or where that cannot be written, in the user's cache
folder. It holds for a file of the size and the time of change that it was made of, or of the size and the
bytes of a sample of it: a store may be copied. It is made anew where the file is another, or where it is
damaged itself.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np

from neojax.data.ranges import Stat, sample
from neojax.storage.remote import is_remote

_MAGIC = int.from_bytes(b"neojaxI2", "little")
# int64 words: magic, size, time of change, records, smallest id, largest id, sample, checksum of the rest
_HEADER = 8


@dataclass(frozen=True)
class Index:
    """Of every record its offset in bytes and its number of tokens, int64 [records]; the range of all ids."""

    offsets: np.ndarray
    counts: np.ndarray
    smallest: int
    largest: int


def of_ids(smallest: int, largest: int) -> Index:
    """The index of a file without records, of which only the range of ids is to be kept."""
    none = np.zeros(0, np.int64)
    return Index(none, none, smallest, largest)


def load(file: Path, stat: Stat) -> Index | None:
    """The index of `file` as `stat` shows it, or None where there is none that is whole."""
    for place in _places(file):
        try:
            content = place.read_bytes()
        except OSError:
            continue
        words = np.frombuffer(content[: len(content) // 8 * 8], np.int64)
        if len(words) < _HEADER or words[0] != _MAGIC or words[1] != stat.st_size:
            continue
        n = int(words[3])
        if len(words) != _HEADER + 2 * n or words[7] != _checksum(words):
            continue
        index = Index(words[_HEADER : _HEADER + n], words[_HEADER + n :], int(words[4]), int(words[5]))
        if words[2] != stat.st_mtime_ns:
            if words[6] != sample(file, stat.st_size):
                continue
            save(file, stat, index)
        return index
    return None


def save(file: Path, stat: Stat, index: Index) -> None:
    """Keeps the index of `file`, read when it was as `stat` shows it, where it can be kept."""
    header = [_MAGIC, stat.st_size, stat.st_mtime_ns, len(index.offsets), index.smallest, index.largest]
    header += [sample(file, stat.st_size), 0]
    words = np.concatenate([np.array(header, np.int64), index.offsets, index.counts])
    words[7] = _checksum(words)
    for place in _places(file):
        with contextlib.suppress(OSError):
            _write(place, words.tobytes())
            return


def _write(place: Path, content: bytes) -> None:
    if is_remote(place):
        place.write_bytes(content)
        return
    scratch = place.with_name(f"{place.name}.{os.getpid()}")
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        scratch.write_bytes(content)
        os.replace(scratch, place)
    finally:
        scratch.unlink(missing_ok=True)


def beside(file: Path) -> Path:
    """Where the index of `file` is kept if its folder can be written."""
    return file.with_name(f".{file.name}.index")


def _places(file: Path) -> Iterator[Path]:
    yield beside(file)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    name = hashlib.blake2b(
        os.fsencode(file if is_remote(file) else file.resolve()), digest_size=16
    ).hexdigest()
    yield cache / "neojax" / f"{name}.index"


def _checksum(words: np.ndarray) -> int:
    return google_crc32c.value(np.delete(words, 7).tobytes())
