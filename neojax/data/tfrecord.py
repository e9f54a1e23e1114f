"""gpt-neo's TFRecords as a source of tokens, read at random and without TensorFlow.

A file is a run of records, each a u64 length, its masked CRC-32C, the data, and their masked CRC-32C. The
data is a `tf.train.Example` whose feature `text` is a list of int64 token ids. Source: TensorFlow's
`record_writer.h` and `example.proto`.

Where every example holds n_ctx + 1 tokens, each is one training window, as gpt-neo took them; otherwise the
examples in their order are one stream of tokens, as those of a token store are.
"""

import glob
import re
import struct
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from neojax.data import record_index
from neojax.data.ranges import THREADS, elements, stat, stream
from neojax.data.record_index import Index
from neojax.data.wire import BYTES, VARINT, fields, masked_crc, message, varint, varint_ends, varints
from neojax.errors import NeojaxError
from neojax.storage.remote import is_remote, place

FEATURE = b"text"
_HEADER = struct.Struct("<QI")
_CRC = struct.Struct("<I")
_FRAME = _HEADER.size + _CRC.size  # bytes of a record beside its data
_SCAN = 1 << 22  # bytes of token ids decoded together while a file is indexed
_MOST = 2**63 - 1
_KINDS = {1: "bytes", 2: "float", 3: "int64"}  # fields of tf.train.Feature


def is_tfrecord(path: str | Path) -> bool:
    """Whether a file is a TFRecord by its name: `x.tfrecords`, `x.tfrecord`, `x.tfrecord-00000-of-00010`."""
    return ".tfrecord" in Path(path).name.lower()


def find(path: str | Path) -> list[Path]:
    """The TFRecord files that a file, folder or glob means, in natural order (2 before 10); none where it is
    something else."""
    path = place(path)
    if path.is_dir():
        found = [p for p in path.iterdir() if not p.name.startswith(".")]
    elif path.is_file():
        found = [path]
    elif is_remote(path):
        found = list(path.parent.glob(path.name)) if glob.has_magic(path.name) else []
    else:
        found = [Path(p) for p in glob.glob(str(path), recursive=True)]

    def natural(path: Path) -> list:
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(path))]

    # That each is an object, and no folder, would be a request for each.
    return sorted((p for p in found if is_tfrecord(p) and (is_remote(p) or p.is_file())), key=natural)


class TFRecords:
    """The tokens of TFRecord files, in order. Opening a file for the first time reads it whole, to check it
    and to index it. Raises `NeojaxError` that names file and offset where one is damaged or holds something
    else."""

    def __init__(self, path: str | Path, files: Iterable[Path]):
        self.path = place(path)
        self.files = list(files)
        with ThreadPoolExecutor(THREADS if is_remote(self.path) else 1) as pool:
            found = list(pool.map(_index, self.files))
        indexes = [index for index, _ in found]
        self._ends = [size for _, size in found]
        self._records = np.cumsum([0, *(len(i.counts) for i in indexes)])  # first record of each file
        counts = np.concatenate([np.zeros(1, np.int64), *(i.counts for i in indexes)])
        self._offsets = np.concatenate([i.offsets for i in indexes])
        self._starts = np.cumsum(counts)  # position of each record's first token in the stream
        self._maps: dict[int, np.ndarray] = {}
        self.n_tokens = int(self._starts[-1])
        self.n_documents = len(self._offsets)
        sizes = np.unique(counts[1:])
        self.example_size = int(sizes[0]) if len(sizes) == 1 else None
        smallest, largest = min(i.smallest for i in indexes), max(i.largest for i in indexes)
        self.extremes = (smallest, largest) if self.n_tokens else (0, -1)

    def __str__(self) -> str:
        return f"TFRecords {self.path}"

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self.files[0].parent

    @property
    def starts(self) -> np.ndarray:
        """int64 [examples + 1]: where every example begins in the stream, and where the last ends."""
        return self._starts

    def starts_within(self, start: int, stop: int) -> np.ndarray:
        """int64: where examples begin, at or behind `start` and before `stop`, in order."""
        first, last = np.searchsorted(self._starts[:-1], (start, stop))
        return self._starts[first:last]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Token ids [start, stop) of the stream, clipped to it."""
        start, stop = max(start, 0), min(stop, self.n_tokens)
        if stop <= start:
            return np.zeros(0, np.int64)
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, stop, side="left"))
        payload = np.concatenate([self._payload(i) for i in range(first, last)])
        begin = int(self._starts[first])
        return _slice(payload, start - begin, stop - begin)

    def examples(self) -> Iterator[np.ndarray]:
        """The token ids of every example, in order."""
        for i in range(len(self._offsets)):
            yield varints(self._payload(i))

    def _payload(self, record: int) -> np.ndarray:
        number = int(np.searchsorted(self._records, record, side="right")) - 1
        if number not in self._maps:
            self._maps[number] = elements(self.files[number], np.dtype(np.uint8))
        is_last = record + 1 == self._records[number + 1]
        end = self._ends[number] if is_last else int(self._offsets[record + 1])
        data = self._maps[number][int(self._offsets[record]) : end].tobytes()
        return _token_varints(data[_HEADER.size : -_CRC.size])


def _slice(payload: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Values [start, stop) of `payload`; of a long document only these are decoded."""
    bounds = np.concatenate([np.zeros(1, np.int64), varint_ends(payload) + 1])
    return varints(payload[bounds[start] : bounds[min(stop, len(bounds) - 1)]])


