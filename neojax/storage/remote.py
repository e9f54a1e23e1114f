"""Paths in buckets, `gs://BUCKET/...` and `s3://BUCKET/...`, read and written through fsspec.

An object store holds whole objects under names and nothing else: an object appears complete or not at all, no
byte of it is changed later, a folder is the common beginning of some names, and there are no renames and no
locks. `BucketPath` has the methods of `pathlib.Path` that can be had all the same. Credentials are those of
the machine, as gcsfs and s3fs find them.
"""

import base64
import errno
import importlib.util
import logging
import os
import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, cast

from neojax.errors import NeojaxError

PACKAGES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}  # what reads each, and the extra that brings it
# pathlib makes one slash of two: a path that came through it is known all the same.
_BLOCK = 1 << 24  # bytes asked for at a time of what is read in order
_URL = re.compile(r"(gs|s3):/{1,2}(?=[^/])")


def is_remote(path: str | Path) -> bool:
    """Whether a path lies in a bucket."""
    return _URL.match(str(path)) is not None


def place(path: str | Path) -> Path:
    """The path itself, or for one in a bucket what behaves like it, a `BucketPath`. Raises `NeojaxError`
    where the package that reads the bucket is not installed."""
    return cast(Path, BucketPath(str(path))) if is_remote(path) else Path(path)


def is_on_no_machine(path: str) -> bool:
    """Whether a path has a scheme, as a URL has, that is not read here."""
    return "://" in path and not is_remote(path)


@cache
def file_system(scheme: str) -> Any:
    """The fsspec file system of a scheme. Raises `NeojaxError` where its package is not installed."""
    package, extra = PACKAGES[scheme]
    if importlib.util.find_spec(package) is None:
        raise NeojaxError(
            f"{scheme}:// is read with {package}, which is not installed: pip install 'neojax[{extra}]'"
        )
    import fsspec

    # It tells the traceback of each request that fails; what concerns a user is raised.
    logging.getLogger(package).setLevel(logging.CRITICAL)
    # What other processes write is to be seen.
    return fsspec.filesystem(scheme, use_listings_cache=False)


@contextmanager
def told(path: object) -> Iterator[None]:
    """Makes `OSError`s of what libraries of object stores raise beside them, each of one line."""
    try:
        yield
    except (FileNotFoundError, FileExistsError, NeojaxError):
        raise
    except Exception as e:
        if isinstance(e, OSError) and e.strerror and "\n" not in e.strerror:
            raise
        text = " ".join(str(e).split()) or type(e).__name__
        raise OSError(errno.EIO, text[:200], str(path)) from None


