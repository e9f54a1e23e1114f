"""The files that `neojax prepare`'s inputs mean: each once, by whatever names it is given or reached."""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from neojax.data.readers import Skip
from neojax.errors import NeojaxError


def expand(inputs: Iterable[str | Path]) -> tuple[list[Path], list[Skip]]:
    """The files that INPUTs (files, folders, globs) mean, and what of them cannot be read.

    Inputs are taken in the order given, what is in a folder or glob sorted by name, hidden files and `__pycache__`
    left out. Links are followed; a file or folder that is met again, by any other name or link, counts once. Raises
    `NeojaxError` for an input that means no file.
    """
    files: dict[object, Path] = {}
    skipped: list[Skip] = []
    seen: set[object] = set()  # folders
    for given in map(str, inputs):
        path = Path(given)
        before = len(skipped)
        if path.is_dir():
            seen_before = _identity(path) in seen
            found = list(_walk(path, seen, skipped))
            if seen_before:
                continue
        elif path.is_file():
            found = [path]
        elif glob.has_magic(given):
            found = []
            for match in sorted(map(Path, glob.glob(given, recursive=True))):
                found += [match] if match.is_file() else []
        else:
            cause = "is neither a file nor a folder" if os.path.lexists(path) else "does not exist"
            raise NeojaxError(f"input {given!r} {cause}")
        if not found:
            causes = "; ".join(f"{skip.where} {skip.reason}" for skip in skipped[before : before + 4])
            raise NeojaxError(f"input {given!r} holds no files" + (f" ({causes})" if causes else ""))
        for file in found:
            files.setdefault(_identity(file), file)
    return list(files.values()), skipped


def _walk(folder: Path, seen: set[object], skipped: list[Skip]) -> Iterator[Path]:
    """The files below `folder`, without recursion: folders may lie deeper than Python's stack."""
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        try:
            if path.is_file():
                yield path
            elif not path.is_dir():
                what = "no regular file" if path.exists() else "a link that leads nowhere"
                skipped.append(Skip(str(path), f"is {what}"))
            elif (identity := _identity(path)) not in seen:
                seen.add(identity)
                names = sorted(os.listdir(path), reverse=True)  # the last is taken first
                waiting += [path / name for name in names if name[0] != "." and name != "__pycache__"]
        except OSError as e:
            skipped.append(Skip(str(path), f"cannot be read: {e.strerror}"))


def _identity(path: Path) -> object:
    """The same for all names of a file or folder."""
    stat = os.stat(path)
    return (
        (stat.st_dev, stat.st_ino) if stat.st_ino else os.path.realpath(path)
    )  # not all file systems number files
