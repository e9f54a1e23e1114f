"""Machines by their names, and how the axes of a mesh lie on them."""

from types import SimpleNamespace

import pytest

from neojax.errors import NeojaxError
from neojax.layout.chips import CHIPS, FRACTIONS, GIB
from neojax.plan.auto import here
from neojax.plan.machine import machine, path, paths


@pytest.mark.parametrize(
    "text, chips, devices",
    [
        ("v5e:16x16", 256, 256),
        ("2xv5e:8x8", 128, 128),
        ("v5p:4x4x4", 64, 64),
        ("7x:2x2x1", 4, 8),
        ("h100:64", 64, 64),
        ("a100-40:8", 8, 8),
        ("16xv5e:16x16", 4096, 4096),
    ],
)
def test_a_machine_is_named_as_it_is_written(text, chips, devices):
    on = machine(text)
    assert (on.chips, on.devices, str(on)) == (chips, devices, text)


@pytest.mark.parametrize(
    "text, said",
    [
        ("v5e", "expected a chip and a shape"),
        ("v6:4x4", "no chip is called v6"),
        ("v5e:4x4x4", "a torus of 2 axes; try v5e:8x8"),
        ("v5p:4", "a torus of 3 axes; try v5p:2x2x1"),
        ("v5e:32x32", "at most 256 chips; try 4xv5e:16x16"),
        ("v5e:2x128", "at most 16 chips along an axis; try v5e:16x16"),
        ("2xv5e:2x16", "no way between the chips .*; try 2xv5e:4x8"),
        ("v5e-16", "16 chips, of which the shape is wanted too; try v5e:4x4"),
        ("v5litepod-8", "8 chips, .* try v5e:2x4"),
        ("v5p-128", "128 cores are 64 chips, .* try v5p:4x4x4"),
        ("v5litepod:4x4", "did you mean v5e"),
        ("h100-64", "write h100:64"),
        ("a100-40", "expected a chip and a shape"),
        ("h100:8x8", "write h100:64"),
    ],
)
def test_what_is_no_machine_is_named_with_what_is_near(text, said):
    with pytest.raises(NeojaxError, match=said):
        machine(text)


def test_a_flat_slice_of_three_axes_is_one_as_it_is_to_the_compiler():
    assert machine("2xv4:2x2") == machine("2xv4:2x2x1")


def way(text, sizes, axes, dcn=None):
    on = machine(text)
    taken = paths(on, sizes, dcn or {})
    return path(on, [part for axis in axes for part in taken[axis]])


def test_an_axis_of_all_chips_is_a_ring_through_the_slice():
    found = way("v5e:16x16", {"data": 256}, ["data"])
    assert (found.devices, found.closes, found.stride, found.outer) == (256, True, 1, 1)


def test_an_axis_of_a_small_slice_does_not_close():
    assert not way("v5e:8x8", {"x": 8, "y": 8}, ["x"]).closes
    assert way("v5p:4x4x8", {"x": 16, "y": 8}, ["x"]).closes


def test_the_last_axes_of_gpus_lie_within_a_switch():
    sizes = {"data": 8, "model": 8}
    assert way("h100:64", sizes, ["model"]).outer == 1
    assert way("h100:64", sizes, ["data"]).outer == 8
    assert way("h100:64", {"data": 64}, ["data"]).outer == 8


def test_axes_over_slices_cross_the_network():
    sizes = {"slices": 2, "data": 64}
    assert way("2xv5e:8x8", sizes, ["slices"], {"slices": 2}).outer == 2
    assert way("2xv5e:8x8", sizes, ["data"], {"slices": 2}).outer == 1


@pytest.fixture
def unset(monkeypatch):
    for name in FRACTIONS:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_gpu_has_room_for_the_part_of_what_it_reports_that_jax_takes(unset):
    reported = CHIPS["h200"].reported
    assert reported == pytest.approx(139.8 * GIB, rel=1e-3)
    assert machine("h200:8").room == pytest.approx(0.75 * reported)
    for name in FRACTIONS:
        with pytest.MonkeyPatch.context() as own:
            own.setenv(name, "0.92")
            # What a job that was given so much had on an H200, see benchmarks/results/h200.json.
            assert machine("h200:8").room == pytest.approx(138101653504)
    assert machine("v5e:2x2").room == 15.75 * GIB


@pytest.mark.parametrize("text", ["half", "0", "1.2", "nan"])
def test_a_part_of_memory_that_is_none_is_an_error(unset, text):
    unset.setenv(FRACTIONS[-1], text)
    with pytest.raises(NeojaxError, match="at most 1"):
        _ = machine("h100:8").room


def test_devices_at_hand_have_the_room_that_they_say():
    kind = CHIPS["h200"].kinds[0]
    device = SimpleNamespace(
        platform="gpu", device_kind=kind, memory_stats=lambda: {"bytes_limit": 123 * 10**9}
    )
    on = here([device] * 8)
    assert on.room == 123e9 and on.chip is CHIPS["h200"] and on.devices == 8
