"""Checkpoints: all that a run needs to go on, written with Orbax and read back on any mesh.

A checkpoint is the folder `checkpoints/STEP` of the run, with three items: `params`, `opt_state` (each array by its
path in the tree) and `meta` (JSON), and FILES, the size of every file. It appears by one rename when everything is on
disk, so a folder with a number for a name was complete once; if it is not complete now, or cannot be read, it is
damaged, which is an error and never a fresh start.
"""

import contextlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractMesh, NamedSharding, Sharding, SingleDeviceSharding

from neojax.errors import NeojaxError, suggest
from neojax.training.quiet import quiet

with quiet():  # it logs already while it is imported
    import orbax.checkpoint as ocp

FORMAT = 1
FILES = "files.json"


class Checkpoints:
    """The checkpoints of one run directory. Every process of a run makes one and calls it alike.

    With `keep`, the newest `keep` are kept, and what a killed save left is removed; without, they are only read,
    which is safe beside a run that is writing. Use it as a context manager, or `close` it: a save goes on in the
    background.

    The vocabulary is padded to suit the mesh, so its stored length may not be the wanted one. With `dims` (the
    parameters' dimension names) and `n_vocab`, parameters with a `vocab` dimension, and the optimizer state that
    mirrors them, lose padding or gain zeros as they are read.
    """

    def __init__(
        self,
        run_dir: str | Path,
        keep: int | None = None,
        dims: Mapping[str, tuple[str, ...]] | None = None,
        n_vocab: int = 0,
    ):
        self.path = Path(os.path.abspath(run_dir)) / "checkpoints"
        self._dims, self._n_vocab = dims or {}, n_vocab
        self._saving = 0  # the step last begun
        self._manager = None
        if keep or self.path.is_dir():
            with contextlib.ExitStack() as until_closed:
                until_closed.enter_context(quiet())
                self._manager = ocp.CheckpointManager(
                    self.path,
                    options=_options(keep, self._list_files),
                    item_handlers={
                        "params": ocp.PyTreeCheckpointHandler(),
                        "opt_state": ocp.PyTreeCheckpointHandler(),
                        "meta": ocp.JsonCheckpointHandler(),
                    },
                )
                self._until_closed = until_closed.pop_all()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps()) if self._manager else []

    def latest(self) -> int | None:
        """The newest step, or None where nothing has been saved."""
        return max(self.steps(), default=None)

    def save(self, step: int, state: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Starts to save `state`, {"params": {name: array}, "opt_state": tree of arrays}, and JSON-able `meta`.

        Returns once the arrays are copied off the device, so they may then be donated. A step that is already
        saved is left as it is.
        """
        assert self._manager, "Checkpoints was opened to read"
        if step in self.steps():
            return
        self.wait()
        self._saving = step
        items = ocp.args.Composite(
            params=ocp.args.PyTreeSave(_flat(state["params"])),
            opt_state=ocp.args.PyTreeSave(_flat(state["opt_state"])),
            meta=ocp.args.JsonSave({"format": FORMAT, **meta}),
        )
        self._manager.save(step, args=items, force=True)

    def restore(self, step: int, abstract_state: Mapping[str, Any]) -> dict[str, Any]:
        """The state saved at `step`, shaped, typed and laid out as `abstract_state`.

        `abstract_state` is {"params": ..., "opt_state": ...} of `jax.ShapeDtypeStruct`s, as `jax.eval_shape` gives
        them: shardings over an abstract mesh are taken on the current mesh, no sharding is the first device.
        Raises `NeojaxError` for a damaged checkpoint, or a parameter that the model and the checkpoint do not share.
        """
        return self._restore(step, {k: abstract_state[k] for k in ("params", "opt_state")})

    def restore_params(self, step: int, abstract_params: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The parameters alone, as `restore` gives them; optimizer state is not read."""
        return self._restore(step, {"params": abstract_params})["params"]

    def restore_meta(self, step: int) -> dict[str, Any]:
        """The `meta` saved at `step`."""
        meta = self._read(step, ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        if meta["format"] > FORMAT:
            raise NeojaxError(
                f"checkpoint {self._folder(step)} has format {meta['format']}, newer than this neojax reads "
                f"({FORMAT}); upgrade neojax"
            )
        return meta

    def wait(self) -> None:
        """Waits until the last save is on disk."""
        if self._manager:
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and releases Orbax's threads."""
        if self._manager:
            self._manager.close()
            self._manager = None
            self._until_closed.close()

    def _list_files(self) -> None:
        """Writes FILES into the folder being saved, the last thing before its rename."""
        if jax.process_index() == 0:
            (folder,) = self.path.glob(f"{self._saving}.*tmp*")
            sizes = {str(f.relative_to(folder)): f.stat().st_size for f in folder.rglob("*") if f.is_file()}
            (folder / FILES).write_text(json.dumps(sizes, indent=0), encoding="utf-8")

    def _check_files(self, step: int, items: Collection[str]) -> None:
        """Finds missing and truncated files before Orbax does, whose threads fill the terminal with tracebacks."""
        folder = self._folder(step)
        try:
            sizes = json.loads((folder / FILES).read_text(encoding="utf-8"))
            for name, size in sizes.items():
                found = (folder / name).stat().st_size if name.split("/")[0] in items else size
                if found != size:
                    raise self._damaged(step, f"{name} has {found} bytes of {size}")
        except FileNotFoundError as e:
            raise self._damaged(step, f"{Path(e.filename).relative_to(folder)} is missing") from None
        except (OSError, ValueError) as e:
            raise self._damaged(step, e) from e

    def _restore(self, step: int, abstract: Mapping[str, Any]) -> dict[str, Any]:
        self.restore_meta(step)
        self._check_files(step, abstract.keys())
        items = {}
        for item, tree in abstract.items():
            wanted = _flat(tree)
            self._check(item, self._stored_shapes(step, item), wanted, step)
            items[item] = ocp.args.PyTreeRestore(
                item=wanted, restore_args={name: _restore_args(leaf) for name, leaf in wanted.items()}
            )
        restored = self._read(step, ocp.args.Composite(**items))
        return {
            item: jax.tree.unflatten(jax.tree.structure(tree), [restored[item][n] for n in _flat(tree)])
            for item, tree in abstract.items()
        }

    def _stored_shapes(self, step: int, item: str) -> dict[str, tuple[int, ...]]:
        folder = self._folder(step) / item
        try:
            tree = ocp.PyTreeCheckpointHandler().metadata(folder).tree
            return {name: tuple(leaf.shape) for name, leaf in tree.items()}
        except (ValueError, OSError, KeyError, TypeError, AttributeError) as e:
            raise self._damaged(step, e) from e

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
                f"checkpoint {self._folder(step)} holds {kind} {name} {stored[name]}, which the model has not; {hint}"
            )
        for name, leaf in wanted.items():
            if stored[name] != leaf.shape and not self._same_but_padding(name, stored[name], leaf.shape):
                raise NeojaxError(
                    f"checkpoint {self._folder(step)}: {kind} {name} has shape {stored[name]}, "
                    f"the model wants {leaf.shape}; {hint}"
                )

    def _same_but_padding(self, name: str, stored: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
        param = next((p for p in self._dims if name == p or name.endswith("/" + p)), None)
        if param is None or "vocab" not in self._dims[param] or len(stored) != len(wanted):
            return False
        differ = [(a, b) for a, b in zip(stored, wanted) if a != b]
        return len(differ) == 1 and min(differ[0]) >= self._n_vocab > 0

    def _read(self, step: int, args: ocp.args.Composite) -> Any:
        if self._manager is None or step not in self.steps():
            raise NeojaxError(
                f"no checkpoint of step {step} in {self.path}; steps there: {self.steps() or 'none'}"
            )
        self._check_files(step, args.keys())
        try:
            return self._manager.restore(step, args=args)
        except (ValueError, OSError, KeyError, TypeError) as e:
            raise self._damaged(step, e) from e

    def _damaged(self, step: int, cause: Exception | str) -> NeojaxError:
        older = [s for s in self.steps() if s < step]
        then = f"go on from step {older[-1]}" if older else "start from the beginning"
        reason = str(cause).splitlines()[0][:160] if str(cause) else type(cause).__name__
        return NeojaxError(
            f"checkpoint {self._folder(step)} is damaged or incomplete; restore it from a copy, "
            f"or delete that folder to {then} ({reason})"
        )

    def _folder(self, step: int) -> Path:
        return self.path / str(step)


def _options(keep: int | None, before_rename: Callable[[], None]) -> ocp.CheckpointManagerOptions:
    if keep is None:
        return ocp.CheckpointManagerOptions(
            read_only=True, save_interval_steps=0, create=False, lightweight_initialize=True
        )
    return ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=True,
        cleanup_tmp_directories=True,
        lightweight_initialize=True,
        async_options=ocp.AsyncOptions(post_finalization_callback=before_rename),
    )


def _flat(tree: Any) -> dict[str, Any]:
    """Leaves by path: independent of the containers that optax happens to use."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _restore_args(leaf: Any) -> ocp.ArrayRestoreArgs:
    # Not strict: Orbax then drops or appends rows, which `_check` has allowed for the vocabulary only.
    return ocp.ArrayRestoreArgs(
        sharding=_concrete(leaf.sharding), global_shape=leaf.shape, dtype=leaf.dtype, strict=False
    )


def _concrete(sharding: Sharding | None) -> Sharding:
    if sharding is None:
        mesh = jax.sharding.get_mesh()
        if mesh.empty:
            return SingleDeviceSharding(jax.devices()[0])
        return NamedSharding(mesh, jax.sharding.PartitionSpec())
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, AbstractMesh):
        return NamedSharding(jax.sharding.get_mesh(), sharding.spec)
    return sharding
