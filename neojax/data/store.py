"""The token store: the Megatron / GPT-NeoX indexed dataset, a `.bin` of token ids beside an `.idx`.

`PREFIX.bin` is the raw concatenation of token ids; `PREFIX.idx` (little-endian) says where each sequence
lies:

    b"MMIDIDX\\0\\0", u64 version = 1, u8 dtype code, u64 N sequences, u64 D,
    i32[N] sizes in tokens, i64[N] byte pointers into .bin, i64[D] first sequence of each document, and N

A sequence is a document, or a sentence of one, where sentences were kept.

Source: `MMapIndexedDataset` of Megatron-LM and GPT-NeoX. Their stores are read as they are, and ours there.
"""

import os
import struct
from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from neojax.data import record_index
from neojax.data.ranges import elements, stat, whole
from neojax.errors import NeojaxError
from neojax.storage.remote import place

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, np.dtype] = {
    code: np.dtype(name)
    for code, name in {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}.items()
}
SPLITS = ("train", "validation")
_SCAN = 1 << 24  # tokens looked at together in a scan


def token_dtype(n_vocab: int) -> np.dtype:
    """The type GPT-NeoX stores ids below `n_vocab` in: u16 below 65500 ids, else i32."""
    return np.dtype("<u2") if n_vocab < 65500 else np.dtype("<i4")


def strip_suffix(prefix: str | Path) -> Path:
    """`PREFIX`, `PREFIX.bin` or `PREFIX.idx` as `PREFIX`."""
    path = place(prefix)
    return path.with_suffix("") if path.suffix in (".bin", ".idx") else path