def _index(file: Path) -> tuple[Index, int]:
    """The kept index of a file, or a new one, and its size in bytes. Raises `NeojaxError`."""
    try:
        state = stat(file)
        index = record_index.load(file, state)
        if index is None:
            index = _scan(file, state.st_size)
            record_index.save(file, state, index)
        return index, state.st_size
    except OSError as e:
        raise NeojaxError(f"cannot read {file}: {e.strerror or e}") from None


def _scan(file: Path, size: int) -> Index:
    """Reads a file of `size` bytes through, checking everything. Raises `NeojaxError`."""
    offsets: list[int] = []
    counts: list[int] = []
    pending: list[np.ndarray] = []
    smallest, largest, n_bytes = _MOST, -_MOST, 0
    for offset, data in _records(file, size):
        try:
            payload = _token_varints(data)
            last = varint_ends(payload)
        except ValueError as e:
            raise NeojaxError(f"{file}: the record at offset {offset} holds no token ids: {e}") from None
        offsets.append(offset)
        counts.append(len(last))
        pending.append(payload)
        n_bytes += len(payload)
        # Decoded together: examples may be short.
        if n_bytes >= _SCAN or offset + len(data) + _FRAME == size:
            values = varints(np.concatenate(pending))
            smallest = int(values.min(initial=smallest))
            largest = int(values.max(initial=largest))
            pending, n_bytes = [], 0
    return Index(np.array(offsets, np.int64), np.array(counts, np.int64), smallest, largest)


def _records(file: Path, size: int) -> Iterator[tuple[int, bytes]]:
    """The records of a file of `size` bytes: (offset, data). Raises `NeojaxError`."""
    at = 0
    with stream(file) as f:
        while at < size or not size:
            header = f.read(_HEADER.size)
            if len(header) < _HEADER.size:
                raise NeojaxError(f"{file} is cut short: {size} bytes end in the record at offset {at}")
            length, crc = _HEADER.unpack(header)
            if masked_crc(header[:8]) != crc:
                if at:
                    raise NeojaxError(f"{file} is damaged: bad checksum of the length at offset {at}")
                is_gzip = header[:2] == b"\x1f\x8b"
                hint = "is compressed with gzip, unpack it" if is_gzip else "is not a TFRecord file"
                raise NeojaxError(f"{file} {hint}: no valid record at offset 0")
            if at + length + _FRAME > size:
                raise NeojaxError(
                    f"{file} is cut short: the record at offset {at} needs {at + length + _FRAME - size} "
                    "more bytes"
                )
            data = f.read(length)
            if masked_crc(data) != _CRC.unpack(f.read(_CRC.size))[0]:
                raise NeojaxError(f"{file} is damaged: bad checksum of the record at offset {at}")
            yield at, data
            at += length + _FRAME


def _token_varints(example: bytes) -> np.ndarray:
    """The varints of feature `text` of a serialised Example, uint8 [bytes]. Raises `ValueError`."""
    names = []
    feature = None
    for number, _, entry in fields(message(example, 1)):
        if number == 1 and isinstance(entry, bytes):
            name = message(entry, 1)
            names.append(name.decode(errors="replace"))
            if name == FEATURE:
                feature = message(entry, 2)
    if feature is None:
        found = f"its features: {', '.join(names[:8])}" if names else "it has none"
        raise ValueError(f"no feature 'text'; {found}")
    kinds = {_KINDS.get(number, "?") for number, _, _ in fields(feature)}
    if kinds - {"int64"}:
        raise ValueError(f"feature 'text' is a list of {', '.join(sorted(kinds))}, expected int64")
    return _int64_list(message(feature, 3))


def _int64_list(data: bytes) -> np.ndarray:
    """The varints of an Int64List, packed (one field for all values) or not (a field for each)."""
    if not data:
        return np.zeros(0, np.uint8)
    if data[0] == (1 << 3 | BYTES):
        size, at = varint(data, 1)
        if at + size == len(data):
            return np.frombuffer(data, np.uint8, offset=at)
    if data[0] == (1 << 3 | VARINT):
        raw = np.frombuffer(data, np.uint8)
        last = raw < 0x80
        # A tag of one byte, then a value: the tags are the varints of even number.
        number: np.ndarray = np.cumsum(last) - last
        if (raw[number % 2 == 0] == data[0]).all() and last.sum() % 2 == 0:
            return raw[number % 2 == 1]
    values = [_values(kind, value) for number, kind, value in fields(data) if number == 1]
    return np.concatenate([np.frombuffer(v, np.uint8) for v in values] or [np.zeros(0, np.uint8)])


def _values(kind: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        if kind != BYTES:
            raise ValueError("token ids of a fixed width")
        return value
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
