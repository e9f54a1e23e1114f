"""The collectives of a compiled step take the time that the model gives its own."""

from dataclasses import replace

import pytest

from neojax.config import from_dict
from neojax.plan.as_compiled import as_compiled, transfer
from neojax.plan.compiled import Moved
from neojax.plan.estimate import analyse, seconds
from neojax.plan.machine import path, paths
from neojax.plan.trace import dcn_of

TREE = {
    "model": {"n_layer": 2, "n_embd": 256, "n_ctx": 128, "n_vocab": 256, "attention": {"heads": 4}},
    "train": {"batch_size": 16, "steps": 1000},
}
MESHES = {
    "an axis of slices": {
        "shape": "slices:2, data:4",
        "dcn_shape": "slices:2",
        "layout": "batch:slices+data",
        "param_layout": "embd:data",
    },
    "an axis of which a part crosses": {
        "shape": "my-data:8",
        "dcn_shape": "my-data:2",
        "layout": "batch:my-data",
        "param_layout": "embd:my-data",
    },
}


@pytest.fixture(scope="module", params=MESHES)
def one(request):
    return analyse(from_dict(TREE | {"mesh": MESHES[request.param]}), "2xv5e:2x2")


def written(one):
    """The model's own collectives as a compiler writes them, one row for each part of the way: what crosses
    is that of one chip, and a sum whose parts are kept in one slice alone is gathered there again."""
    taken = paths(one.on, dict(one.work.sizes), dcn_of(one.config))
    for t in one.work.transfers:
        way = path(one.on, [part for axis in t.axes for part in taken[axis]])
        is_cut = set(t.cut) >= set(t.axes)
        kinds = {"sum": "reduce-scatter" if is_cut else "all-reduce", "gather": "all-gather"}
        axes = "+".join(t.axes)
        if way.devices > 1:
            yield Moved(kinds[t.kind], axes, t.dtype, False, False, t.times, t.bytes * t.times)
            if is_cut and way.outer > 1:
                yield Moved("all-gather", axes, t.dtype, False, False, t.times, t.bytes * t.times)
        if way.outer > 1:
            each = t.bytes // way.devices * t.times
            crossing = f"{kinds[t.kind]} between slices"
            yield Moved(crossing, f"{axes} across slices", t.dtype, True, False, t.times, each)


def test_rows_that_say_what_the_model_says_take_its_time(one):
    found = as_compiled(one, tuple(written(one))).estimate
    assert one.estimate.network > 1e-4
    assert found.network == pytest.approx(one.estimate.network, rel=1e-3)
    assert found.links == pytest.approx(
        one.estimate.links, rel=0.2
    )  # a scatter and a gather are two messages
    assert (found.products, found.traffic) == (one.estimate.products, one.estimate.traffic)


@pytest.mark.parametrize(
    "kind, times", [("all-reduce", 2), ("reduce-scatter", 1), ("all-gather", 1), ("all-to-all", 1)]
)
def test_a_row_between_slices_takes_the_network_alone(one, kind, times):
    """Of two slices each chip sends half of what it has, and of a sum twice that; nothing on links."""
    axis = one.config.mesh.dcn_shape.split(":")[0]
    row = Moved(f"{kind} between slices", f"{axis} across slices", "f32", True, False, 5, 5 * 10**6)
    taken = paths(one.on, dict(one.work.sizes), dcn_of(one.config))
    near, far = seconds(transfer(row, one.work.sizes), one.on, taken)
    assert near == 0 and far == pytest.approx(5 * times * 0.5e6 / one.on.chip.network)
    inside = replace(row, kind=kind, axes=list(one.work.sizes)[-1], crosses=False)
    near, far = seconds(transfer(inside, one.work.sizes), one.on, taken)
    assert near > 0 and far == 0


def test_what_no_axis_of_the_mesh_carries_has_no_time(one):
    assert transfer(Moved("all-reduce", "none", "f32", False, False, 1, 8), one.work.sizes) is None