def _beside(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


class TokenStore:
    """A token store, read-only: its tokens are mapped into memory, or in a bucket read by ranges.

    Its tokens are one stream: all documents in order, one after the other. Opening raises `NeojaxError`
    where a file is missing or malformed, or where the two files do not belong together.
    """

    prefix: Path
    dtype: np.dtype
    n_documents: int
    n_tokens: int
    example_size = None  # documents are whole: nothing was cut for a context length

    def __init__(self, prefix: str | Path):
        self.prefix = strip_suffix(prefix)
        index, tokens = _beside(self.prefix, ".idx"), _beside(self.prefix, ".bin")
        for path, other in ((index, tokens), (tokens, index)):
            if not path.is_file():
                hint = f"{other.name} is there; an interrupted copy?" if other.is_file() else "nor its pair"
                raise NeojaxError(f"token store: {path} does not exist ({hint})")
        try:
            self._read_index(index, tokens)
        except OSError as e:
            raise NeojaxError(f"token store: cannot read {e.filename or index}: {e.strerror or e}") from None

    def _read_index(self, index: Path, tokens: Path) -> None:
        def malformed(cause: str, path: Path = index) -> NeojaxError:
            return NeojaxError(f"token store: {path}: {cause}")

        state = stat(index)
        size = state.st_size
        header = elements(index, np.dtype(np.uint8))[: min(size, HEADER.size)].tobytes() if size else b""
        if header[: len(MAGIC)] != MAGIC[: len(header)]:
            raise malformed(f"not a Megatron index: starts with {header[:9]!r}, expected {MAGIC!r}")
        if len(header) < HEADER.size:
            raise malformed(f"truncated: {size} bytes, the header alone has {HEADER.size}")
        _, version, code, n_sequences, n_doc_idx = HEADER.unpack(header)
        if version != VERSION:
            raise malformed(f"version {version}, expected {VERSION}")
        if code not in DTYPES:
            known = ", ".join(f"{c} {d.name}" for c, d in DTYPES.items())
            raise malformed(f"dtype code {code} is not one for token ids; known: {known}")
        expected = HEADER.size + 12 * n_sequences + 8 * n_doc_idx
        if size != expected:
            raise malformed(
                f"{'truncated' if size < expected else 'too long'}: {size} bytes, but {n_sequences} "
                f"sequences and {n_doc_idx} document bounds take {expected}"
            )
        self.dtype = DTYPES[code]
        self._index, self._n_sequences = index, n_sequences
        kept = record_index.load(index, state)
        if kept is None:
            kept = self._checked(malformed)
            record_index.save(index, state, kept)
        self.n_tokens, needed, self._contiguous = _of_index(kept)
        self.n_documents = n_doc_idx - 1
        length = stat(tokens).st_size
        if length != needed:
            raise malformed(
                f"{length} bytes, but {index.name} says {needed}; "
                f"{'truncated' if length < needed else 'not its pair, or written to later'}?",
                tokens,
            )
        self._bin = elements(tokens, self.dtype) if length else np.zeros(0, self.dtype)

    def _checked(self, malformed: Callable[[str], NeojaxError]) -> record_index.Index:
        """Reads the index through, which takes seconds for the hundreds of millions of documents of a large
        store, and gives what of it is kept. Raises `NeojaxError`."""
        if self._n_sequences and self._sizes.min() < 0:
            raise malformed("a sequence has a negative size")
        bounds = self._bounds
        if (
            not len(bounds)
            or bounds[0] != 0
            or bounds[-1] != self._n_sequences
            or (np.diff(bounds) < 0).any()
        ):
            raise malformed(
                f"document bounds do not rise from 0 to {self._n_sequences}, the number of sequences"
            )
        width = self.dtype.itemsize
        needed = 0
        if self._n_sequences:
            ends = self._pointers + self._sizes.astype(np.int64) * width
            needed = int(ends.max())
            if self._pointers.min() < 0 or (self._pointers % width).any():
                raise malformed(f"a pointer is negative or not a multiple of {width} bytes")
        contiguous = bool((self._pointers == self._starts[:-1] * width).all())
        return _kept(int(self._starts[-1]), needed, contiguous)

    @cached_property
    def _parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The sizes of sequences, their pointers, and the bounds of documents."""
        raw, n = whole(self._index)[HEADER.size :], self._n_sequences
        return raw[: 4 * n].view("<i4"), raw[4 * n : 12 * n].view("<i8"), raw[12 * n :].view("<i8")

    @property
    def _sizes(self) -> np.ndarray:
        return self._parts[0]

    @property
    def _pointers(self) -> np.ndarray:
        return self._parts[1]

    @property
    def _bounds(self) -> np.ndarray:
        return self._parts[2]

    @cached_property
    def _starts(self) -> np.ndarray:
        """Position of every sequence in the stream, in tokens, and the end of the last."""
        starts = np.zeros(self._n_sequences + 1, np.int64)
        np.cumsum(self._sizes, dtype=np.int64, out=starts[1:])
        return starts

    def __str__(self) -> str:
        return f"token store {self.prefix}"

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return self.prefix.parent

    @cached_property
    def starts(self) -> np.ndarray:
        """int64 [documents + 1]: where every document begins in the stream, and where the last ends."""
        return self._starts[self._bounds]

    @property
    def sentences(self) -> tuple[np.ndarray, np.ndarray]:
        """Where every sentence begins in the stream, and where the last ends, int64 [sentences + 1]; and the
        first sentence of every document, and the number of all, int64 [documents + 1]. Where sentences were
        not kept, a document is one."""
        return self._starts, self._bounds

    def starts_within(self, start: int, stop: int) -> np.ndarray:
        """int64: where documents begin, at or behind `start` and before `stop`, in order. Searches the index,
        and reads none of it through, where sequences lie one after the other: their pointers are then where
        they start."""
        if not self._contiguous:
            first, last = np.searchsorted(self.starts, (start, stop))
            return self.starts[first:last]
        width, pointers, bounds = self.dtype.itemsize, self._pointers, self._bounds
        first, last = (bisect_left(bounds, bisect_left(pointers, at * width)) for at in (start, stop))
        return pointers[bounds[first:last]] // width

    @property
    def n_sequences(self) -> int:
        """The sequences that the index lists; a document may be several."""
        return self._n_sequences

    def sequence_start(self, i: int) -> int:
        """Where sequence `i` begins in the stream; for the number of sequences, where the last one ends."""
        return int(self._starts[i])

    def documents(self, i: int) -> np.ndarray:
        """Token ids [length] of document `i`, its end-of-document token included."""
        if not -self.n_documents <= i < self.n_documents:
            raise IndexError(f"document {i} of {self.n_documents}")
        i %= self.n_documents
        return self.read(int(self._starts[self._bounds[i]]), int(self._starts[self._bounds[i + 1]]))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Token ids [start, stop) of the stream, clipped to it. May be a view of the mapped file."""
        start, stop = max(start, 0), min(stop, self.n_tokens)
        if stop <= start:
            return np.zeros(0, self.dtype)
        if self._contiguous:
            return self._bin[start:stop]
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, stop, side="left"))
        pieces = []
        for i in range(first, last):
            begin = int(self._starts[i])
            offset = int(self._pointers[i]) // self.dtype.itemsize - begin
            end = min(int(self._starts[i + 1]), stop)
            pieces.append(self._bin[max(begin, start) + offset : end + offset])
        return np.concatenate(pieces)

    def chunks(self, size: int = _SCAN) -> Iterator[np.ndarray]:
        """The stream in order, `size` tokens at a time."""
        for start in range(0, self.n_tokens, size):
            yield self.read(start, start + size)

    @cached_property
    def extremes(self) -> tuple[int, int]:
        """Smallest and largest token id; (0, -1) where there is none. Reads the whole store where nobody has
        before: what is found is kept beside it (`neojax.data.record_index`)."""
        file = _beside(self.prefix, ".bin")
        state = stat(file)
        kept = record_index.load(file, state)
        if kept is None:
            found = [_extremes(chunk) for chunk in self.chunks()]
            smallest = min((low for low, _ in found), default=0)
            kept = record_index.of_ids(smallest, max((high for _, high in found), default=-1))
            record_index.save(file, state, kept)
        return kept.smallest, kept.largest


