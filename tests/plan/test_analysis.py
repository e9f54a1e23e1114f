"""The analytic model: what it counts against arithmetic and the compiler, and how its estimates behave."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from neojax.config import from_dict
from neojax.errors import NeojaxError
from neojax.models.flops import flops_per_token
from neojax.plan.estimate import CONSTANTS, HOP, SPREAD, analyse, used

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import compiled_memory
from model_against_compiler import FAMILIES, LAYOUTS, SMALL, flops
from published_rows import ROWS
from side_by_side import RESULTS

MODEL = {"n_layer": 4, "n_embd": 256, "n_ctx": 256, "n_vocab": 1024, "attention": {"heads": 2, "window": 64}}


def config(mesh="data:-1", layout="batch:data", stored="", **train):
    mesh = {"shape": mesh, "layout": layout, "param_layout": stored}
    return from_dict({"model": MODEL, "mesh": mesh, "train": {"batch_size": 64, **train}})


def transfers(analysis, kind):
    return [one for one in analysis.work.transfers if one.kind == kind and one.bytes > 1000]


@pytest.fixture(scope="module")
def stored():
    return analyse(config(stored="embd:data"), "v5e:2x4")


@pytest.fixture(scope="module")
def whole():
    return analyse(config(), "v5e:2x4")


@pytest.mark.parametrize(
    "family, layout, remat", [("gpt_neo", "tensor 2", "names"), ("llama", "stored over all", "full")]
)
def test_products_are_those_of_the_compiled_step(family, layout, remat):
    mesh, used, kept = LAYOUTS[layout]
    counted, compiled = flops(
        {
            "model": SMALL | FAMILIES[family],
            "mesh": {"shape": mesh, "layout": used, "param_layout": kept},
            "train": {"batch_size": 16, "remat": remat, "precision": "float32", "attention_kernel": "xla"},
        }
    )
    assert counted == pytest.approx(compiled, rel=0.02)


def test_what_is_computed_again_is_counted(whole):
    again = analyse(config(remat="full"), "v5e:2x4")
    assert again.work.flops > 1.2 * whole.work.flops
    assert again.work.memory.kept < whole.work.memory.kept
    assert again.estimate.mfu < whole.estimate.mfu


def test_products_without_recomputation_are_the_models_flops(whole):
    tokens = 64 * 256 / 8
    # A kernel of attention makes scores again, and the loss's chunks are padded to as many tokens.
    assert whole.work.flops == pytest.approx(flops_per_token(whole.config.model) * tokens, rel=0.1)


def test_stored_parameters_are_gathered_once_or_anew_where_blocks_are_computed_again(stored):
    layer = (4 * 256 * 256 + 2 * 256 * 1024) * 2  # bfloat16
    table, positions = 1024 * 256 * 2, 256 * 256 * 4
    again = analyse(config(stored="embd:data", remat="names"), "v5e:2x4")
    for one, times in ((stored, 1), (again, 2)):
        gathered = sum(t.bytes * t.times for t in transfers(one, "gather") if t.dtype != "int32")
        assert gathered == pytest.approx(times * 4 * layer + table + positions, rel=0.02)


def test_gradients_are_summed_once_and_cut_where_parameters_are_split(stored, whole):
    parameters = 4 * (4 * 256 * 256 + 2 * 256 * 1024) + 1024 * 256 + 256 * 256
    for one, is_cut in ((stored, True), (whole, False)):
        sums = transfers(one, "sum")
        assert sum(s.bytes * s.times for s in sums) == pytest.approx(4 * parameters, rel=0.02)
        assert all(bool(s.cut) == is_cut for s in sums if s.bytes > 256 * 256 * 4)


def test_splitting_storage_saves_memory_by_its_parts(stored, whole):
    assert stored.work.memory.optimizer == pytest.approx(whole.work.memory.optimizer / 8, rel=0.1)
    assert stored.work.memory.total < whole.work.memory.total


def test_tensor_parallel_sums_are_over_its_axis_alone():
    layout = "batch:data, heads:model, mlp:model, vocab:model"
    found = analyse(config("data:4, model:2", layout), "v5e:2x4")
    wide = [one for one in transfers(found, "sum") if one.axes == ("model",) and one.looped]
    tokens = 64 // 4 * 256
    assert {one.bytes for one in wide if one.dtype == "bfloat16"} == {tokens * 256 * 2}


def test_microbatches_add_up_to_the_same_products(whole):
    parts = analyse(config(microbatch=16), "v5e:2x4")
    assert parts.work.flops == pytest.approx(whole.work.flops, rel=0.05)
    assert parts.work.memory.kept < whole.work.memory.kept


def test_a_step_is_bound_by_what_takes_longest(whole):
    assert analyse(config(), "h100:64").estimate.bound in ("links", "network")
    assert whole.estimate.bound in ("products", "memory", "links")
    assert whole.estimate.low < whole.estimate.seconds < whole.estimate.high


def test_a_chip_without_published_steps_has_a_wider_interval(whole):
    def width(one):
        return (one.high - one.low) / one.seconds

    unknown = analyse(config(), "b200:8").estimate
    assert not unknown.known
    assert width(unknown) > 1.5 * width(whole.estimate)


@pytest.mark.parametrize("number", [62, 63])
def test_our_own_steps_lie_within_their_interval(number):
    row = next(row for row in ROWS if row.number == number)
    found = analyse(row.config(), row.machine).estimate
    assert found.low < row.seconds < found.high
    assert found.seconds == pytest.approx(row.seconds, rel=0.1)


def test_the_constants_are_those_of_the_benchmark():
    kept = json.loads((RESULTS / "published_steps.json").read_text())
    kept = kept.get("results", kept)
    assert {name: round(one["value"], 3) for name, one in kept["constants"].items()} == {
        name: one.value for name, one in CONSTANTS.items()
    }
    tested = kept["summary"]["tested"]
    assert tested["median"] <= 0.1 and tested["nine in ten"] <= 0.25
    own = kept["summary"]["published over predicted, eight in ten of the tested"]
    low, high = own["gpu"]
    assert SPREAD["gpu"] == (round(low, 2), round(high, 2))


def test_the_constants_that_are_told_are_those_that_count(whole):
    assert set(used(whole)) == {"products v5e", "kernels tpu", "traffic", "hop"}  # one slice, no network
    assert used(whole)["hop"].value == HOP and used(whole)["hop"].low is None
    alone = replace(whole, estimate=replace(whole.estimate, kernels=0.0, links=0.0))
    assert set(used(alone)) == {"products v5e", "traffic"}
    many = analyse(config(remat="full"), "h100:64")
    assert {"products h100", "network gpu", "memory again"} <= set(used(many))


def test_layouts_that_do_not_fit_say_why():
    with pytest.raises(NeojaxError, match=r"on v5e:2x4 needs a multiple of 3"):
        analyse(config("data:-1, model:3"), "v5e:2x4")
    with pytest.raises(NeojaxError, match=r"mesh.dcn_shape=data:2"):
        analyse(config(), "2xv5e:2x4")


def test_experts_send_tokens_to_each_other():
    tree = {
        "model": MODEL | {"experts": {"number": 8, "layers": [1, 3]}},
        "mesh": {"shape": "data:8", "layout": "batch:data, experts:data"},
        "train": {"batch_size": 64},
    }
    found = analyse(from_dict(tree), "v5e:2x4")
    assert transfers(found, "all-to-all")
    assert replace(found.estimate, links=0).compute > 0


@pytest.mark.parametrize(
    "name", ["125M, stored, nothing again", "1.3B, 32 rows", "v5e-256 1.3B one axis", "2.7B, tensor 4"]
)
def test_memory_is_what_the_compiler_assigned(name):
    kept = json.loads((RESULTS / "compiled_memory.json").read_text())["results"][name]
    memory = analyse(*compiled_memory.case(name)).work.memory
    assert memory.arguments == pytest.approx(kept["arguments"], rel=0.02)
    assert memory.total == pytest.approx(kept["needed"], rel=0.1)
