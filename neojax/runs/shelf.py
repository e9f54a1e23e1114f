"""Where the checkpoints of a run lie, on a file system: how a save begins there, is named, and goes.

A save is written as checkpoints/STEP.saving, and gets its name by one rename when everything is on disk.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

import jax

from neojax.errors import NeojaxError
from neojax.layout.hosts import barrier
from neojax.runs import integrity
from neojax.runs.orbax import one_line
from neojax.runs.run_dir import checkpoints_in, write_text

NEWEST = "newest.json"  # beside checkpoints/: the step of the last one saved, should they be lost
UNREADABLE = "the store does not give"  # so begins a `NeojaxError` that says nothing of the checkpoint itself


class Shelf(Protocol):
    """The folder `path` of checkpoints. Every process of a run has one and calls it alike; where a method
    says so, only process 0 does. Methods raise `OSError` unless they say otherwise."""

    path: Path

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, oldest first. Process 0."""

    def make_room(self) -> None:
        """Makes the folder, and removes what a killed process left in it. Raises `NeojaxError`. Process 0."""

    def begin(self, step: int) -> Path:
        """Where Orbax is to write the checkpoint of `step`."""

    def finish(self, step: int, keep: Collection[int]) -> None:
        """Makes a checkpoint of what has been written, and removes older ones that are not to `keep`. Runs in
        the background, on every process."""

    def discard(self) -> None:
        """Removes what a failed save wrote: on a full disk the next one needs the room. Process 0."""

    def set_aside(self, step: int) -> None:
        """Takes a checkpoint out of the run. Process 0."""

    def aside(self, step: int) -> Path:
        """The folder where it lies then."""

    def listing(self, step: int) -> integrity.Listing:
        """The files of a checkpoint, as they were written. Raises `ValueError` where the list is damaged."""

    def fault(self, step: int, items: Collection[str] | None = None) -> str | None:
        """What of the files of `items` (None: of all) is not as it was written. Each process looks at a share
        of them. Raises `ValueError` where the list of files is damaged, and a `NeojaxError` that begins with
        UNREADABLE where a store that is no part of this machine does not answer."""

    def reading(self, step: int) -> Path:
        """Where Orbax reads the checkpoint of `step`."""


class Folder:
    """A `Shelf` on a file system that all processes see."""

    def __init__(self, run_dir: str | Path):
        self.path = Path(os.path.abspath(run_dir)) / "checkpoints"

    def steps(self) -> list[int]:
        return checkpoints_in(self.path.parent)

    def make_room(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for left in self.path.iterdir():
                if any(word in left.name for word in (".saving", ".deleting", ".orbax-checkpoint-tmp")):
                    shutil.rmtree(left)
        except OSError as e:
            raise NeojaxError(f"{self.path}: cannot write there: {one_line(e)}") from None

    def begin(self, step: int) -> Path:
        return self.path / f"{step}.saving"

    def finish(self, step: int, keep: Collection[int]) -> None:
        folder = self.begin(step)
        index = jax.process_index()
        mine = folder / f"sums.{index}.json"
        if index:  # what this process wrote is in its own memory still
            with contextlib.suppress(OSError):  # else process 0 does it
                own = {f"ocdbt.process_{index}", f"process_{index}"}
                names = [n for n in integrity.names_in(folder) if own & set(n.split("/"))]
                mine.write_text(json.dumps(integrity.sums(folder, names)))
        barrier(f"neojax_summed_{step}")
        try:
            if not index:
                self._name(step, folder, keep)
        finally:
            barrier(f"neojax_sealed_{step}")

    def _name(self, step: int, folder: Path, keep: Collection[int]) -> None:
        known: integrity.Sums = {}
        for sums in folder.glob("sums.*.json"):
            with contextlib.suppress(ValueError):
                known |= json.loads(sums.read_text())
            sums.unlink()
        integrity.seal(folder, known)
        os.rename(folder, self.reading(step))
        integrity.sync_folder(self.path)
        write_text(self.path.parent / NEWEST, json.dumps({"step": step}) + "\n")
        for old in self.steps():
            if old not in keep and old < step:
                self._delete(old)

    def _delete(self, step: int) -> None:
        # By another name first: what is deleted in part must not look like a checkpoint.
        going = self.path / f"{step}.deleting"
        os.rename(self.reading(step), going)
        shutil.rmtree(going, ignore_errors=True)

    def discard(self) -> None:
        for _ in range(20):  # the first failure is told at once, and other threads of Orbax still write
            if not (left := list(self.path.glob("*.saving*"))):
                return
            for folder in left:
                shutil.rmtree(folder, ignore_errors=True)
            time.sleep(0.1)

    def set_aside(self, step: int) -> None:
        shutil.rmtree(self.aside(step), ignore_errors=True)
        os.replace(self.reading(step), self.aside(step))

    def aside(self, step: int) -> Path:
        return self.path / f"{step}.damaged"

    def listing(self, step: int) -> integrity.Listing:
        return integrity.listing(self.reading(step))

    def fault(self, step: int, items: Collection[str] | None = None) -> str | None:
        return self.listing(step).fault(self.reading(step), items, (jax.process_index(), jax.process_count()))

    def reading(self, step: int) -> Path:
        return self.path / str(step)
