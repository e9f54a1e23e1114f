"""`neojax plan`: what it says of a compiled step against what is known of it, on fake devices and for TPUs
that are not here."""

import json
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers import failure, tiny

from neojax import config as configuration
from neojax.cli import main
from neojax.commands import plan as command
from neojax.commands.plan import planned
from neojax.config import Config, MeshConfig, TrainConfig
from neojax.layout.chips import CHIPS, GIB, ROOM
from neojax.layout.topology import tpu_devices
from neojax.models import Transformer
from neojax.models.compute import Compute
from neojax.models.flops import flops_per_token
from neojax.models.inference import inference_compute, inference_layout
from neojax.plan import compiled, decoding
from neojax.plan.as_compiled import as_compiled
from neojax.plan.estimate import analyse
from neojax.plan.machine import Machine
from neojax.plan.report import print_report
from neojax.sampling.decode import Asked, Decoder
from neojax.sampling.logits import Controls

MESH = MeshConfig("data:4,model:2", "batch:data, heads:model, mlp:model, vocab:model", "embd:data")
KINDS = ("parameters", "optimizer", "batch", "gradients", "activations_kept", "temporaries")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A file with a small model whose dimensions on a device are all of different sizes."""
    path = tmp_path_factory.mktemp("plan") / "config.yml"
    model = tiny(n_embd=96, n_ctx=64, window_size=16, n_head=6, n_layer=8)
    config = Config(model=model, mesh=MESH, train=TrainConfig(batch_size=16, remat="names", unroll=1))
    path.write_text(configuration.dump(config))
    return str(path)


@pytest.fixture(scope="module")
def step(config):
    """The compiled step on the devices at hand."""
    return compiled.compile_step(configuration.load(config), None, quick=True)


@pytest.fixture(scope="module")
def here(config, step):
    """The report on the devices at hand."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "compile_step", lambda *_, **__: step)
        return planned(configuration.load(config), "here", None, True)


def plan(capsys, *words):
    assert main(["plan", *words, "--json"]) == 0
    said = capsys.readouterr()
    assert "compilation cache" not in said.err
    return json.loads(said.out)


def test_what_is_said_of_a_step_on_the_devices_here(config, here):
    own, report = configuration.load(config), here
    memory = report["memory"]
    assert report["fits"] and report["devices"] == 8
    assert sum(memory[kind] for kind in KINDS) + memory["unused"] == memory["needed"]
    layout = compiled.make_layout(own.mesh)
    stored = Transformer(own.model, layout).stored().values()
    held = sum(4 * math.prod(v.sharding.shard_shape(v.shape)) for v in stored)
    assert memory["parameters"] == held  # float32
    assert 2 * held <= memory["optimizer"] <= 2.01 * held  # two moments and counts
    assert memory["batch"] >= 2 * 16 * 64 * 4 / 4
    # Of every layer its input, what names keeps (query, key, value, attention, mlp_up).
    kept = 8 * (16 / 4) * 64 * 4 * (96 + (4 + 4) * 96 / 2)
    assert 0.9 * kept < memory["most_activations_kept"] < 1.1 * kept
    if jax.__version_info__ < (0, 12):  # whose compiler for CPUs writes most of them where others were
        assert memory["most_gradients"] >= 0.9 * held
    tokens = 16 * 64
    assert report["model_flops_per_device"] == flops_per_token(own.model) * tokens / 8
    assert report["hosts"] == [
        {"host": 0, "devices": 8, "rows": "0-15", "rows_per_step": 16, "tokens_per_step": tokens}
    ]
    moved = {(row["kind"], row["axes"]): row["bytes"] for row in report["collectives"]}
    whole = sum(4 * math.prod(v.shape) for v in stored)
    gathered = moved["all-gather", "data"]  # every matrix, of which model has two parts, forward and backward
    assert whole / 2 < gathered < 2 * whole
    assert moved["all-reduce", "model"] > 8 * 2 * (16 / 4) * 64 * 96 * 4  # two sums a layer and pass
    assert not any(row["crosses"] for row in report["collectives"])


