"""The rows of a batch that one process reads, and their way onto its devices."""

from collections.abc import Collection
from typing import Any

import jax
import numpy as np

from neojax.data.batch import Batch
from neojax.layout.mesh import Layout

BATCH_DIMS = ("microbatches", "batch", "sequence")


class Share:
    """The rows of every microbatch of `microbatch` sequences that lie on some devices (default: this
    process's).

    Microbatch m is rows [m * microbatch, (m + 1) * microbatch) of the batch, whoever reads them, so that
    training does not depend on the number of processes. `held`: a microbatch's rows that are this process's,
    rising. They may be any set: on a torus a host's chips are a square, not a run of the axis that splits the
    batch. Processes whose devices hold the same rows (their axes split other dimensions) read the same.
    """

    def __init__(self, layout: Layout, microbatch: int, devices: Collection[jax.Device] | None = None):
        mine = set(jax.local_devices() if devices is None else devices)
        sharding = layout.sharding(("batch",), (microbatch,), what="the batch")
        places: Any = sharding.devices_indices_map((microbatch,)).items()
        spans = {at[0].indices(microbatch)[:2] for device, at in places if device in mine}
        self.layout, self.microbatch = layout, microbatch
        self.held = np.unique([row for span in spans for row in range(*span)])

    def of_batch(self, batch_size: int) -> np.ndarray:
        """The rows of a whole batch of `batch_size` sequences that are this process's, rising."""
        return (np.arange(0, batch_size, self.microbatch)[:, None] + self.held).ravel()

    def place(self, batch: Batch) -> Batch:
        """This process's rows of a batch, [microbatches * len(held), ...], as part of arrays [microbatches,
        microbatch, ...] over all processes."""

        def array(name: str, rows: np.ndarray) -> jax.Array:
            local = rows.reshape(-1, len(self.held), *rows.shape[1:])
            shape = (len(local), self.microbatch, *rows.shape[1:])

            def part(at: tuple[slice, ...] | None) -> np.ndarray:
                assert at is not None
                start, stop, _ = at[1].indices(self.microbatch)
                first = np.searchsorted(self.held, start)  # where one row of a shard is held, all are
                return local[(at[0], slice(first, first + stop - start), *at[2:])]

            sharding = self.layout.sharding(dims_of(name, len(shape)), shape, what="the batch")
            return jax.make_array_from_callback(shape, sharding, part)

        placed = {name: array(name, np.asarray(x)) for name, x in batch._asdict().items() if x is not None}
        return batch._replace(**placed)


def dims_of(field: str, rank: int) -> tuple[str, ...]:
    """The dimensions of a `Batch`'s `field` of as many as `rank`, in microbatches."""
    if field == "labels":
        return ("microbatches", "batch", "labels")[:rank]
    return ("microbatches", "batch", *("choices",) * (rank - 3), "sequence")
