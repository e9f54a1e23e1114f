"""What is said of a topology that there is not: the near ones, and what is missing to compile for one."""

import importlib.util

import pytest

from neojax.errors import NeojaxError
from neojax.layout.slice_names import larger
from neojax.layout.topology import tpu_devices


@pytest.mark.parametrize(
    "topology, words",
    [
        ("v5e", ["expected a chip and a shape"]),
        ("v9:4x4", ["no TPU v9", "v5e"]),
        ("v5:4x4", ["did you mean v5"]),
        ("v5e:32x32", ["at most 256 chips", "v5e:16x16"]),
        ("v5e:4x4x4", ["a torus of 2 axes", "v5e:8x8"]),
        ("2xv6e:1x2x3", ["a torus of 2 axes", "2xv6e:2x4 or 2xv6e:2x2"]),
        ("v5p:8", ["a torus of 3 axes", "v5p:2x2x2"]),
        ("h100:8", ["no TPU h100"]),
        ("v5e:2x128", ["at most 16 chips along an axis", "v5e:16x16"]),
        ("v5e:10x4", ["no way between", "v5e:"]),
        ("v4:2x2x1024", ["at most 256 chips along an axis", "v4:16x16x16"]),
        ("v5e-16", ["16 chips", "v5e:4x4"]),
    ],
)
def test_topologies_that_are_not_there_name_near_ones(topology, words):
    with pytest.raises(NeojaxError) as caught:
        tpu_devices(topology)
    assert all(word in str(caught.value) for word in [repr(topology), *words])


def test_a_shape_that_no_slice_has_names_near_ones():
    pytest.importorskip("libtpu")
    with pytest.raises(NeojaxError, match="try v5e:4x4"):
        tpu_devices("v5e:3x5")


@pytest.mark.parametrize("topology", ["v5e:1x1", "v6e:1x1", "2xv5e:1x1"])
def test_one_chip_is_a_slice_where_there_are_such_machines(topology):
    pytest.importorskip("libtpu")
    assert len(tpu_devices(topology)) == 1 + topology.startswith("2x")


def test_a_slice_of_less_than_a_host_names_near_ones():
    pytest.importorskip("libtpu")
    with pytest.raises(NeojaxError, match="hosts with 2x2 chips, or is one chip; try v5e:2x2"):
        tpu_devices("v5e:1x4")


def test_what_is_missing_is_a_line_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NeojaxError, match=r"pip install '\.\[tpu\]'"):
        tpu_devices("v5e:4x4")


def test_the_next_larger_topology():
    assert larger("v5e:2x4") == "v5e:4x4" and larger("2xv5e:8x8") == "2xv5e:8x16"
    assert larger("v5p:2x2x1") == "v5p:2x2x2" and larger("v5e:16x16") is None