@pytest.mark.parametrize("chip", ["h100", "v5e"])
def test_a_step_on_the_devices_here_is_estimated_where_their_chip_is_known(
    config, step, here, chip, monkeypatch, capsys
):
    assert "estimate" not in here  # of CPUs nothing is known
    sides = (8,) if chip == "h100" else (2, 4)
    monkeypatch.setattr(command, "compile_step", lambda *_, **__: step)
    monkeypatch.setattr(command, "here", lambda devices: Machine(CHIPS[chip], sides))
    report = plan(capsys, config)
    known = analyse(configuration.load(config), Machine(CHIPS[chip], sides))
    assert report["estimate"]["parts"]["products"] == known.estimate.products
    assert report["executed_flops_per_device"] == known.work.flops
    own = plan(capsys, config, "--price-per-chip-hour", "123")["estimate"]
    assert own["dollars"] == pytest.approx(123 * own["chip_hours"]) and not own["price_is_listed"]
    assert main(["plan", config]) == 0
    text = capsys.readouterr().out
    assert "its loader must give" in text and "days (" in text and "(MFU)" in text


def test_recomputation_takes_what_is_kept_away(config, here, capsys):
    kept = plan(capsys, config, "train.remat=full")["memory"]["most_activations_kept"]
    inputs = 4 * 4 * 64 * 96 * 4  # of every group of two layers
    assert kept < 0.5 * here["memory"]["most_activations_kept"] and inputs <= kept < 2 * inputs


def test_a_program_that_was_compiled_before_is_not_taken_from_a_cache(config, tmp_path):
    """Of one that is, nothing would be written to read its memory from."""
    own, keep = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    try:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        small = configuration.load(config, ["model.n_layer=2"])
        for _ in range(2):
            jax.jit(lambda x: x + 1)(1.0)  # JAX has looked whether the cache is on
            assert compiled.compile_step(small, None, quick=True).memory
    finally:
        jax.config.update("jax_compilation_cache_dir", own)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", keep)


@pytest.mark.slow
def test_a_step_that_does_not_fit_has_an_answer(config, here, capsys, monkeypatch):
    needed = here["memory"]["needed"]
    monkeypatch.setattr(compiled, "available", lambda layout: int(0.9 * needed))
    report = plan(capsys, config, "--quick")
    assert not report["fits"] and report["memory"]["available"] < report["memory"]["needed"]
    helps = report["helps"]
    assert helps["needed_before"] == needed
    changes = {one["change"]: one for one in helps["changes"]}
    assert "train.microbatch=8" in changes and all(one["needed"] < needed for one in changes.values())
    assert all(one["fits"] == (one["needed"] <= 0.9 * needed) for one in changes.values())
    again = plan(capsys, config, "--quick", "train.microbatch=8")["memory"]["needed"]
    assert again == changes["train.microbatch=8"]["needed"]
    print_report(report)
    assert "does NOT fit" in capsys.readouterr().out


def test_a_step_on_tpus_that_are_not_here(config, capsys):
    pytest.importorskip("libtpu")
    words = ["--topology", "2xv5e:2x2", "--quick", "model.n_embd=384", "model.n_ctx=128", "model.n_layer=2"]
    mesh = ["mesh.shape=slices:2,data:4", "mesh.dcn_shape=slices:2", "mesh.layout=batch:slices+data"]
    report = plan(capsys, config, *words, *mesh)
    assert report["fits"] and report["memory"]["available"] == int(15.75 * 2**30)
    assert (
        sum(report["memory"][kind] for kind in KINDS) + report["memory"]["unused"]
        == (report["memory"]["needed"])
    )
    crossing = [row for row in report["collectives"] if row["crosses"]]
    assert {row["axes"] for row in crossing} == {"slices across slices"}
    own = configuration.load(config, [*words[3:], *mesh])
    rows = tuple(compiled.Moved(**row) for row in report["collectives"])
    known = as_compiled(analyse(own, "2xv5e:2x2"), rows).estimate  # as a search has it
    estimate = report["estimate"]
    assert estimate["collectives"] == "compiled" and estimate["seconds"] == known.seconds
    assert estimate["parts"]["network"] == pytest.approx(analyse(own, "2xv5e:2x2").estimate.network, rel=0.3)
    assert sum(host["rows_per_step"] for host in report["hosts"]) == 16 and len(report["hosts"]) == 2


@pytest.mark.parametrize("chip", ROOM)
def test_the_model_has_the_room_that_the_compiler_leaves(chip):
    pytest.importorskip("libtpu")
    axes = CHIPS[chip].axes
    devices = tpu_devices(f"{chip}:2x2" + "x1" * (axes - 2))
    layout = compiled.make_layout(MeshConfig("data:-1", "batch:data"), devices)
    assert compiled.available(layout) == pytest.approx(CHIPS[chip].room, abs=0.01 * GIB)


