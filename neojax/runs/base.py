"""The base of a run that trains low-rank additions: its frozen parameters, once, in its folder `base`.

Checkpoints of such a run hold what is trained alone, and with this folder the run has all that it takes to go
on, to sample and to convert it, wherever the weights are that it began from. The folder is laid out, and has
checksums, as that of a run's checkpoints; its newest one counts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from neojax.errors import NeojaxError
from neojax.runs.checkpoint import Checkpoints

FOLDER = "base"


def write(run_dir: Path, frozen: Mapping[str, Any]) -> None:
    """Writes the parameters `frozen` of a run, in place of what is there. Every process calls it. Raises
    `SaveError`."""
    with Checkpoints(run_dir / FOLDER, keep=1) as checkpoints:
        newest = checkpoints.latest()
        step = 0 if newest is None else newest + 1
        checkpoints.save(step, {"params": frozen, "opt_state": {"none": jnp.zeros(())}}, {})


def read(
    run_dir: Path, frozen: Mapping[str, Any], dims: Mapping[str, tuple[str, ...]], n_vocab: int
) -> dict[str, Any]:
    """The parameters that were written, shaped, typed and laid out as `frozen`. `dims` and `n_vocab` are as
    for `Checkpoints`. Raises `NeojaxError` where they are not there or not whole."""
    with Checkpoints(run_dir / FOLDER, dims=dims, n_vocab=n_vocab) as checkpoints:
        newest = checkpoints.latest()
        if newest is None:
            raise NeojaxError(
                f"{run_dir / FOLDER} is gone: it holds the frozen weights of this run, whose checkpoints "
                "have only what was trained; bring it back"
            )
        return checkpoints.restore_params(newest, frozen)
