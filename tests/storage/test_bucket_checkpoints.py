"""Checkpoints in a bucket, on a server that speaks Google Cloud Storage's protocol."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import run_hosts

from neojax.commands.inspect import verify
from neojax.errors import NeojaxError
from neojax.runs import bucket_shelf
from neojax.runs.bucket_shelf import Bucket
from neojax.runs.checkpoint import Checkpoints, DamagedError
from neojax.storage.remote import BucketPath

STATE = {"params": {"a": jnp.arange(3.0)}, "opt_state": {"count": jnp.ones(1)}}
LIKE = jax.eval_shape(lambda: STATE)


def state(step):
    return {"params": {"a": jnp.arange(3.0) * step}, "opt_state": {"count": jnp.ones(1)}}


def save(run, *steps, keep=3):
    with Checkpoints(run, keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step), {"config": {}})
    return run


@pytest.fixture(scope="module")
def saved(gcs):
    """A run with checkpoints of steps 2 and 3, not to be changed."""
    return save("gs://bucket/saved", 1, 2, 3, keep=2)


@pytest.fixture
def run(gcs, saved, request):
    """A copy of it."""
    name = re.sub(r"\W", "", request.node.name)
    gcs.fs.copy("bucket/saved/", f"bucket/{name}/", recursive=True)
    return f"gs://bucket/{name}"


def restored(run, step=None):
    with Checkpoints(run) as checkpoints:
        return checkpoints.restore(step or checkpoints.latest(), LIKE)["params"]["a"].tolist()


def names(gcs, run):
    folder = run.removeprefix("gs://") + "/checkpoints/"
    return sorted(name.removeprefix(folder) for name in gcs.fs.ls(folder, detail=False))


def test_what_is_saved_is_restored_and_the_newest_are_kept(gcs, saved):
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.steps() == [2, 3]
        assert checkpoints.restore_meta(2) == {"format": 1, "config": {}}
    assert restored(saved) == [0, 3, 6]
    assert names(gcs, saved) == ["2", "3"]
    assert json.loads(gcs.fs.cat_file("bucket/saved/newest.json")) == {"step": 3}


def test_the_list_holds_what_the_store_says_of_every_object(gcs, saved):
    listed = json.loads(gcs.fs.cat_file("bucket/saved/checkpoints/3/files.json"))["files"]
    there = gcs.fs.find("bucket/saved/checkpoints/3", detail=True)
    assert {f"bucket/saved/checkpoints/3/{name}" for name in [*listed, "files.json"]} == set(there)
    assert all({"bytes", "crc32c", "md5"} == entry.keys() for entry in listed.values())


@pytest.mark.parametrize("when", ["written in part", "about to be named"])
def test_a_save_that_was_killed_is_no_checkpoint(gcs, run, when, monkeypatch):
    if when == "about to be named":
        monkeypatch.setattr(BucketPath, "unlink", lambda self: (_ for _ in ()).throw(OSError("killed")))
        monkeypatch.setattr(Bucket, "discard", lambda self: None)
        with pytest.raises(NeojaxError, match="checkpoints/4 could not be saved: killed"):
            save(run, 4)
        monkeypatch.undo()
    else:
        key = run.removeprefix("gs://")
        gcs.fs.pipe_file(f"{key}/checkpoints/4.saving", b"")
        gcs.fs.pipe_file(f"{key}/checkpoints/4/params/manifest.ocdbt", b"some")
    half = names(gcs, run)
    assert half == ["2", "3", "4", "4.saving"]
    with Checkpoints(run) as reader:  # which leaves alone what may be a save under way
        assert reader.latest() == 3
    assert names(gcs, run) == half
    save(run, keep=3)
    assert names(gcs, run) == ["2", "3"]
    save(run, 4)
    assert restored(run) == [0, 4, 8]


def test_a_deletion_that_was_killed_goes_on(gcs, run):
    key = run.removeprefix("gs://") + "/checkpoints"
    gcs.fs.pipe_file(f"{key}/2.deleting", b"")
    with Checkpoints(run) as reader:
        assert reader.steps() == [3]
    save(run, keep=2)
    assert names(gcs, run) == ["3"]


@pytest.mark.parametrize(
    "item, harm", [("params", "gone"), ("meta", "other"), ("opt_state", "short"), ("", "gone")]
)
def test_damage_is_named_before_anything_is_read(gcs, run, item, harm, capsys):
    folder = run.removeprefix("gs://") + "/checkpoints/3"
    name = {"params": "params/manifest.ocdbt", "meta": "meta/metadata", "opt_state": "opt_state/_METADATA"}
    file = f"{folder}/{name.get(item, 'files.json')}"
    content = gcs.fs.cat_file(file)
    gcs.fs.rm_file(file)
    if harm != "gone":
        gcs.fs.pipe_file(file, content[::-1] if harm == "other" else content[:-1])
    cause = {"gone": "is missing", "other": "is not what was written", "short": "bytes of"}[harm]
    with Checkpoints(run) as checkpoints, pytest.raises(DamagedError, match=cause) as error:
        checkpoints.restore(3, LIKE)
    assert name.get(item, "files.json") in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(NeojaxError, match="1 of 2 checkpoints"):
        verify(run)
    assert "checkpoint 2: whole" in capsys.readouterr().out
    with Checkpoints(run, keep=2) as checkpoints:
        assert str(checkpoints.set_aside(3)) == f"{run}/checkpoints/3.damaged"
    assert names(gcs, run) == ["2", "3.damaged"]
    assert restored(run) == [0, 2, 4]


def test_a_store_that_does_not_answer_is_no_damage(run, monkeypatch):
    """Which would set a whole checkpoint aside with train.on_damage=previous."""

    def refuse(folder):
        raise OSError("Service Unavailable")

    monkeypatch.setattr(bucket_shelf, "_sums", refuse)
    with Checkpoints(run) as checkpoints, pytest.raises(NeojaxError, match="Service Unavailable") as error:
        checkpoints.restore(3, LIKE)
    assert not isinstance(error.value, DamagedError)


def test_checkpoints_may_be_copied_from_a_bucket_to_disk_and_back(gcs, saved, tmp_path):
    gcs.fs.get("bucket/saved/", str(tmp_path / "run") + "/", recursive=True)
    assert restored(tmp_path / "run", 2) == [0, 2, 4]
    file = next((tmp_path / "run" / "checkpoints" / "3" / "params").glob("ocdbt.process_0/d/*"))
    file.write_bytes(file.read_bytes()[::-1])
    with pytest.raises(DamagedError, match="is not what was written"):
        restored(tmp_path / "run")

    save(tmp_path / "other", 5)
    gcs.fs.put(str(tmp_path / "other") + "/", "bucket/other/", recursive=True)
    assert restored("gs://bucket/other") == [0, 5, 10]
    key = "bucket/other/checkpoints/5/params/manifest.ocdbt"
    gcs.fs.pipe_file(key, gcs.fs.cat_file(key)[:-5] + b"other")
    with pytest.raises(DamagedError, match="is not what was written"):
        restored("gs://bucket/other")


def test_that_orbax_does_not_write_to_s3_is_one_line():
    with pytest.raises(NeojaxError, match="s3://bucket/run: checkpoints are written to gs://"):
        Checkpoints("s3://bucket/run", 2)


HOST = """
import sys
import jax, numpy as np
jax.config.update("jax_platforms", "cpu")
index, run = int(sys.argv[1]), sys.argv[3]
jax.distributed.initialize("localhost:" + sys.argv[2], 2, index)
from jax.sharding import NamedSharding, PartitionSpec
from neojax.runs.checkpoint import Checkpoints

