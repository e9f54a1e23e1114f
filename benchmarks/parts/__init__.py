"""The parts of `benchmarks/accelerator.py`: each says which jobs it has for a chip, and what its rows come
to.

`jobs(chip, tiny)` gives the jobs, dearest questions first, since the last ones are skipped where time runs
out; `conclude(rows)` adds the rows that compare others. A chip is what `chip_row` says of it.
"""

import gc
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jobs import Row, Skip

ROUNDS = 3
Chip = Mapping[str, Any]


def chip_row(options: Mapping[str, Any]) -> Iterator[Row]:
    """The devices here: their platform, kind, number, and the bytes of memory that a program may take of
    each."""
    import jax

    device = jax.devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit")
    chip = {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()}
    yield {"what": "chip", **chip, "memory": memory}


def needs(package: str) -> None:
    """Raises `Skip` where an alternative is not installed."""
    if importlib.util.find_spec(package) is None:
        raise Skip(f"{package} is not installed")


def needs_torch(options: Mapping[str, Any]) -> None:
    """Raises `Skip` where PyTorch is not installed or would run on another kind of device than JAX."""
    needs("torch")
    import torch

    if (platform := options["platform"]) != ("gpu" if torch.cuda.is_available() else "cpu"):
        raise Skip(f"PyTorch {torch.__version__} does not run on the {platform} here")


def rates(make: Callable[[Mapping[str, Any]], Callable[[], int]], options: Mapping[str, Any]) -> Row:
    """Tokens/s of a contender over a few rounds, at half the batch as often as it runs out of memory."""
    batch, halved = options["batch"], 0
    while True:
        try:
            once = make({**options, "batch": batch})
            found = [one_round(once) for _ in range(ROUNDS)]
            break
        except Exception as e:
            if not out_of_memory(e) or batch == 1:
                raise
        gc.collect()  # behind the exception, whose frames hold the arrays
        batch, halved = batch // 2, halved + 1
    row: Row = {"batch": batch, "tokens_per_second": statistics.median(found), "rounds": found}
    return row if not halved else {**row, "batch_that_did_not_fit": 2 * batch}


def one_round(once: Callable[[], int]) -> float:
    """Tokens/s of one round of work."""
    start = time.perf_counter()
    tokens = once()
    return tokens / (time.perf_counter() - start)


def out_of_memory(error: Exception) -> bool:
    """Whether XLA or PyTorch ran out of the device's memory."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def peak_memory() -> Row:
    """The most bytes that JAX had in use on the device, where it counts them."""
    import jax

    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {} if peak is None else {"peak_bytes": peak}


def measured(rows: Iterable[Row], key: str) -> list[Row]:
    """The rows that hold a number `key`."""
    return [row for row in rows if key in row]
