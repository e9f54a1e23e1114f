"""Every process reads just the rows that its devices hold, whatever part of the mesh its devices are."""

import numpy as np
import pytest
from helpers import layout_of, random_tokens

from neojax.data.batch import Batch
from neojax.data.share import Share

PROCESSES = {  # devices of each process, as numbered in the mesh's order
    "one": [range(8)],
    "runs": [range(4), range(4, 8)],
    "squares": [(0, 1, 4, 5), (2, 3, 6, 7)],
    "strides": [(0, 2, 4, 6), (1, 3, 5, 7)],
    "singles": [(i,) for i in range(8)],
}


@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize("split", ["batch:data", "batch:model", "batch:data+model", "batch:model+data", ""])
def test_all_rows_are_read_and_by_those_alone_that_hold_them(split, processes):
    layout = layout_of("data:4, model:2", split)
    order = list(layout.mesh.devices.flat)
    held = [Share(layout, 16, [order[i] for i in devices]).held for devices in PROCESSES[processes]]
    assert set(np.concatenate(held)) == set(range(16))
    where = layout.sharding(("batch",)).devices_indices_map((16,))
    for devices, rows in zip(PROCESSES[processes], held):
        wanted = {row for i in devices for row in range(16)[where[order[i]][0]]}
        assert list(rows) == sorted(wanted)


def test_a_microbatch_is_the_same_rows_of_the_batch_whoever_reads_them():
    layout = layout_of("data:4, model:2", "batch:data")
    order = list(layout.mesh.devices.flat)
    shares = [Share(layout, 8, [order[i] for i in devices]) for devices in PROCESSES["squares"]]
    assert sorted(np.concatenate([share.of_batch(24) for share in shares])) == list(range(24))
    for share in shares:
        assert share.of_batch(24).reshape(3, -1).tolist() == [list(share.held + 8 * m) for m in range(3)]


def test_placed_rows_are_the_batch():
    layout = layout_of("data:2, model:2", "batch:data, heads:model")
    rows = random_tokens(8, 12)
    placed = Share(layout, 4).place(Batch(rows, rows)).tokens
    np.testing.assert_array_equal(placed, rows.reshape(2, 4, 12))
    assert placed.sharding.spec[1] == "data"
