"""A checkpoint on another mesh, over another number of processes: each reads its own part, once."""

import os

import jax
import numpy as np
import pytest
from helpers import run_hosts
from jax.sharding import NamedSharding, PartitionSpec

from neojax.runs.checkpoint import Checkpoints

SHAPE = (4096, 512)  # 8 MiB

HOST = """
import json, sys
import jax, numpy as np
jax.config.update("jax_platforms", "cpu")
index, port, run = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize("localhost:" + port, 4, index)
from jax.sharding import NamedSharding, PartitionSpec
from neojax.runs import checkpoint

mesh = jax.make_mesh((4,), ("data",))
sharding = NamedSharding(mesh, PartitionSpec("data"))
array = jax.ShapeDtypeStruct((4096, 512), np.float32, sharding=sharding)
like = {"params": {"w": array}, "opt_state": {"m": array}}

def read_so_far():
    return int(open("/proc/self/io").read().split()[1])

said = {}
real = checkpoint.read_trees
def counted(*arguments):
    before = read_so_far()
    found = real(*arguments)
    jax.block_until_ready(found)
    said["read"] = read_so_far() - before
    return found
checkpoint.read_trees = counted

with jax.set_mesh(mesh), checkpoint.Checkpoints(run, keep=2) as checkpoints:
    state = checkpoints.restore(1, like)
    said["sum"] = float(np.asarray(state["params"]["w"].addressable_shards[0].data).sum(dtype=np.float64))
    checkpoints.save(2, state, {})
print(json.dumps(said))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not os.path.exists("/proc/self/io"), reason="the system does not tell what a process has read"
)
def test_four_processes_read_a_quarter_each_of_what_one_wrote_and_one_reads_what_four_wrote(tmp_path):
    rng = np.random.default_rng(0)
    w, m = (rng.normal(size=SHAPE).astype(np.float32) for _ in "wm")
    with Checkpoints(tmp_path, keep=2) as checkpoints:  # from one device: each array is one shard
        checkpoints.save(1, {"params": {"w": jax.numpy.array(w)}, "opt_state": {"m": jax.numpy.array(m)}}, {})
    said = run_hosts(HOST, 4, tmp_path, timeout=600)
    for i, one in enumerate(said):
        assert one["sum"] == pytest.approx(w[1024 * i : 1024 * (i + 1)].sum(dtype=np.float64), rel=1e-6)
        assert one["read"] < 1.1 * (w.nbytes + m.nbytes) / 4 + 100_000

    mesh = jax.make_mesh((4, 2), ("data", "model"))
    with jax.set_mesh(mesh), Checkpoints(tmp_path) as checkpoints:
        like = jax.ShapeDtypeStruct(
            SHAPE, np.float32, sharding=NamedSharding(mesh, PartitionSpec("model", "data"))
        )
        restored = checkpoints.restore(2, {"params": {"w": like}, "opt_state": {"m": like}})
    np.testing.assert_array_equal(np.asarray(restored["params"]["w"]), w)
    np.testing.assert_array_equal(np.asarray(restored["opt_state"]["m"]), m)
