"""All hosts of a run are to train the same thing: what each of them has is compared with what process 0
has."""

import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from neojax.errors import NeojaxError
from neojax.layout.hosts import agreed, from_first
from neojax.layout.mesh import Layout
from neojax.runs.run_dir import differences
from neojax.version import __version__


def check_alike(meta: Mapping[str, Any], layout: Layout) -> None:
    """Raises `NeojaxError`, on every process, where one has another configuration, tokenizer, data, mesh,
    code or version of Python or JAX than process 0. meta: what a checkpoint of the run holds. A process alone
    is not compared."""
    if jax.process_count() == 1:
        return
    mine = {
        **meta["config"],
        "data": {**meta["config"]["data"], "found": meta["data"]},
        "tokenizer": _digest((meta["tokenizer"] or "").encode()),
        "mesh": {**meta["config"]["mesh"], "devices": _digest(repr(layout.mesh.devices.tolist()).encode())},  # type: ignore[union-attr]
        "neojax": {"version": __version__, "code": code()},
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
    }
    text = json.dumps(mine)
    first = bytes(from_first(list(text.encode()))).decode()

    def compare() -> None:
        # As JSON, in which tuples are lists, for both.
        if differ := differences(json.loads(first), json.loads(text)):
            raise NeojaxError(
                f"this host differs from process 0's in {', '.join(differ)}; start the same command, with "
                "the same files and versions, on every host"
            )

    agreed(compare)


def code() -> str:
    """A digest of neojax's own source files, which a version number does not tell apart."""
    folder = Path(__file__).parents[1]
    sum_ = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.rglob("*.py")):
        sum_.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return sum_.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
