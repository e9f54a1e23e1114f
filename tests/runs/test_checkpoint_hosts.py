"""Two processes that share a run: each sums what it wrote, each verifies a share, and what one finds both
know."""

import json

from helpers import run_hosts

from neojax.runs import integrity

HOST = """
import glob, json, sys
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_platforms", "cpu")
index, run = int(sys.argv[1]), sys.argv[3]
jax.distributed.initialize("localhost:" + sys.argv[2], 2, index)
from jax.sharding import NamedSharding, PartitionSpec
from neojax.errors import NeojaxError
from neojax.layout.hosts import on_first
from neojax.runs import integrity
from neojax.runs.checkpoint import Checkpoints

summed = []
real = integrity.checksum
integrity.checksum = lambda path, sync=False: (summed.append((str(path), sync)), real(path, sync))[1]
mesh = jax.make_mesh((2,), ("data",))
split = NamedSharding(mesh, PartitionSpec("data"))
state = {k: {"a": jax.jit(lambda: jnp.arange(8.0), out_shardings=split)()} for k in ("params", "opt_state")}
like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
said = {}
with jax.set_mesh(mesh), Checkpoints(run, keep=2) as checkpoints:
    for step in (1, 2, 3):
        checkpoints.save(step, state, {})
    checkpoints.wait()
    said["steps"] = checkpoints.steps()
    said["summed"] = [path for path, sync in summed if sync and "/3.saving/" in path]
    summed.clear()
    got = checkpoints.restore(3, like)
    said["mine"] = np.asarray(got["params"]["a"].addressable_shards[0].data).tolist()
    said["verified"] = sorted({path for path, _ in summed if "/meta/" not in path})

    def flip():
        file = glob.glob(run + "/checkpoints/3/params/ocdbt.process_1/d/*")[0]
        content = bytearray(open(file, "rb").read())
        content[len(content) // 2] ^= 4
        open(file, "wb").write(content)

    on_first(flip)
    try:
        checkpoints.restore(3, like)
    except NeojaxError as e:
        said["error"] = str(e)
    checkpoints.set_aside(3)
    checkpoints.restore(checkpoints.latest(), like)
    checkpoints.save(3, state, {})
    checkpoints.wait()
    said["after"] = checkpoints.steps()
print(json.dumps(said))
"""


def test_two_processes_sum_verify_and_agree(tmp_path):
    first, second = run_hosts(HOST, 2, tmp_path, timeout=240)
    assert first["steps"] == second["steps"] == [2, 3]
    assert first["mine"] == [0, 1, 2, 3] and second["mine"] == [4, 5, 6, 7]
    assert second["summed"] and all("process_1" in path for path in second["summed"])
    assert first["summed"] and not any("process_1" in path for path in first["summed"])
    both = set(first["verified"]) & set(second["verified"])
    assert first["verified"] and second["verified"] and not {p for p in both if p.count("/params/")}
    assert first["error"] == second["error"] and "checkpoints/3 is damaged" in first["error"]
    assert "params/ocdbt.process_1/d/" in first["error"] and "\n" not in first["error"]
    assert first["after"] == second["after"] == [2, 3]
    listed = json.loads((tmp_path / "checkpoints" / "3" / "files.json").read_text())["files"]
    for name, entry in listed.items():
        path = tmp_path / "checkpoints" / "3" / name
        assert entry == {"bytes": path.stat().st_size, "checksum": integrity.checksum(path)}
    assert not any("sums" in name for name in listed)