mesh = jax.make_mesh((2,), ("data",))
rng = np.random.default_rng(0)
values = {"split": rng.normal(size=(2, 1 << 17)), "whole": rng.normal(size=(1 << 17,))}
values = {n: v.astype("f4") for n, v in values.items()}
def put(name, *axes):
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.make_array_from_callback(values[name].shape, sharding, lambda i: values[name][i])
state = {"params": {"split": put("split", "data"), "whole": put("whole")}, "opt_state": {"count": put("whole")}}
like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
with jax.set_mesh(mesh), Checkpoints(run, keep=2) as checkpoints:
    for step in (1, 2, 3):
        checkpoints.save(step, state, {})
    checkpoints.wait()
    got = checkpoints.restore(3, like)["params"]
    for name, array in got.items():
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), values[name][shard.index])
    print(checkpoints.steps())
"""  # noqa: E501


def test_each_process_writes_its_own_shards_and_replicas_are_written_once(gcs):
    first, second = run_hosts(HOST, 2, "gs://bucket/two", timeout=240, environment=gcs.environment)
    assert first == second == [2, 3]
    sizes = {
        name: info["size"]
        for name, info in gcs.fs.find("bucket/two/checkpoints/3/params", detail=True).items()
    }
    written = [sum(size for name, size in sizes.items() if f"ocdbt.process_{i}/" in name) for i in (0, 1)]
    array = (
        4 << 17
    )  # bytes of `whole`, and of the half of `split` that a process holds; compressed by a tenth
    for own in written:
        assert 0.8 * array < own < 2.1 * array
    assert 0.8 * 3 * array < sum(sizes.values()) < 1.1 * 3 * array
    with Checkpoints("gs://bucket/two") as checkpoints:  # in one process
        split = jax.ShapeDtypeStruct((2, 1 << 17), np.float32)
        got = checkpoints.restore_params(
            3, {"split": split, "whole": jax.ShapeDtypeStruct((1 << 17,), np.float32)}
        )
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(np.asarray(got["split"]), rng.normal(size=(2, 1 << 17)).astype("f4"))
