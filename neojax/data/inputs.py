"""The files that `neojax prepare`'s inputs mean: each once, by whatever names it is given or reached."""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from neojax.data.readers import Skip
from neojax.errors import NeojaxError
from neojax.files import named

_UNREADABLE = "cannot be read"


def expand(inputs: Iterable[str | Path]) -> tuple[list[Path], list[Skip]]:
    """The files that INPUTs (files, folders, globs) mean, and what of them cannot be read.

    Inputs are taken in the order given, what is in a folder or glob sorted by name, hidden files and
    `__pycache__` left out. A folder that a glob matches is taken as one that is given. Links are followed; a
    file or folder that is met again, by any other name or link, counts once. Raises `NeojaxError` for an
    input that means no file.
    """
    files: dict[object, Path] = {}
    skipped: list[Skip] = []
    seen: set[object] = set()  # folders
    for given in map(str, inputs):
        try:
            before, found, is_known = len(skipped), 0, False
            for path in _named(given, skipped):
                is_known |= path.is_dir() and _identity(path) in seen
                for file, is_folder in _reach(path, seen, skipped):
                    if not is_folder:
                        files.setdefault(_identity(file), file)
                        found += 1
        except (OSError, ValueError) as e:
            cause = getattr(e, "strerror", None) or e
            raise NeojaxError(f"input {given!r} cannot be read: {cause}") from None
        if not found and not is_known:
            causes = "; ".join(f"{skip.where} {skip.reason}" for skip in skipped[before : before + 4])
            raise NeojaxError(f"input {given!r} holds no files" + (f" ({causes})" if causes else ""))
    return list(files.values()), list(dict.fromkeys(skipped))


def _named(given: str, skipped: list[Skip]) -> list[Path]:
    """The file or folder of that name, or all that it matches as a glob."""
    path = named(given, "an input")
    if path.is_file() or path.is_dir():
        return [path]
    if glob.has_magic(given):
        return sorted(_matches(path, skipped))
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise NeojaxError(f"input {given!r} does not exist") from None
    raise NeojaxError(f"input {given!r} is neither a file nor a folder")


def _matches(pattern: Path, skipped: list[Skip]) -> Iterator[Path]:
    """What a glob matches. `**` is any number of folders; each is entered once, since links may lead
    around."""
    if "**" not in pattern.parts:
        yield from map(Path, glob.glob(str(pattern)))
        return
    place = pattern.parts.index("**")
    for top in sorted(glob.glob(str(Path(*pattern.parts[:place])))):
        missed: list[Skip] = []
        for path, is_folder in _reach(Path(top), set(), missed):
            if is_folder:
                yield from _matches(Path(glob.escape(str(path)), *pattern.parts[place + 1 :]), skipped)
        skipped += [skip for skip in missed if skip.reason.startswith(_UNREADABLE)]


def _reach(top: Path, seen: set[object], skipped: list[Skip]) -> Iterator[tuple[Path, bool]]:
    """The files and folders that `top` is or holds, and whether each is a folder; folders in `seen` are left
    out.

    Without recursion: folders may lie deeper than Python's stack.
    """
    waiting = [top]
    while waiting:
        path = waiting.pop()
        try:
            if path.is_file():
                yield path, False
            elif not path.is_dir():
                what = "no regular file" if path.exists() else "a link that leads nowhere"
                skipped.append(Skip(str(path), f"is {what}"))
            elif (identity := _identity(path)) not in seen:
                seen.add(identity)
                names = sorted(os.listdir(path), reverse=True)  # the last is taken first
                yield path, True
                waiting += [path / name for name in names if name[0] != "." and name != "__pycache__"]
        except OSError as e:
            skipped.append(Skip(str(path), f"{_UNREADABLE}: {e.strerror}"))


def _identity(path: Path) -> object:
    """The same for all names of a file or folder."""
    stat = os.stat(path)
    return (
        (stat.st_dev, stat.st_ino) if stat.st_ino else os.path.realpath(path)
    )  # not all file systems number files
