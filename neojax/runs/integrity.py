"""What the files of a checkpoint must hold: the size and checksum of each, kept beside them.

FILES is `{"crc32c": of the list itself, "files": {path: {"bytes": n, "checksum": hex}}}`; of files in an
object store, in place of the checksum, the CRC-32C and the MD5 that the store has found (`"crc32c": hex,
"md5": hex`). A checkpoint may be copied from one to the other: each kind can be told of either. Earlier
versions wrote `{path: bytes}`, which is still checked for what it says of the items.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c

FILES = "files.json"
_CHUNK = 1 << 20
_TAIL = 4  # bytes
_THREADS = 4  # files are summed beside each other: one is read while another waits for storage

Sums = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Listing:
    """The files of a whole checkpoint, as they were written."""

    files: Mapping[str, int | Mapping[str, Any]]
    has_sums: bool

    @property
    def bytes(self) -> int:
        return sum(self._size(name) for name in self.files)

    def _size(self, name: str) -> int:
        entry = self.files[name]
        return entry if isinstance(entry, int) else entry["bytes"]

    def fault(
        self, folder: Path, items: Collection[str] | None = None, part: tuple[int, int] = (0, 1)
    ) -> str | None:
        """The first file of `folder` that is not what was written, as "NAME is missing"; None where all are.

        `items`: only files of these folders. `part`, (index, count): of those, the share of one of `count`
        readers.
        """
        names = self._of(items)
        for name in names:  # all sizes first: they cost nothing
            try:
                size = (folder / name).stat().st_size
            except FileNotFoundError:
                return f"{name} is missing"
            if size != self._size(name):
                return f"{name} has {size} bytes of {self._size(name)}"
        if not self.has_sums:
            return None
        mine = sorted(names, key=self._size)[part[0] :: part[1]]
        with ThreadPoolExecutor(_THREADS, "neojax-verify") as pool:
            for name, found in zip(mine, pool.map(lambda n: self._sum(folder / n, n), mine)):
                if found not in self.files[name].values():  # type: ignore[union-attr]
                    return f"{name} is not what was written: its checksum is {found}"
        return None

    def difference(
        self, found: Mapping[str, Mapping[str, Any]], items: Collection[str] | None = None
    ) -> str | None:
        """As `fault`, of what an object store says of its objects: bytes, crc32c and md5 by name."""
        for name in self._of(items):
            if name not in found:
                return f"{name} is missing"
            entry, there = self.files[name], found[name]
            if there["bytes"] != self._size(name):
                return f"{name} has {there['bytes']} bytes of {self._size(name)}"
            if isinstance(entry, int):
                continue
            wanted = {"crc32c": whole(entry["checksum"])} if "checksum" in entry else entry
            for kind in ("crc32c", "md5"):
                if kind in wanted and kind in there and wanted[kind] != there[kind]:
                    return f"{name} is not what was written: its {kind} is {there[kind]}"
        return None

    def _of(self, items: Collection[str] | None) -> list[str]:
        return sorted(n for n in self.files if items is None or "/" not in n or n.split("/")[0] in items)

    def _sum(self, file: Path, name: str) -> str:
        entry: Any = self.files[name]
        if "checksum" in entry:
            return checksum(file)
        if "md5" in entry:
            with open(file, "rb") as f:
                return hashlib.file_digest(f, "md5").hexdigest()
        return whole(checksum(file))


def checksum(path: Path, sync: bool = False) -> str:
    """CRC-32C of all but the last four bytes of a file, and those bytes, in hexadecimal; with `sync` once it
    is on disk.

    Apart, since a file that ends with its own CRC-32C, as Orbax's do, has the same one over all as any other
    of its size. Raises `OSError`.
    """
    crc = 0
    with open(path, "rb", buffering=0) as f:
        if sync:
            os.fsync(f.fileno())
        left = max(os.fstat(f.fileno()).st_size - _TAIL, 0)
        while left and (chunk := f.read(min(_CHUNK, left))):
            crc = google_crc32c.extend(crc, chunk)
            left -= len(chunk)
        return f"{crc:08x}{f.read().hex()}"


def whole(text: str) -> str:
    """The CRC-32C of all of a file, in hexadecimal, of what `checksum` gives."""
    return f"{google_crc32c.extend(int(text[:8], 16), bytes.fromhex(text[8:])):08x}"


def sums(folder: Path, names: Iterable[str]) -> Sums:
    """Brings files of `folder` to disk, and gives the entries of FILES for them. Raises `OSError`."""
    names = list(names)
    with ThreadPoolExecutor(_THREADS, "neojax-sum") as pool:
        found = pool.map(lambda n: checksum(folder / n, sync=True), names)
        return {n: {"bytes": (folder / n).stat().st_size, "checksum": c} for n, c in zip(names, found)}


def names_in(folder: Path) -> list[str]:
    """All files under `folder`, relative to it."""
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def seal(folder: Path, known: Sums) -> None:
    """Writes FILES for all that is in `folder`, sums that are `known` as they are, and brings it to disk.

    Raises `OSError`.
    """
    files = {**sums(folder, (n for n in names_in(folder) if n not in known)), **known}
    with open(folder / FILES, "w", encoding="utf-8") as f:
        f.write(sealed(files))
        f.flush()
        os.fsync(f.fileno())
    for path in (folder, *(d for d in folder.rglob("*") if d.is_dir())):
        sync_folder(path)


def sealed(files: Sums) -> str:
    """The text of FILES."""
    return json.dumps({"crc32c": _sum_of(files), "files": files}, indent=0, separators=(",", ":"))


def sync_folder(folder: Path) -> None:
    """Brings the names in `folder` to disk. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def listing(folder: Path) -> Listing:
    """Reads FILES of `folder`. Raises `OSError`, or `ValueError` where it is damaged."""
    return parse((folder / FILES).read_bytes())


def parse(text: bytes) -> Listing:
    """The listing that `text`, the content of FILES, is. Raises `ValueError` where it is damaged."""
    try:
        content = json.loads(text)
        if "files" not in content:
            if not all(isinstance(size, int) for size in content.values()):
                raise ValueError
            # Orbax wrote the files beside the items anew, with the time of its commit, after that list was
            # made.
            return Listing({name: size for name, size in content.items() if "/" in name}, has_sums=False)
        if content["crc32c"] != _sum_of(content["files"]):
            raise ValueError
    except (ValueError, TypeError, AttributeError, KeyError):
        raise ValueError(f"{FILES} is not what was written") from None
    return Listing(content["files"], has_sums=True)


def _sum_of(files: Sums) -> str:
    return f"{google_crc32c.value(json.dumps(files, sort_keys=True).encode()):08x}"
