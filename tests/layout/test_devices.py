"""The order of devices in a mesh that spans slices: the network is crossed along the axes that dcn_shape
names alone."""

import dataclasses

import numpy as np
import pytest

from neojax.errors import NeojaxError
from neojax.layout.devices import arranged


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
