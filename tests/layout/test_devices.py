"""The order of devices in a mesh that spans slices: the network is crossed along the axes that dcn_shape
names alone. Fake devices have threads enough."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

from neojax.errors import NeojaxError
from neojax.layout import devices
from neojax.layout.devices import THREADS, arranged, fake_cpu_devices


@dataclasses.dataclass(frozen=True)
class Chip:
    """What the arrangement reads of a device: a chip of a 2x4 slice of TPU v5e."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    process_index: int
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0


def chips(slices: int) -> list[Chip]:
    """Eight chips a slice, four a process, in an order that tells nothing."""
    made = [Chip(8 * s + i, s, (i % 2, i // 2, 0), 2 * s + i // 4) for s in range(slices) for i in range(8)]
    return [made[i] for i in np.random.default_rng(0).permutation(len(made))]


@pytest.mark.parametrize(
    "shape, dcn",
    [
        ({"data": 2, "model": 8}, {"data": 2}),
        ({"data": 4, "model": 4}, {"data": 2}),
        ({"data": 4, "model": 4}, {"model": 2}),
        ({"data": 16}, {"data": 2}),
        ({"x": 2, "data": 4, "model": 4}, {"x": 2, "data": 2}),
        ({"data": 8, "model": 4}, {"data": 4}),
    ],
)
def test_devices_of_a_slice_stay_together(shape, dcn):
    """Inside a block of the sizes that are left all chips are of one slice, every block is another, none is
    lost."""
    devices = chips(int(np.prod(list(dcn.values()))))
    mesh = arranged(shape, dcn, devices)
    assert mesh.shape == tuple(shape.values())
    assert sorted(d.id for d in mesh.flat) == sorted(d.id for d in devices)
    outer = [dcn.get(axis, 1) for axis in shape]
    slices = np.vectorize(lambda d: d.slice_index)(mesh)
    seen = set()
    for block in np.ndindex(*outer):
        inner = [size // part for size, part in zip(shape.values(), outer)]
        own = slices[tuple(slice(b * n, (b + 1) * n) for b, n in zip(block, inner))]
        assert len(np.unique(own)) == 1, (block, own)
        seen.add(own.flat[0])
    assert len(seen) == len(list(np.ndindex(*outer)))


@pytest.mark.parametrize(
    "shape, dcn, words",
    [
        ({"data": 16}, {}, ["2 slices", "mesh.dcn_shape=data:2"]),
        ({"data": 16}, {"data": 4}, ['mesh.dcn_shape="data:4"', "does not fit"]),
    ],
)
def test_slices_that_are_not_what_dcn_shape_says_are_one_line(shape, dcn, words):
    with pytest.raises(NeojaxError) as error:
        arranged(shape, dcn, chips(2))
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "environ, cores, threads",
    [
        ({}, 2, "16"),
        ({}, 64, None),
        ({"NPROC": "4"}, 64, "16"),
        ({"NPROC": "32"}, 2, None),
        ({THREADS: "4", "NPROC": "32"}, 64, "16"),
        ({THREADS: "32"}, 2, "32"),
    ],
)
def test_fake_devices_have_two_threads_each_or_more(monkeypatch, environ, cores, threads):
    monkeypatch.setattr(devices.jax.config, "update", lambda *_: None)
    monkeypatch.setattr(devices, "cores", lambda: cores)
    for name in (THREADS, "NPROC"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    fake_cpu_devices(8)
    assert os.environ.get(THREADS) == threads


AHEAD = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from neojax.layout.devices import use_cpu_devices

use_cpu_devices(8)
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
whole = NamedSharding(mesh, P())
x = jax.device_put(jnp.ones((512, 64)), NamedSharding(mesh, P("data")))
w = jax.device_put(jnp.eye(64), whole)
step = jax.jit(lambda w, x: w + 1e-4 * (x.T @ jnp.tanh(x @ w)), out_shardings=whole)
assert "all-reduce" in step.lower(w, x).compile().as_text()
for _ in range(1000):
    w = step(w, x)
jax.block_until_ready(w)
"""


def test_programs_may_be_far_ahead_of_the_devices():
    """With a thread a device, jaxlib 0.10 does not come to the end of this: XLA ends the process."""
    environ = {name: value for name, value in os.environ.items() if name not in (THREADS, "NPROC")}
    ended = subprocess.run([sys.executable, "-c", AHEAD], env=environ, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
