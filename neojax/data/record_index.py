"""What is found by reading a file of tokens through, kept so that it is read once: the range of its ids, and of a
TFRecord file where each record begins and how many tokens it holds.

It lies beside the file (`.NAME.index`), or where that cannot be written, in the user's cache folder. It is made anew
where the file's size or time of change differ from those it was made of, or where it is damaged itself.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np

_MAGIC = int.from_bytes(b"neojaxI1", "little")
_HEADER = (
    7  # int64 words: magic, size, time of change, records, smallest id, largest id, checksum of the rest
)


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


def load(file: Path, stat: os.stat_result) -> Index | None:
    """The index of `file` as `stat` shows it, or None where there is none that is whole."""
    for place in _places(file):
        try:
            words = np.fromfile(place, np.int64)
        except OSError:
            continue
        if len(words) < _HEADER or list(words[:3]) != [_MAGIC, stat.st_size, stat.st_mtime_ns]:
            continue
        n = int(words[3])
        if len(words) == _HEADER + 2 * n and words[6] == _checksum(words):
            offsets, counts = words[_HEADER : _HEADER + n], words[_HEADER + n :]
            return Index(offsets, counts, int(words[4]), int(words[5]))
    return None


def save(file: Path, stat: os.stat_result, index: Index) -> None:
    """Keeps the index of `file`, read when it was as `stat` shows it, where it can be kept."""
    header = [_MAGIC, stat.st_size, stat.st_mtime_ns, len(index.offsets), index.smallest, index.largest, 0]
    words = np.concatenate([np.array(header, np.int64), index.offsets, index.counts])
    words[6] = _checksum(words)
    for place in _places(file):
        scratch = place.with_name(f"{place.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                words.tofile(scratch)
                os.replace(scratch, place)
            finally:
                scratch.unlink(missing_ok=True)
            return


def beside(file: Path) -> Path:
    """Where the index of `file` is kept if its folder can be written."""
    return file.with_name(f".{file.name}.index")


def _places(file: Path) -> Iterator[Path]:
    yield beside(file)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    name = hashlib.blake2b(os.fsencode(file.resolve()), digest_size=16).hexdigest()
    yield cache / "neojax" / f"{name}.index"


def _checksum(words: np.ndarray) -> int:
    return google_crc32c.value(np.delete(words, 6).tobytes())
