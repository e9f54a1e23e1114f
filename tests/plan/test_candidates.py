"""Which layouts a search looks at, and in how many microbatches."""

from types import SimpleNamespace

import pytest

from neojax.config import from_dict
from neojax.layout.names import parse_layout, parse_shape
from neojax.plan import candidates
from neojax.plan.candidates import explore, layouts
from neojax.plan.machine import machine

MODEL = {"n_layer": 2, "n_embd": 64, "n_ctx": 128, "n_vocab": 256, "attention": {"heads": 2}}


def config(batch=16, **model):
    return from_dict({"model": MODEL | model, "train": {"batch_size": batch, "steps": 1000, "remat": "full"}})


def rules(mesh):
    """(axis -> size, dimension -> axes, dimension -> axes as stored) of a mesh."""
    sizes = parse_shape(mesh.shape)
    used = parse_layout(mesh.layout, list(sizes), "mesh.layout")
    stored = parse_layout(mesh.param_layout, list(sizes), "mesh.param_layout") if mesh.param_layout else {}
    return sizes, used, stored


def test_experts_have_an_axis_of_their_own_beside_one_that_stores():
    own = config(experts={"number": 8, "layers": [1]})
    for text in ("v5e:4x4", "2xv5e:4x4", "h100:16"):
        found = [rules(mesh) for mesh in layouts(own, machine(text))]
        apart = [(s, u, p) for s, u, p in found if "experts" in u]
        assert all(u["experts"][0] in u["batch"] and 8 % s[u["experts"][0]] == 0 for s, u, p in apart)
        assert {s["expert"] for s, _, p in apart if p} == {2, 4, 8}
        assert not any(set(p.get("embd", ())) & set(u["experts"]) for _, u, p in apart)
        assert any(p and "experts" not in u for _, u, p in found)
        assert len(found) < 50


def test_rows_that_are_long_or_few_are_split_without_heads():
    on = machine("v5e:4x4")
    for own, is_split in ((config(n_ctx=8192), True), (config(batch=4), True), (config(), False)):
        found = [rules(mesh) for mesh in layouts(own, on)]
        alone = [(s, u, p) for s, u, p in found if "sequence" in u and "heads" not in u]
        assert bool(alone) == is_split
        assert not is_split or {s["row"] for s, _, _ in alone} == {2, 4, 8, 16}
        assert not is_split or any({"data", "row"} == set(p.get("embd", ())) for _, _, p in alone)
        assert not any(set(u.get("positions", ())) & set(p.get("embd", ())) for _, u, p in alone)


def test_a_machine_with_more_chips_splits_layers_wider():
    wide = config(batch=256, attention={"heads": 64})
    found = [rules(mesh)[0].get("model", 1) for mesh in layouts(wide, machine("v5p:4x4x8"))]
    assert max(found) == 64 and len(found) < 80
    assert max(rules(mesh)[0].get("model", 1) for mesh in layouts(wide, machine("h100:64"))) == 8


@pytest.mark.parametrize(
    "own, wanted",
    [
        (config(batch=4, n_ctx=256), "sequence:row"),
        (config(experts={"number": 2, "layers": [1]}), "experts:expert"),
    ],
    ids=["rows", "experts"],
)
def test_these_layouts_can_be_trained_with_parameters_whole_and_stored(own, wanted):
    on = machine("v5e:2x4")
    some = [mesh for mesh in layouts(own, on) if wanted in mesh.layout and "heads" not in mesh.layout]
    some = [mesh for mesh in some if parse_shape(mesh.shape).get("data", 1) == 4]
    some = [some[0], some[-1]]
    assert [bool(mesh.param_layout) for mesh in some] == [False, True]
    found = explore(own, on, iter(some), free=False)
    assert {one.mesh for one, _ in found.fitting} == set(some)


@pytest.fixture
def asked(monkeypatch):
    """An analysis whose step takes 2 bytes, 8 more for the sums of microbatches, and 2 for each row of one on
    a device; the room, and the microbatches that were asked for."""
    asked = SimpleNamespace(room=0.0, microbatches=[])

    def analyse(own, on):
        rows = own.train.microbatch or own.train.batch_size
        asked.microbatches.append(rows)
        held = 2 * rows / parse_shape(own.mesh.shape)["data"]
        sums = 8 if own.train.microbatch else 0
        memory = SimpleNamespace(total=2 + sums + held, arguments=2, gradients=2, kept=held / 4)
        estimate = SimpleNamespace(seconds=1.0)
        work = SimpleNamespace(memory=memory)
        return SimpleNamespace(work=work, room=asked.room, estimate=estimate, fits=memory.total <= asked.room)

    monkeypatch.setattr(candidates, "analyse", analyse)
    monkeypatch.setattr(candidates, "REMATS", ("full",))
    return asked


@pytest.mark.parametrize("room, rows", [(12, 4), (12.1, 4), (14, 8), (18, 16), (1100, 0)])
def test_the_fewest_microbatches_that_fit_are_found_down_to_a_row_for_each_device(asked, room, rows):
    asked.room = room
    own, on = config(batch=2048), machine("v5e:2x2")
    found = explore(own, on, iter([next(iter(layouts(own, on)))]))
    assert [one.microbatch for one, _ in found.fitting] == [rows]
    assert len(asked.microbatches) <= 4  # of ten numbers


def test_where_nothing_fits_the_least_is_that_of_one_row(asked):
    asked.room = 11.5
    own, on = config(batch=96), machine("v5e:2x2")
    found = explore(own, on, iter([next(iter(layouts(own, on)))]))
    assert not found.fitting and found.least[0].microbatch == 4
    assert asked.microbatches[-1] == 4 and len(asked.microbatches) < 5
    assert set(found.constraints) == {"memory"}