class BucketPath(os.PathLike):
    """A name in a bucket. Methods are those of `pathlib.Path`; they raise `OSError`s of one line."""

    def __init__(self, url: str):
        match = _URL.match(url)
        assert match, url
        self._scheme = match[1]
        self._key = posixpath.normpath(url[match.end() :])
        self.fs = file_system(self._scheme)

    def __str__(self) -> str:
        return f"{self._scheme}://{self._key}"

    __fspath__ = __str__

    def __repr__(self) -> str:
        return f"BucketPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BucketPath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, name: object) -> "BucketPath":
        return self._named(f"{self._key}/{name}")

    def _named(self, key: str) -> "BucketPath":
        return BucketPath(f"{self._scheme}://{key}")

    @property
    def key(self) -> str:
        """The bucket and the name in it, as fsspec takes them."""
        return self._key

    @property
    def name(self) -> str:
        return self._key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return posixpath.splitext(self.name)[0]

    @property
    def suffix(self) -> str:
        return posixpath.splitext(self.name)[1]

    @property
    def parent(self) -> "BucketPath":
        return self._named(posixpath.dirname(self._key) or self._key)

    def with_name(self, name: str) -> "BucketPath":
        return self.parent / name

    def with_suffix(self, suffix: str) -> "BucketPath":
        return self._named(posixpath.splitext(self._key)[0] + suffix)

    def exists(self) -> bool:
        with told(self):
            return self.fs.exists(self._key)

    def is_file(self) -> bool:
        with told(self):
            return self.fs.isfile(self._key)

    def is_dir(self) -> bool:
        with told(self):
            return self.fs.isdir(self._key)

    def info(self) -> dict[str, Any]:
        """What the store says of the object, in fsspec's words."""
        with told(self):
            return self.fs.info(self._key)

    def iterdir(self) -> Iterator["BucketPath"]:
        with told(self):
            found = self.fs.ls(self._key, detail=False)
        return (self._named(name) for name in map(_plain, found) if name != self._key)

    def glob(self, pattern: str) -> Iterator["BucketPath"]:
        with told(self):
            found = self.fs.glob(f"{self._key}/{pattern}")
        return (self._named(_plain(name)) for name in found)

    def objects(self) -> dict[str, dict[str, Any]]:
        """All objects below this name, by the rest of theirs; what the store says of each, in one list of
        it."""
        with told(self):
            found = self.fs.find(self._key, detail=True)
        start = len(self._key) + 1
        return {_plain(name)[start:]: info for name, info in found.items() if _plain(name) != self._key}

    def read_bytes(self) -> bytes:
        with told(self):
            return self.fs.cat_file(self._key)

    def read_range(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop)."""
        with told(self):
            return self.fs.cat_file(self._key, start=start, end=stop)

    def open(self) -> IO[bytes]:
        """Opened to be read from its beginning to its end."""
        with told(self):
            return self.fs.open(self._key, "rb", block_size=_BLOCK, cache_type="readahead")

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> None:
        with told(self):
            self.fs.pipe_file(self._key, content)

    def write_text(self, text: str, encoding: str = "utf-8") -> None:
        self.write_bytes(text.encode(encoding))

    def create(self, content: bytes) -> bool:
        """Writes the object unless there is one of its name: of several that try at once, one is told
        True."""
        try:
            with told(self):
                self.fs.pipe_file(self._key, content, mode="create")
        except FileExistsError:
            return False
        return True

    def download(self, file: Path) -> None:
        """Copies the object, however large, to a file of this machine."""
        with told(self):
            self.fs.get_file(self._key, str(file))

    def upload(self, file: Path) -> None:
        """Makes the object of a file of this machine, however large."""
        with told(self):
            self.fs.put_file(str(file), self._key)

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            with told(self):
                self.fs.rm_file(self._key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmtree(self) -> None:
        """Removes all objects below this name, if there are any."""
        with told(self), suppress(FileNotFoundError):
            self.fs.rm(self._key, recursive=True)

    def rename(self, target: "BucketPath | str | os.PathLike") -> "BucketPath":
        """Copies the object, or those below this name, within the store, and then removes them. Not one
        step."""
        new = BucketPath(os.fspath(target))
        with told(self):
            if self.fs.isfile(self._key):
                self.fs.cp_file(self._key, new.key)
                self.fs.rm_file(self._key)
            else:
                for rest in self.objects():
                    self.fs.cp_file(f"{self._key}/{rest}", f"{new.key}/{rest}")
                self.rmtree()
        return new

    def mkdir(self, *_: object, **__: object) -> None:
        """Nothing: a folder is there once something is in it."""


def sums_of(info: dict[str, Any]) -> dict[str, str]:
    """The checksums of an object that its store has found itself, in hexadecimal: crc32c and md5 on gs://,
    md5 on s3:// of what was written in one piece."""
    if "crc32c" in info:
        found = {"crc32c": base64.b64decode(info["crc32c"]).hex()}
        return found | ({"md5": base64.b64decode(info["md5Hash"]).hex()} if info.get("md5Hash") else {})
    tag = info.get("ETag", "").strip('"')
    return {"md5": tag} if re.fullmatch("[0-9a-f]{32}", tag) else {}


def _plain(name: str) -> str:
    return name.strip("/")
