"""Determinism: whether two runs of a few training steps end in the same bits, with and without
`train.deterministic`.

Runs are compared within a process, where they share a compiled program, and between two processes, each of
which compiles anew and may choose other kernels.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import training as contenders
from jobs import Job, Row

from parts import Chip, measured

STEPS = 10


def jobs(chip: Chip, tiny: bool) -> list[Job]:
    """Two processes for each setting."""
    common = {"model": "125M", "dtype": "bfloat16", "batch": 8, "sequence": 2048, "steps": STEPS}
    settings: dict[str, dict[str, Any]] = {
        "as configured by default": {},
        "train.deterministic": {"deterministic": True},
        "train.deterministic, attention_kernel xla": {"deterministic": True, "attention_kernel": "xla"},
    }
    if tiny:
        common |= {"model": "tiny", "batch": 2, "sequence": 32, "steps": 2}
        settings = {"train.deterministic": settings["train.deterministic"]}
    return [
        Job(f"{what}, process {process}", twice, {**common, "setting": what, **own}, 30, 100)
        for what, own in settings.items()
        for process in (1, 2)
    ]


def twice(options: Mapping[str, Any]) -> Iterator[Row]:
    """Two runs from one state: digests of their ends, whether they are equal, and the time of a step."""
    import jax
    import jax.numpy as jnp

    step, state, batch = contenders.neojax_program(options)
    copy = jax.tree.map(jnp.copy, state)  # a step takes its state's buffers
    first, seconds = run(step, state, batch, options["steps"])
    del state
    second, again = run(step, copy, batch, options["steps"])
    yield {
        "setting": options["setting"],
        "model": options["model"],
        "steps": options["steps"],
        "digest": first,
        "equal_within_a_process": first == second,
        "seconds": min(seconds, again),
    }


def run(step: Any, state: Any, batch: Any, steps: int) -> tuple[str, float]:
    """The digest of losses and final parameters, and the seconds of a step, without the first."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    losses = []
    start = 0.0
    for i in range(steps):
        state, metrics = step(state, batch(), jnp.int32(i))
        losses.append(metrics["loss"])
        if not i:
            jax.block_until_ready(state)
            start = time.perf_counter()
    jax.block_until_ready(state)
    seconds = (time.perf_counter() - start) / (steps - 1)
    digest = hashlib.sha256()
    for value in [*losses, *(state.params[name] for name in sorted(state.params))]:
        digest.update(np.asarray(value).tobytes())
    return digest.hexdigest(), seconds


def conclude(rows: list[Row]) -> list[Row]:
    """Whether both processes of a setting ended in the same bits, and what `train.deterministic` costs."""
    settings: dict[str, list[Row]] = {}
    for row in measured(rows, "digest"):
        settings.setdefault(row["setting"], []).append(row)
    found: list[Row] = [
        {
            "what": setting,
            "equal_within_a_process": all(row["equal_within_a_process"] for row in pair),
            "equal_between_processes": pair[0]["digest"] == pair[1]["digest"],
            "seconds": min(row["seconds"] for row in pair),
        }
        for setting, pair in settings.items()
        if len(pair) == 2
    ]
    usual = next((row["seconds"] for row in found if row["what"] == "as configured by default"), None)
    for row in found:
        if usual and "deterministic" in row["what"]:
            row["times_the_default"] = row["seconds"] / usual
    return found
