"""Reads documents out of whatever people keep text in: text files, JSON lines, Parquet, compressed and
archived.

Everything is streamed. A record is still undecoded when it leaves here, so that one reader can feed many
encoding processes. What cannot be read is reported with a reason and passed over; the rest is not lost with
it.
"""

import bz2
import contextlib
import gzip
import io
import itertools
import json
import lzma
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, NamedTuple

from neojax.data.memory import longest_document

JSONL = (".jsonl", ".ndjson")
_SHORT = {".tgz": ".tar.gz", ".txz": ".tar.xz", ".tzst": ".tar.zst"}
_SNIFF = 1 << 16  # bytes looked at to tell text from binary and JSON lines from text
_BOM = b"\xef\xbb\xbf"  # a mark that some editors put before UTF-8; it is no part of the text
_CHUNK = 1 << 20  # bytes read at a time of what may be long
_SPOOL = 1 << 26  # bytes of a nested .zip or .parquet held in memory before they go to a temporary file


class Record(NamedTuple):
    """One document, not yet decoded: `data` is UTF-8 text, or a line of JSON that holds it."""

    where: str
    data: bytes
    is_json: bool = False


class Skip(NamedTuple):
    """Something that gave no document."""

    where: str
    reason: str


def size(path: Path) -> int:
    """Bytes of a file; 0 where it is gone, which whoever reads it will tell."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def read(path: Path, text_key: str, progress: Callable[[int], None]) -> Iterator[Record | Skip]:
    """The records of one file, in order. `progress` is told how many more bytes of the file have been
    read."""
    try:
        raw = open(path, "rb")  # noqa: SIM115 - so that reading is outside of the try
    except OSError as e:
        yield Skip(str(path), f"cannot be read: {e.strerror}")
        return
    position = 0
    with raw:
        for record in _read(str(path), path.name, raw, text_key):
            # Parquet's reader closes the file when it has read it.
            now = size(path) if raw.closed else raw.tell()
            progress(now - position)
            position = now
            yield record
    progress(size(path) - position)


def may_have_keys(name: str) -> bool:
    """Whether a file of this name may hold records, by whose key the text is found, or files that do."""
    suffix = Path(name).suffix.lower()
    if suffix in _SHORT:
        return True
    if suffix in _DECOMPRESS:
        return may_have_keys(Path(name).stem)
    return suffix in ("", ".json", ".tar", ".zip", ".parquet", *JSONL)


def _read(where: str, name: str, stream: IO[bytes], text_key: str) -> Iterator[Record | Skip]:
    """The records of a stream, by the suffix of its name; `where` says where in which archive it lies."""
    suffix = Path(name).suffix.lower()
    if suffix in _SHORT:
        name, suffix = Path(name).stem + _SHORT[suffix], Path(_SHORT[suffix]).suffix
    unreadable = _unreadable()
    try:
        if suffix in _DECOMPRESS:
            yield from _read(where, Path(name).stem, _DECOMPRESS[suffix](stream), text_key)
        elif suffix == ".tar":
            yield from _read_tar(where, stream, text_key)
        elif suffix == ".zip":
            yield from _read_zip(where, stream, text_key)
        elif suffix == ".parquet":
            yield from _read_parquet(where, stream, text_key)
        elif suffix in JSONL:
            yield from _read_lines(where, stream)
        else:
            yield from _read_text(where, suffix, stream, text_key)
    except unreadable as e:
        yield Skip(where, _why(e))


def _why(e: Exception) -> str:
    if isinstance(e, MemoryError):
        return "needs more memory than there is"
    return f"cannot be read: {type(e).__name__}: {' '.join(str(e).split())}"


def _too_long() -> str:
    return (
        f"longer than {longest_document():,} bytes, which is all that memory and stores have for a document"
    )


def _unreadable() -> tuple[type[Exception], ...]:
    """What libraries raise for damaged or encrypted content."""
    import pyarrow
    import zstandard

    damaged = (EOFError, OSError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)
    believed = (
        ValueError,
        ArithmeticError,
        LookupError,
        struct.error,
    )  # zipfile, of damaged sizes and places
    encrypted = (RuntimeError, NotImplementedError)
    return (*damaged, *believed, *encrypted, MemoryError, zstandard.ZstdError, pyarrow.ArrowException)


class _Zstd(io.RawIOBase):
    """Decompresses zstd frames. Unlike zstandard's stream reader, a cut-off frame is an error and not an
    end."""

    def __init__(self, stream: IO[bytes]):
        import zstandard

        # The Pile and others are compressed with windows beyond the default limit (zstd --long=31).
        self._new = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj
        self._stream = stream
        self._frame: Any = None
        self._input = self._output = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._output:
            if not self._input:
                self._input = self._stream.read(1 << 17)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("compressed file ended before the end of its frame")
                return 0
            self._frame = self._frame or self._new()
            self._output = self._frame.decompress(self._input)
            self._input = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        n = min(len(buffer), len(self._output))
        buffer[:n] = self._output[:n]
        self._output = self._output[n:]
        return n


_DECOMPRESS: dict[str, Callable[[IO[bytes]], IO[bytes]]] = {
    ".gz": lambda stream: io.BufferedReader(gzip.GzipFile(fileobj=stream), 1 << 20),  # type: ignore[type-var]
    ".xz": lambda stream: io.BufferedReader(lzma.open(stream), 1 << 20),  # type: ignore[type-var, arg-type]  # noqa: SIM115
    ".bz2": lambda stream: io.BufferedReader(bz2.BZ2File(stream), 1 << 20),  # type: ignore[type-var]
    ".zst": lambda stream: io.BufferedReader(_Zstd(stream), 1 << 20),
}


def _read_tar(where: str, stream: IO[bytes], text_key: str) -> Iterator[Record | Skip]:
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            if member.isfile() and (content := archive.extractfile(member)) is not None:
                yield from _read(f"{where}/{member.name}", member.name, content, text_key)


def _read_zip(where: str, stream: IO[bytes], text_key: str) -> Iterator[Record | Skip]:
    with _seekable(stream) as file, zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                inside = f"{where}/{member.filename}"
                try:
                    content = archive.open(member)
                except _unreadable() as e:
                    yield Skip(inside, _why(e))
                    continue
                with content:
                    yield from _read(inside, member.filename, content, text_key)


def _read_parquet(where: str, stream: IO[bytes], text_key: str) -> Iterator[Record | Skip]:
    import pyarrow
    import pyarrow.parquet

    with _seekable(stream) as file:
        table = pyarrow.parquet.ParquetFile(file)
        if text_key not in table.schema_arrow.names:
            yield Skip(where, f"no column {text_key!r} (it has {', '.join(table.schema_arrow.names[:8])})")
            return
        row = 0
        for batch in table.iter_batches(batch_size=256, columns=[text_key]):
            for text in batch.column(0).cast(pyarrow.large_binary()).to_pylist():
                row += 1
                at = f"{where}:{row}"
                if text is None:
                    yield Skip(at, f"no {text_key!r}")
                else:
                    yield Skip(at, _too_long()) if len(text) > longest_document() else Record(at, text)


def _seekable(stream: IO[bytes]) -> AbstractContextManager[Any]:
    """The stream itself where one can seek in it, else a temporary copy."""
    if isinstance(stream, io.BufferedReader) and isinstance(stream.raw, io.FileIO):
        return contextlib.nullcontext(stream)
    copy = tempfile.SpooledTemporaryFile(max_size=_SPOOL)  # noqa: SIM115 - the caller closes it
    shutil.copyfileobj(stream, copy, 1 << 20)
    copy.seek(0)
    return copy


def _read_lines(where: str, stream: IO[bytes]) -> Iterator[Record | Skip]:
    longest = longest_document()
    for number in itertools.count(1):
        if not (line := stream.readline(longest + 1)):
            return
        if number == 1:
            line = line.removeprefix(_BOM)
        if len(line) > longest:
            while line and not line.endswith(b"\n"):
                line = stream.readline(_CHUNK)
            yield Skip(f"{where}:{number}", _too_long())
        elif not line.isspace() and line:
            yield Record(f"{where}:{number}", line, is_json=True)


def _read_text(where: str, suffix: str, stream: IO[bytes], text_key: str) -> Iterator[Record | Skip]:
    """One document, or JSON lines in a file whose name does not say so (`x.json.gz`, `x.zst`)."""
    start = stream.read(_SNIFF).removeprefix(_BOM)
    if b"\0" in start:
        yield Skip(where, "not text (holds NUL bytes)")
        return
    if suffix in ("", ".json"):
        if start.startswith(b"{"):
            start = _gather(start, stream, until=b"\n")
        first, _, more = start.partition(b"\n")
        # A `.json` of a single line without the key is more likely a document than a file of one record.
        if (suffix == "" or more or f'"{text_key}"'.encode() in first) and _is_json_object(first):
            yield from _read_lines(where, io.BufferedReader(_Rejoined(start, stream), 1 << 20))
            return
    text = _gather(start, stream)
    yield Skip(where, _too_long()) if len(text) > longest_document() else Record(where, text)


def _gather(start: bytes, stream: IO[bytes], until: bytes | None = None) -> bytes:
    """`start` and what follows, until there is an `until` in it, or more than a document may have."""
    gathered = io.BytesIO()
    chunk = start
    while chunk:
        gathered.write(chunk)
        if gathered.tell() > longest_document() or (until is not None and until in chunk):
            break
        chunk = stream.read(_CHUNK)
    return gathered.getvalue()


def _is_json_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


class _Rejoined(io.RawIOBase):
    """A stream whose start has been read already."""

    def __init__(self, start: bytes, rest: IO[bytes]):
        self._start = io.BytesIO(start)
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self._start.read(len(buffer)) or self._rest.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
