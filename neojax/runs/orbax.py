"""Orbax as checkpoints use it: three items written and read, and what its errors say."""

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractMesh, NamedSharding, Sharding, SingleDeviceSharding

from neojax.runs.quiet import quiet

with quiet():  # it logs already while it is imported
    import orbax.checkpoint as ocp
    from etils import epath  # Orbax's own paths, of buckets too

# Bytes that are compressed, and read, together. A reader whose mesh is another reads each chunk that it needs
# any of.
CHUNK = 1 << 20


def _handler() -> ocp.CompositeCheckpointHandler:
    return ocp.CompositeCheckpointHandler(
        params=ocp.PyTreeCheckpointHandler(),
        opt_state=ocp.PyTreeCheckpointHandler(),
        meta=ocp.JsonCheckpointHandler(),
    )


class Save:
    """A save into `folder` that has begun: the arrays are off the device, and are written in the
    background."""

    def __init__(self, folder: Path, trees: Mapping[str, Mapping[str, jax.Array]], meta: Mapping[str, Any]):
        chunks = ocp.SaveArgs(chunk_byte_size=CHUNK)
        items = {
            name: ocp.args.PyTreeSave(tree, save_args=dict.fromkeys(tree, chunks))
            for name, tree in trees.items()
        }
        self._checkpointer = ocp.AsyncCheckpointer(_handler())
        try:
            self._checkpointer.save(
                epath.Path(folder), args=ocp.args.Composite(**items, meta=ocp.args.JsonSave(dict(meta)))
            )
        except BaseException:
            self._close()
            raise

    def wait(self) -> None:
        """Waits until all is written; raises whatever went wrong."""
        try:
            self._checkpointer.wait_until_finished()
        finally:
            self._close()

    def _close(self) -> None:
        with contextlib.suppress(Exception):  # what went wrong has been, or is being, raised
            self._checkpointer.close()


def read_meta(folder: Path) -> dict[str, Any]:
    """The JSON of item `meta`."""
    with ocp.Checkpointer(_handler()) as checkpointer:
        return checkpointer.restore(epath.Path(folder), args=ocp.args.Composite(meta=ocp.args.JsonRestore()))[
            "meta"
        ]


def read_trees(folder: Path, wanted: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, jax.Array]]:
    """Arrays by item and name, shaped, typed and laid out as `wanted`."""
    items = {
        item: ocp.args.PyTreeRestore(
            item=dict(tree), restore_args={name: _restore_args(leaf) for name, leaf in tree.items()}
        )
        for item, tree in wanted.items()
    }
    with ocp.Checkpointer(_handler()) as checkpointer:
        restored = checkpointer.restore(epath.Path(folder), args=ocp.args.Composite(**items))
        return {item: restored[item] for item in wanted}


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every array of the item that lies in `folder`."""
    tree = ocp.PyTreeCheckpointHandler().metadata(epath.Path(folder)).tree
    return {name: tuple(leaf.shape) for name, leaf in tree.items()}


def flat(tree: Any) -> dict[str, Any]:
    """Leaves by path: independent of the containers that optax happens to use."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def one_line(error: BaseException) -> str:
    """What an error of Orbax, TensorStore or the system says, in short."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    if told := re.search(r"\[os_error_code='(\d+)'\]", text):  # TensorStore's way to tell one of the system's
        return os.strerror(int(told[1]))
    return text[:160] or type(error).__name__


def _restore_args(leaf: Any) -> ocp.ArrayRestoreArgs:
    # Not strict: Orbax then drops or appends rows, which is allowed for the vocabulary only.
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
