"""Where the checkpoints of a run lie, in a Google Cloud Storage bucket, to which Orbax writes by itself.

No folder can be renamed there. A save is written to checkpoints/STEP at once, with an object
checkpoints/STEP.saving beside it, made before and removed when all is written: by that a folder with a number
for a name is complete, or is not. What the store says of each object (size, CRC-32C, MD5) is listed in the
checkpoint and compared later: nothing is read again for it.
"""

import contextlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import cast

import jax

from neojax.errors import NeojaxError
from neojax.layout.hosts import barrier
from neojax.runs import integrity
from neojax.runs.orbax import one_line
from neojax.runs.run_dir import is_step
from neojax.runs.shelf import NEWEST, UNREADABLE, Folder, Shelf
from neojax.storage.remote import BucketPath, is_remote, sums_of

SAVING, DELETING, DAMAGED = ".saving", ".deleting", ".damaged"


class Bucket:
    """A `Shelf` in a bucket. Every process writes its own shards there, and reads those that it needs."""

    def __init__(self, run_dir: str | Path):
        self._folder = BucketPath(str(run_dir)) / "checkpoints"
        self.path = cast(Path, self._folder)

    def steps(self) -> list[int]:
        names = {path.name for path in self._folder.iterdir()} if self._folder.exists() else set()
        return sorted(int(n) for n in names if is_step(n) and not {n + SAVING, n + DELETING} & names)

    def make_room(self) -> None:
        try:
            self.discard()
        except OSError as e:
            raise NeojaxError(f"{self.path}: cannot write there: {one_line(e)}") from None

    def begin(self, step: int) -> Path:
        if not jax.process_index():
            self._mark(step, SAVING).write_bytes(b"")
        return self.reading(step)

    def finish(self, step: int, keep: Collection[int]) -> None:
        try:  # Orbax has waited for all processes
            if not jax.process_index():
                self._name(step, keep)
        finally:
            barrier(f"neojax_sealed_{step}")

    def _name(self, step: int, keep: Collection[int]) -> None:
        folder = self._at(step)
        (folder / integrity.FILES).write_text(integrity.sealed(_sums(folder)))
        self._mark(step, SAVING).unlink()
        (self._folder.parent / NEWEST).write_text(json.dumps({"step": step}) + "\n")
        for old in self.steps():
            if old not in keep and old < step:
                self._delete(old)

    def _delete(self, step: int) -> None:
        # Marked first: what is deleted in part must not look like a checkpoint.
        self._mark(step, DELETING).write_bytes(b"")
        with contextlib.suppress(OSError):  # the next start would do the rest
            self._at(step).rmtree()
            self._mark(step, DELETING).unlink()

    def discard(self) -> None:
        if not self._folder.exists():
            return
        for path in list(self._folder.iterdir()):
            step = path.name.partition(".")[0]
            if is_step(step) and path.name[len(step) :] in (SAVING, DELETING):
                self._at(int(step)).rmtree()
                path.unlink()

    def set_aside(self, step: int) -> None:
        aside = BucketPath(str(self.aside(step)))
        aside.rmtree()
        self._mark(step, DELETING).write_bytes(b"")
        self._at(step).rename(aside)
        self._mark(step, DELETING).unlink()

    def aside(self, step: int) -> Path:
        return cast(Path, self._folder / f"{step}{DAMAGED}")

    def listing(self, step: int) -> integrity.Listing:
        return integrity.parse((self._at(step) / integrity.FILES).read_bytes())

    def fault(self, step: int, items: Collection[str] | None = None) -> str | None:
        if jax.process_index():  # one list of the store tells all of it
            return None
        folder = self._at(step)
        try:
            return self.listing(step).difference(_sums(folder), items)
        except FileNotFoundError:
            raise
        except OSError as e:
            raise NeojaxError(f"{UNREADABLE} {folder}: {one_line(e)}") from None

    def reading(self, step: int) -> Path:
        return cast(Path, self._at(step))

    def _at(self, step: int) -> BucketPath:
        return self._folder / str(step)

    def _mark(self, step: int, kind: str) -> BucketPath:
        return self._folder / f"{step}{kind}"


def shelf_of(run_dir: str | Path) -> Shelf:
    """Where the checkpoints of a run directory lie. Raises `NeojaxError` where what reads that is not
    installed, and for s3://, to which Orbax does not write."""
    if str(run_dir).startswith("s3:"):
        raise NeojaxError(
            f"{run_dir}: checkpoints are written to gs:// or to a file system, such as one that mounts s3://"
        )
    return Bucket(run_dir) if is_remote(run_dir) else Folder(run_dir)


def _sums(folder: BucketPath) -> integrity.Sums:
    """What the store says of all objects of a checkpoint, but the list of them itself."""
    return {
        name: {"bytes": info["size"], **sums_of(info)}
        for name, info in folder.objects().items()
        if name != integrity.FILES
    }
