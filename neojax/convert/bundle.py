"""TensorFlow V2 checkpoints (tensor bundles), read tensor by tensor and without TensorFlow.

`PREFIX.index` is a LevelDB table from tensor names to `BundleEntryProto`; `PREFIX.data-00000-of-00002` and
its siblings hold the raw values. Sources: `tensor_bundle.h` and `.proto` of TensorFlow, and LevelDB's
`table_format.md`.
"""

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from neojax.convert.tensor_files import Index, TensorFiles
from neojax.data.wire import fields, masked_crc, message, varint
from neojax.errors import NeojaxError

_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
_FOOTER = 48
_TRAILER = 5  # behind each block: how it is compressed, and a checksum
# tensorflow.DataType
DTYPES = {
    code: np.dtype(name)
    for code, name in {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 14: ml_dtypes.bfloat16, 19: "<f2"}.items()
}


@dataclass(frozen=True)
class _Entry:
    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    is_sliced: bool


class Bundle(TensorFiles):
    """The tensors of a checkpoint. `prefix` is its path without `.index`. Raises `NeojaxError` where it is
    damaged or cut short; the values of a tensor are checked against their checksum when it is first read."""

    def __init__(self, prefix: Path):
        self.prefix = prefix
        self._index = _index(prefix)
        self._checked: set[str] = set()
        try:
            table = dict(_table(self._index.read_bytes()))
            self._shards = _header(table.pop(b""))
            self._entries = {key.decode(): _entry(value) for key, value in table.items() if key[:1] != b"\0"}
        except OSError as e:
            raise NeojaxError(f"cannot read {self._index}: {e.strerror or e}") from None
        except (ValueError, IndexError, KeyError, struct.error) as e:
            cause = f"{type(e).__name__} {e}" if isinstance(e, KeyError) else e
            raise NeojaxError(
                f"{self._index} is damaged or no index of a TensorFlow checkpoint: {cause}"
            ) from None
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}
        self.file = {name: self._data_file(entry.shard) for name, entry in self._entries.items()}

    def check(self, names: list[str]) -> None:
        """Raises `NeojaxError` unless these tensors are of a known type and lie within their files."""
        for name in names:
            entry, file = self._entries[name], self.file[name]
            if entry.is_sliced:
                raise NeojaxError(f"{self._index}: {name} is a partitioned variable; save it as a whole one")
            if entry.dtype not in DTYPES:
                raise NeojaxError(
                    f"{self._index}: {name} has TensorFlow's data type {entry.dtype}, no number"
                )
            if math.prod(entry.shape) * DTYPES[entry.dtype].itemsize != entry.size:
                raise NeojaxError(f"{self._index}: {name} {list(entry.shape)} cannot have {entry.size} bytes")
            if not file.is_file():
                raise NeojaxError(f"{file} is missing, which holds {name}; copy it there")
            have = file.stat().st_size
            if entry.offset + entry.size > have:
                raise NeojaxError(
                    f"{file} is cut short: {have} bytes, but {name} ends at {entry.offset + entry.size}"
                )

    def read(self, name: str, index: Index) -> np.ndarray:
        """The part `index` of tensor `name`, in the type it is stored in."""
        entry, file = self._entries[name], self.file[name]
        # Mapped anew for each read, so that pages are not kept.
        raw = np.memmap(file, np.uint8, "r", entry.offset, (entry.size,))
        if name not in self._checked:
            if masked_crc(raw) != entry.crc:
                raise NeojaxError(f"{file} is damaged: bad checksum of {name} at offset {entry.offset}")
            self._checked.add(name)
        return raw.view(DTYPES[entry.dtype]).reshape(entry.shape)[index]

    def _data_file(self, shard: int) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}.data-{shard:05d}-of-{self._shards:05d}")


def find(path: Path) -> Path | None:
    """The prefix of the checkpoint that `path` means: the prefix itself, one of its files, or of a folder the
    one that its file `checkpoint` names, else the one of the highest step, or the only one. None where there
    is none."""
    if path.name.endswith(".index"):
        path = path.with_name(path.name.removesuffix(".index"))
    elif match := re.fullmatch(r"(.+)\.data-\d{5}-of-\d{5}", path.name):
        path = path.with_name(match[1])
    if _index(path).is_file():
        return path
    if not path.is_dir():
        return None
    state = path / "checkpoint"
    if state.is_file():
        named = re.search(
            r'^model_checkpoint_path:\s*"(.*)"', state.read_text(errors="replace"), re.MULTILINE
        )
        # A folder that was copied: only the name of the recorded path still holds.
        newest = path / Path(named[1]).name if named else None
        if newest and _index(newest).is_file():
            return newest
    found = [p.with_name(p.name.removesuffix(".index")) for p in path.glob("*.index") if p.name[0] != "."]
    steps = [p for p in found if re.search(r"-\d+$", p.name)]
    if not steps and len(found) == 1:  # such as bert_model.ckpt, which is of no step
        return found[0]
    return max(steps, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


def _index(prefix: Path) -> Path:
    """The index of a checkpoint; a prefix may have no name, as `.` and `/` have none."""
    return prefix.parent / f"{prefix.name}.index"


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a LevelDB table, in order. Raises `ValueError`."""
    footer = data[-_FOOTER:]
    if len(footer) < _FOOTER or not footer.endswith(_MAGIC):
        raise ValueError(f"{len(data)} bytes without a table's last line")
    _, at = _handle(footer, 0)
    index, _ = _handle(footer, at)
    for _, value in _block(data, *index):
        yield from _block(data, *_handle(value, 0)[0])


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """A block handle: ((offset, size), offset behind it)."""
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return (offset, size), at


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The entries of one block; a key is kept as what differs from the key before it."""
    end = offset + size
    if end + _TRAILER > len(data):
        raise ValueError(f"a block at offset {offset} runs over the end")
    (crc,) = struct.unpack_from("<I", data, end + 1)
    if masked_crc(data[offset : end + 1]) != crc:
        raise ValueError(f"bad checksum of the block at offset {offset}")
    if data[end]:
        raise ValueError(
            f"the block at offset {offset} is compressed; save the checkpoint with TensorFlow again"
        )
    block = data[offset:end]
    (restarts,) = struct.unpack_from("<I", block, size - 4)
    key, at, stop = b"", 0, size - 4 * (restarts + 1)
    while at < stop:
        shared, at = varint(block, at)
        unshared, at = varint(block, at)
        length, at = varint(block, at)
        key = key[:shared] + block[at : at + unshared]
        at += unshared
        yield key, block[at : at + length]
        at += length


def _header(data: bytes) -> int:
    """The number of data files."""
    values = {number: value for number, _, value in fields(data)}
    if values.get(2, 0):
        raise ValueError("its values are big-endian")
    return int(values.get(1, 0))


def _entry(data: bytes) -> _Entry:
    values = {number: value for number, _, value in fields(data)}
    dims = [{n: v for n, _, v in fields(d)} for d in _messages(message(data, 2), 2)]
    crc = values.get(6, b"")
    shape = tuple(int(dim.get(1, 0)) for dim in dims)
    dtype, shard, offset, size = (int(values.get(number, 0)) for number in (1, 3, 4, 5))
    return _Entry(dtype, shape, shard, offset, size, int.from_bytes(_bytes(crc), "little"), 7 in values)


def _messages(data: bytes, number: int) -> list[bytes]:
    return [_bytes(value) for n, _, value in fields(data) if n == number]


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number in the place of bytes")
    return value