def test_what_a_step_needs_that_is_too_large_for_a_tpu(config):
    pytest.importorskip("libtpu")
    large = ["model.n_embd=2048", "model.n_ctx=2048", "model.n_head=16", "model.n_layer=24"]
    more = ["train.batch_size=64", "train.remat=none", "mesh.shape=data:4", "mesh.layout=batch:data"]
    own = configuration.load(config, [*large, *more])
    one = compiled.compile_step(own, tpu_devices("v5e:2x2"), quick=True)
    assert not one.fits and one.memory.needed > one.available == int(15.75 * 2**30)
    assert one.memory.largest[0].kind == "activations kept" and one.found == ()


def test_what_cannot_be_planned_is_one_line(config, capsys):
    message = failure(capsys, "plan", config, "mesh.shape=data:3,model:2")
    assert "mesh.shape" in message


def test_what_is_said_of_sampling_is_what_the_sampler_holds(config, capsys):
    """The rows of the compiled program against those of a sampler that runs on the same mesh."""
    report = plan(capsys, config, "--decode")
    own = configuration.load(config)
    layout = inference_layout(compiled.make_layout(own.mesh))
    decoder = Decoder(Transformer(own.model, layout, inference_compute(Compute())).init(0))
    count = report["rows"]
    assert count == 4 * 8  # of each part of the batch
    filters = (np.zeros(count, "f4"), np.zeros(count, "i4"), *(np.zeros(count, "f4") for _ in range(3)))
    limit, ends = np.zeros(count, "i4"), np.zeros((count, 1), "i4")
    asked = Asked(limit, ends, np.zeros((count, 2), "u4"), Controls(*filters, np.zeros(count, bool)))
    prompts, starts = np.zeros((count, 16), "i4"), np.zeros(count, "i4")
    slots = {"global": 64, "local": 16}
    rows = decoder.prefill(prompts, starts, np.arange(count, dtype="i4"), asked, slots)

    def held(tree):
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

    assert report["cache_per_row"] * 8 == held(rows.caches)  # a device holds the rows of one part
    assert report["weights_per_device"] == held(decoder._model[1])
    memory = report["memory"]
    assert memory["parameters"] == held(decoder._model[1])
    assert 0 <= memory["batch"] - held(rows) < 1000  # and which rows are done
    room = memory["available"] - report["weights_per_device"] - report["fixed_beside_weights"]
    each = report["cache_per_row"] + report["beside_cache_per_row"]
    assert 0.99 * room < report["most_rows"] / 4 * each <= room


def test_rows_that_fit_are_told_from_what_more_rows_take(config, monkeypatch):
    """What is there whatever the rows is none of theirs: in place of the compiler, so many bytes
    for a row and others for none."""
    for_none, each, room = 50_000_000, 400_000, 1_000_000_000

    def compiler(lowered, model, layout, sizes, quick):
        needed = for_none + dict(sizes)["batch"] * each
        return SimpleNamespace(memory=SimpleNamespace(needed=needed), available=room)

    monkeypatch.setattr(decoding, "compiled_of", compiler)
    own = configuration.load(config, ["model.n_layer=2"])
    found = decoding.compile_decoding(own, None)
    assert found.row + found.other == each
    assert found.weights + found.fixed == for_none
    assert found.most_rows == 4 * ((room - for_none) // each)  # the batch has four parts


def test_a_row_alone_is_bounded_by_the_device_that_holds_it(config, capsys):
    found = plan(capsys, config, "--decode", "--topology", "h100:8")
    assert found["compiled"] is None and found["most_rows"] % 4 == 0
    one, eight = found["bounds"][:2]
    bandwidth = CHIPS["h100"].bandwidth
    assert one["tokens_per_second"] == pytest.approx(
        bandwidth / (found["weights_per_device"] + found["cache_per_row"])
    )
    assert eight["tokens_per_second"] == pytest.approx(
        8 * bandwidth / (found["weights_per_device"] + 2 * found["cache_per_row"])
    )
    # Two of four heads' keys and values, bfloat16, of 4 global layers of 64 tokens and 4 local ones of 16.
    assert found["cache_per_row"] == 2 * 2 * (96 / 2) * 4 * (64 + 16)
