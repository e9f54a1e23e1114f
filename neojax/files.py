"""Files and folders that appear when they are complete, or not at all."""

import contextlib
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neojax.errors import NeojaxError


def named(path: str | Path, what: str) -> Path:
    """The path that a user gave for `what`. Raises `NeojaxError` for an empty text, which is mostly a
    variable of a shell that was never set, and which `Path` takes for the folder one is in; and for one in a
    bucket, of which it would make a folder here."""
    if not str(path):
        raise NeojaxError(f"{what} is an empty text; name a file or folder (. is the one you are in)")
    if "://" in str(path):
        raise NeojaxError(
            f"{what} {path} is not on this machine; name a path here, and copy from or to it by its own tools"
        )
    return Path(path)


def is_free(path: str | Path) -> bool:
    """Whether nothing would be lost by writing `path`: there is nothing, or an empty folder."""
    path = Path(path)
    return not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir()))


@contextmanager
def new_folder(path: str | Path, replace: bool = False) -> Iterator[Path]:
    """A folder to write into, which becomes `path` at the end of the block, and is removed if the block
    raises.

    Where `path` is a link, its target is written. With `replace`, what is there gives way at the end, in one
    step. Raises `NeojaxError` where `path` is in use or cannot be written.
    """
    with _partial(path, replace) as (partial, final):
        partial.mkdir()
        yield partial
        former = _beside(final, "former")
        if replace and os.path.lexists(final):
            os.rename(final, former)
        try:
            os.replace(partial, final)
        except BaseException:
            if former.exists():
                os.rename(former, final)
            raise
        shutil.rmtree(former, ignore_errors=True)


@contextmanager
def new_file(path: str | Path, replace: bool = False) -> Iterator[Path]:
    """As `new_folder`, for a file: the block writes the one whose path it is given."""
    with _partial(path, replace) as (partial, final):
        yield partial
        os.replace(partial, final)


@contextmanager
def _partial(path: str | Path, replace: bool) -> Iterator[tuple[Path, Path]]:
    """Where to write, and where it goes; afterwards neither that nor a folder made for it is left, if it
    stays empty."""
    final = Path(os.path.realpath(path))
    partial = _beside(final, "partial")
    made = [folder for folder in final.parents if not folder.exists()]
    try:
        if not replace and not is_free(final):
            raise NeojaxError(f"{path} exists already; remove it or name another place")
        final.parent.mkdir(parents=True, exist_ok=True)
        yield partial, final
    except OSError as e:
        raise NeojaxError(f"{path}: cannot be written: {e.strerror or e}") from None
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _beside(path: Path, kind: str) -> Path:
    """A name of nobody else's in the same folder, so that it can be renamed to `path`."""
    return path.with_name(f"{path.name[:200]}.{secrets.token_hex(4)}.{kind}")


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does: what it began to write is removed."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # signals are not its concern
        yield
        return
    former = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
