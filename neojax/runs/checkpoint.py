"""Checkpoints: all that a run needs to go on, written with Orbax and read back on any mesh.

A checkpoint is the folder `checkpoints/STEP` of the run, with three items: `params`, `opt_state` (each array
by its path in the tree) and `meta` (JSON), and the size and checksum of every file (`neojax.runs.integrity`).
A folder with a number for a name was complete once (`neojax.runs.shelf`); if it is not complete now, or
cannot be read, it is damaged, which is an error and never a fresh start.
"""

import contextlib
import gc
import threading
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax

from neojax.errors import NeojaxError, SaveError, suggest
from neojax.layout.hosts import agreed, from_first, on_first
from neojax.runs import integrity
from neojax.runs.bucket_shelf import shelf_of
from neojax.runs.orbax import Save, flat, one_line, read_meta, read_trees, shapes
from neojax.runs.quiet import quiet
from neojax.runs.shelf import UNREADABLE
from neojax.storage.remote import is_remote

FORMAT = 1


class DamagedError(NeojaxError):
    """A checkpoint is not what was written; `fault` says what of it."""

    def __init__(self, text: str, fault: str):
        super().__init__(text)
        self.fault = fault


class Checkpoints:
    """The checkpoints of one run directory. Every process of a run makes one and calls it alike.

    With `keep`, the newest `keep` are kept, and what a killed save left is removed; without, they are only
    read, which is safe beside a run that is writing. Use it as a context manager, or `close` it: a save goes
    on in the background.

    The vocabulary is padded to suit the mesh, so its stored length may not be the wanted one. With `dims`
    (the parameters' dimension names) and `n_vocab`, parameters with a `vocab` dimension, and the optimizer
    state that mirrors them, lose padding or gain zeros as they are read.
    """

    def __init__(
        self,
        run_dir: str | Path,
        keep: int | None = None,
        dims: Mapping[str, tuple[str, ...]] | None = None,
        n_vocab: int = 0,
    ):
        self._shelf = shelf_of(run_dir)
        self.path = self._shelf.path
        self._keep, self.dims, self.n_vocab = keep, dims or {}, n_vocab
        self._saving: _Saving | None = None
        if keep:
            on_first(self._shelf.make_room)
        try:
            steps = self._shelf.steps()
        except OSError as e:
            raise NeojaxError(f"{self.path}: cannot read it: {one_line(e)}") from None
        self._steps = from_first(steps)  # a network file system may show each host another past
        self._until_closed = contextlib.ExitStack()
        self._until_closed.enter_context(quiet())

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with contextlib.suppress(SaveError) if kind else contextlib.nullcontext():
            self.close()

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, oldest first."""
        return list(self._steps)

    def latest(self) -> int | None:
        """The newest step, or None where nothing has been saved."""
        return max(self._steps, default=None)

    def save(
        self, step: int, state: Mapping[str, Any], meta: Mapping[str, Any], best: int | None = None
    ) -> None:
        """Starts to save `state`, {"params": {name: array}, "opt_state": tree of arrays}, and JSON-able
        `meta`; the checkpoint of step `best` is kept too.

        Returns once the arrays are copied off the device, so they may then be donated. A step that is already
        saved is left as it is. Raises `SaveError`, for the save before too.
        """
        assert self._keep, "Checkpoints was opened to read"
        self.wait()
        if step in self._steps:
            return
        trees = {item: flat(state[item]) for item in ("params", "opt_state")}
        save, cause = None, ""
        try:
            save = Save(self._shelf.begin(step), trees, {"format": FORMAT, **meta})
        except Exception as e:  # Orbax and TensorStore raise bare ones
            cause = one_line(e)
        if save is None:
            self._discard()
            raise self._unsaved(step, cause)
        steps = [*self._steps, step]
        keep = [s for s in steps if s in steps[-self._keep :] or s == best]
        self._saving = _Saving(step, save, lambda: self._shelf.finish(step, keep), keep)

    def restore(
        self,
        step: int,
        abstract_state: Mapping[str, Any],
        adapt: Callable[[Any, Collection[str]], Any] | None = None,
    ) -> dict[str, Any]:
        """The state saved at `step`, shaped, typed and laid out as `abstract_state`.

        `abstract_state` is {"params": ..., "opt_state": ...} of `jax.ShapeDtypeStruct`s, as `jax.eval_shape`
        gives them: shardings over an abstract mesh are taken on the current mesh, no sharding is the first
        device. `adapt` makes of its opt_state, and the paths of the arrays that were saved, the one that is
        restored. Raises `DamagedError`, or `NeojaxError` for a parameter that the model and the checkpoint do
        not share.
        """
        return self._restore(step, {k: abstract_state[k] for k in ("params", "opt_state")}, adapt)

    def restore_params(self, step: int, abstract_params: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The parameters alone, as `restore` gives them; optimizer state is not read."""
        return self._restore(step, {"params": abstract_params})["params"]

    def restore_meta(self, step: int) -> dict[str, Any]:
        """The `meta` saved at `step`."""
        self._verify(step, ("meta",))
        meta = self._reading(step, lambda: read_meta(self._folder(step)))
        if meta["format"] > FORMAT:
            raise NeojaxError(
                f"checkpoint {self._folder(step)} has format {meta['format']}, newer than this neojax reads "
                f"({FORMAT}); upgrade neojax"
            )
        return meta

    def set_aside(self, step: int) -> Path:
        """Takes a damaged checkpoint out of the run, and gives the folder where it lies now."""

        def move() -> None:
            try:
                self._shelf.set_aside(step)
            except OSError as e:
                raise NeojaxError(f"cannot move {self._folder(step)} aside: {one_line(e)}") from None

        on_first(move)
        self._steps.remove(step)
        return self._shelf.aside(step)

    def wait(self) -> None:
        """Waits until the last save is on disk. Raises `SaveError` where it could not be written."""
        if self._saving is None:
            return
        saving, self._saving = self._saving, None
        cause = saving.join()

        def check() -> None:
            if cause is not None:
                raise self._unsaved(saving.step, cause)

        try:
            agreed(check)
        except NeojaxError as e:
            self._discard()
            raise SaveError(str(e)) from None
        self._steps = saving.kept

    def poll(self) -> None:
        """Raises `SaveError` where the last save has failed by now; waits for nothing."""
        # Processes meet the end of a save at different times, and can only agree on it where they wait.
        if self._saving is not None and self._saving.is_done and jax.process_count() == 1:
            self.wait()

    def close(self) -> None:
        """Waits, and leaves logging as it was."""
        try:
            self.wait()
        finally:
            self._until_closed.close()

    def _discard(self) -> None:
        """Removes what a failed save wrote."""
        gc.collect()  # while logging is quiet: what Orbax left unfinished complains when it goes
        if jax.process_index():
            return
        with contextlib.suppress(OSError):  # that which failed the save, mostly
            self._shelf.discard()

    def _unsaved(self, step: int, cause: str) -> SaveError:
        last = self.latest()
        last_text = "there is none before it" if last is None else f"the last whole one is step {last}"
        return SaveError(
            f"checkpoint {self._folder(step)} could not be saved: {cause}; {last_text}, from which the same "
            "command goes on once that is mended"
        )

    def _verify(self, step: int, items: Collection[str]) -> None:
        """Raises `DamagedError`, on every process, unless the files of `items` are what was written.

        Each process reads a share of them. It comes before Orbax, whose threads fill the terminal with
        tracebacks over files that are missing or cut short, and which does not see a flipped bit.
        """
        if step not in self._steps:
            raise NeojaxError(
                f"no checkpoint of step {step} in {self.path}; steps there: {self.steps() or 'none'}"
            )

        def check() -> None:
            try:
                fault = self._shelf.fault(step, items)
            except FileNotFoundError:
                fault = f"{integrity.FILES} is missing"
            except (OSError, ValueError) as e:
                fault = one_line(e)
            if fault:
                raise NeojaxError(fault)

        try:
            agreed(check)
        except NeojaxError as e:
            if str(e).startswith(UNREADABLE):
                raise
            raise self._damaged(step, str(e)) from None

    def _restore(
        self,
        step: int,
        abstract: Mapping[str, Any],
        adapt: Callable[[Any, Collection[str]], Any] | None = None,
    ) -> dict[str, Any]:
        self.restore_meta(step)
        self._verify(step, abstract.keys())
        stored = {item: self._reading(step, partial(shapes, self._folder(step) / item)) for item in abstract}
        if adapt is not None:
            abstract = {**abstract, "opt_state": adapt(abstract["opt_state"], stored["opt_state"])}
        wanted = {item: flat(tree) for item, tree in abstract.items()}
        for item, tree in wanted.items():
            self._check(item, stored[item], tree, step)
        restored = self._reading(step, lambda: read_trees(self._folder(step), wanted))
        return {
            item: jax.tree.unflatten(jax.tree.structure(tree), [restored[item][n] for n in wanted[item]])
            for item, tree in abstract.items()
        }

    def _check(self, item: str, stored: dict, wanted: dict, step: int) -> None:
        """Every array of the model is in the checkpoint, with its shape up to padding of the vocabulary."""
        kind, hint = "parameter", "is this the run's config.yml?"
        if item == "opt_state":
            kind, hint = "optimizer state", "was train.optimizer changed?"
        for name in wanted.keys() - stored.keys():
            raise NeojaxError(
                f"checkpoint {self._folder(step)} has no {kind} {name} {wanted[name].shape}; {hint}"
                f"{suggest(name, stored.keys() - wanted.keys())}"
            )
        for name in stored.keys() - wanted.keys():
            raise NeojaxError(
                f"checkpoint {self._folder(step)} holds {kind} {name} {stored[name]}, which the model has "
                f"not; {hint}"
            )
        for name, leaf in wanted.items():
            if stored[name] != leaf.shape and not self._same_but_padding(name, stored[name], leaf.shape):
                raise NeojaxError(
                    f"checkpoint {self._folder(step)}: {kind} {name} has shape {stored[name]}, "
                    f"the model wants {leaf.shape}; {hint}"
                )

    def _same_but_padding(self, name: str, stored: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
        param = next((p for p in self.dims if name == p or name.endswith("/" + p)), None)
        if param is None or "vocab" not in self.dims[param] or len(stored) != len(wanted):
            return False
        differ = [(a, b) for a, b in zip(stored, wanted) if a != b]
        return len(differ) == 1 and min(differ[0]) >= self.n_vocab > 0

    def _reading(self, step: int, read: Callable[[], Any]) -> Any:
        """What `read` gives. Its files have been verified; whatever Orbax meets in them all the same is one
        line."""
        try:
            return read()
        except MemoryError:
            raise
        except Exception as e:  # of an array's index or a compressed block it raises bare ones
            # Of the devices, such as their memory; or of a store, which has just listed all of it as it was
            # written.
            if isinstance(e, jax.errors.JaxRuntimeError) or is_remote(self._folder(step)):
                raise NeojaxError(f"cannot restore checkpoint {self._folder(step)}: {one_line(e)}") from None
            raise self._damaged(step, one_line(e)) from None

    def _damaged(self, step: int, cause: str) -> DamagedError:
        older = [s for s in self._steps if s < step]
        then = f"go on from step {older[-1]}" if older else "start from the beginning"
        return DamagedError(
            f"checkpoint {self._folder(step)} is damaged or incomplete ({cause}); restore it from a copy, "
            f"or delete that folder to {then}",
            cause,
        )

    def _folder(self, step: int) -> Path:
        return self._shelf.reading(step)


class _Saving:
    """A save in the background: Orbax's, and then `finish`, after which the steps `kept` are there."""

    def __init__(self, step: int, save: Save, finish: Callable[[], None], kept: list[int]):
        self.step, self.kept = step, kept
        self._cause: str | None = None

        def work() -> None:
            try:
                save.wait()
                finish()
            except BaseException as e:
                self._cause = one_line(e)  # not the error, whose frames hold on to Orbax's futures

        self._thread = threading.Thread(target=work, name="neojax-save")
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def join(self) -> str | None:
        """Waits for its end; what went wrong, or None."""
        self._thread.join()
        return self._cause