def _kept(n_tokens: int, n_bytes: int, contiguous: bool) -> record_index.Index:
    """What is kept of an `.idx` that was read through: the tokens, the bytes of its `.bin`, and whether the
    sequences lie there one after the other."""
    return record_index.Index(np.array([n_bytes]), np.array([n_tokens]), int(contiguous), 0)


def _of_index(kept: record_index.Index) -> tuple[int, int, bool]:
    return int(kept.counts[0]), int(kept.offsets[0]), bool(kept.smallest)


def _extremes(tokens: np.ndarray) -> tuple[int, int]:
    return int(tokens.min()), int(tokens.max())


class StoreWriter:
    """Writes a token store document by document; nothing bears its final name before `close`.

    Used in a `with` block, it closes at the end and throws its files away on an exception.
    """

    def __init__(self, prefix: str | Path, n_vocab: int):
        self.prefix = strip_suffix(prefix)
        self.dtype = token_dtype(n_vocab)
        self._sizes: list[np.ndarray] = []
        self._sentences: list[np.ndarray] = []  # in every document
        self._open = 0
        self._smallest, self._largest = 0, -1
        self._partial = {s: _beside(self.prefix, s + ".partial") for s in (".bin", ".idx")}
        self.prefix.parent.mkdir(parents=True, exist_ok=True)
        self._bin = open(self._partial[".bin"], "wb")  # noqa: SIM115 - closed by close or discard

    def append(self, tokens: np.ndarray) -> None:
        """Adds tokens [length] to the document being written."""
        self._write(tokens)
        self._open += len(tokens)

    def end_document(self) -> None:
        """Ends the document being written."""
        self._sizes.append(np.array([self._open], "<i4"))
        self._sentences.append(np.ones(1, "<i8"))
        self._open = 0

    def add(self, tokens: np.ndarray, sizes: np.ndarray, sentences: np.ndarray | None = None) -> None:
        """Adds whole documents: their tokens [sum(sizes)] and sizes [n]; or the sizes of their sentences, and
        how many `sentences` [documents] each has."""
        self._write(tokens)
        self._sizes.append(np.asarray(sizes, "<i4"))
        self._sentences.append(np.ones(len(sizes), "<i8") if sentences is None else np.asarray(sentences))

    def _write(self, tokens: np.ndarray) -> None:
        stored = np.ascontiguousarray(tokens, self.dtype)
        self._bin.write(stored.data)
        if len(stored):
            low, high = _extremes(stored)
            self._smallest = low if self._largest < 0 else min(low, self._smallest)
            self._largest = max(high, self._largest)

    def close(self) -> None:
        """Completes both files and gives them their names, `.idx` last: a store without it is unfinished."""
        sizes = np.concatenate([np.zeros(0, "<i4"), *self._sizes])
        pointers = np.zeros(len(sizes), "<i8")
        np.cumsum(sizes[:-1], dtype=np.int64, out=pointers[1:])
        pointers *= self.dtype.itemsize
        bounds = np.zeros(1 + sum(map(len, self._sentences)), "<i8")
        np.cumsum(np.concatenate([np.zeros(0, "<i8"), *self._sentences]), out=bounds[1:])
        code = next(c for c, d in DTYPES.items() if d == self.dtype)
        self._sync(self._bin)
        with open(self._partial[".idx"], "wb") as f:
            f.write(HEADER.pack(MAGIC, VERSION, code, len(sizes), len(bounds)))
            for part in (sizes, pointers, bounds):
                f.write(part.data)
            self._sync(f)
        # An old index must not be taken for the index of the new tokens, should we stop between the renames.
        _beside(self.prefix, ".idx").unlink(missing_ok=True)
        for suffix in (".bin", ".idx"):
            os.replace(self._partial[suffix], _beside(self.prefix, suffix))
        file = _beside(self.prefix, ".bin")
        record_index.save(file, stat(file), record_index.of_ids(self._smallest, self._largest))
        n_tokens = int(sizes.sum(dtype=np.int64))
        file = _beside(self.prefix, ".idx")
        record_index.save(file, stat(file), _kept(n_tokens, n_tokens * self.dtype.itemsize, True))

    @staticmethod
    def _sync(f) -> None:
        f.flush()
        os.fsync(f.fileno())
        f.close()

    def discard(self) -> None:
        """Removes what was written."""
        self._bin.close()
        for path in self._partial.values():
            path.unlink(missing_ok=True)

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, kind, value, traceback) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def resolve(path: str | Path, split: str) -> Path:
    """The store prefix a config path means: a prefix as it is, or the `split` ("train", "validation") of a
    folder that `neojax prepare` wrote. Raises `NeojaxError` where there is none."""
    given = place(path)
    if given.name and _beside(strip_suffix(given), ".idx").is_file():
        return strip_suffix(given)
    if given.is_dir():
        if (given / "prepared.json").is_file() and (given / f"{split}.idx").is_file():
            return given / split
        stores = sorted(p.stem for p in given.glob("*.idx"))
        if any((given / name).exists() for name in ("unfinished", "prepared.json")):
            cause = "holds an unfinished `neojax prepare`; run it again"
        elif stores:
            cause = f"is a folder of token stores, name one: {', '.join(str(given / s) for s in stores[:8])}"
        else:
            cause = "is a folder without token stores; write one with `neojax prepare INPUT... --out`"
        raise NeojaxError(f"data.{split}: {given} {cause}")
    near = sorted(str(p.with_suffix("")) for p in given.parent.glob("*.idx")) if given.parent.is_dir() else []
    hint = f"; in its folder: {', '.join(near[:8])}" if near else ""
    raise NeojaxError(
        f"data.{split}: no token store at {given} (expected {given.name}.bin and {given.name}.idx, "
        f"or a folder that `neojax prepare` wrote){hint}"
    )
