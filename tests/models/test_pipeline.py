"""A pipeline gives what one device gives, whatever its stages and rounds, and tells what cannot be one."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import layout_of, model_config, perturbed, random_tokens, tiny

from neojax.config import TrainConfig
from neojax.data.batch import Batch
from neojax.errors import NeojaxError
from neojax.models import Transformer
from neojax.models.compute import Compute
from neojax.models.pipeline import Schedule, check_microbatches
from neojax.models.pipeline_loss import loss_of_microbatches

MESH = ("stage:2, data:2, model:2", "batch:data, layers:stage, heads:model, mlp:model, vocab:stage+model")
DROPS = {"dropout": 0.1, "embedding.dropout": 0.1, "attention.dropout": 0.1}
FAMILIES = {
    "gpt_neo": {**DROPS, "n_layer": 8},
    "gpt_neox": {"family": "gpt_neox", "dropout": 0.1},
    "llama": {"family": "llama", "attention.kv_heads": 2},
    "bert": {"family": "bert", "head.kinds": ["mlm", "pair"], "dropout": 0.1},
}


@pytest.mark.parametrize("stages, rounds, count", [(4, 1, 8), (4, 1, 6), (4, 3, 8), (3, 2, 5), (2, 4, 2)])
def test_every_microbatch_passes_all_stages_in_their_order_without_waiting(stages, rounds, count):
    schedule = Schedule(stages, rounds, count)
    seen = {}
    for time in range(schedule.ticks):
        for stage in range(stages):
            place = [int(x) for x in schedule.place(jnp.int32(time - stage))]
            if place[2]:
                seen[place[0], place[1], stage] = time
    assert len(seen) == stages * rounds * count
    for (microbatch, turn, stage), time in seen.items():
        before = (microbatch, turn, stage - 1) if stage else (microbatch, turn - 1, stages - 1)
        assert before[1] < 0 or seen[before] == time - 1
    if count % stages == 0 or rounds == 1:
        assert schedule.bubble == pytest.approx((stages - 1) / (count * rounds + stages - 1))


def loss_and_gradients(config, layout, compute, batch, microbatches=4):
    """The summed loss of microbatches, what they report, and the gradients, with dropout."""
    model = Transformer(config, layout, compute).init(0)
    names = {n: np.asarray(p) for n, p in perturbed(Transformer(config).init(0).params()).items()}
    params = {
        n: jax.device_put(np.pad(names[n], [(0, b - a) for a, b in zip(names[n].shape, p.shape)]), p.sharding)
        for n, p in model.params().items()
    }
    batch = jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), batch)
    batch = jax.tree.map(lambda x: model.layout.put(x, "microbatches", "batch", *[""] * (x.ndim - 2)), batch)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), jnp.arange(microbatches))

    def loss(params):
        bound, counts = model.bind(params), model.scored(batch)
        if model.is_pipeline:
            losses = loss_of_microbatches(bound, batch, dropout_keys=keys)
            return losses.total(counts), losses.sums

        def one(each):
            losses = bound.loss(each[0], dropout_key=each[1])
            return losses.total(counts), losses.sums

        return jax.tree.map(lambda x: jnp.sum(x, 0), jax.lax.map(one, (batch, keys)))

    with jax.set_mesh(model.layout.mesh):
        (value, sums), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    grads = {n: np.asarray(g)[: names[n].shape[0]] for n, g in grads.items()}
    return float(value), jax.tree.map(np.asarray, sums), grads


def assert_same(found, expected):
    """Loss, reports and gradients agree to 1e-5."""
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[1].keys() == expected[1].keys() and found[2].keys() == expected[2].keys()
    for own, other in zip(jax.tree.leaves(found[1:]), jax.tree.leaves(expected[1:]), strict=True):
        assert own.shape == other.shape
        assert np.abs(own - other).max() <= 1e-5 * max(np.abs(other).max(), 1)


def batch_of(config):
    tokens, segments = random_tokens(16, 24), np.sort(np.random.default_rng(4).integers(1, 4, (16, 24)))
    labels = np.arange(16, dtype=np.int32) % 2 if config.is_encoder else None
    types = (segments - 1).clip(0, 1).astype("i4") if config.embedding.token_types else None
    targets = np.where(random_tokens(16, 24, 1) % 5 == 0, -1, random_tokens(16, 24, 2))
    return Batch(tokens, targets, segments=segments.astype("i4"), labels=labels, token_types=types)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_with_dropout_and_segments_agree_with_one_device(family):
    config = of_family(family)
    batch = batch_of(config)
    expected = loss_and_gradients(config, layout_of("data:1"), Compute(), batch)
    compute = Compute(remat="full", rounds=2 if family == "gpt_neo" else 1)
    assert_same(loss_and_gradients(config, layout_of(*MESH, "embd:data"), compute, batch), expected)


@pytest.mark.slow
def test_split_rows_on_stages_agree_with_one_device():
    """Keys that go round with dropout and learned keys, and sums that are sent on, within each stage."""
    config = tiny(attention_types=("global", "linear"), num_mem_kv=2, attn_dropout=0.2)
    batch = batch_of(config)
    expected = loss_and_gradients(config, layout_of("data:1"), Compute(), batch)
    layout = layout_of("stage:2, row:2", "layers:stage, sequence:row, vocab:stage")
    assert_same(loss_and_gradients(config, layout, Compute(remat="names"), batch), expected)


def test_experts_on_stages_agree_with_one_device():
    experts = {"number": 4, "layers": [1, 3, 5, 7], "width": 8, "second": "random", "z_loss": 0.1}
    config = tiny(n_layer=8, **{f"experts.{key}": value for key, value in experts.items()})
    batch = batch_of(config)
    layout = "batch:data, layers:stage, experts:data, vocab:stage"
    expected = loss_and_gradients(config, layout_of("data:1"), Compute(), batch)
    assert expected[1]["expert_load"][0].shape == (4, 4)
    compute = Compute(remat="full", rounds=2)
    assert_same(loss_and_gradients(config, layout_of("stage:2, data:2", layout), compute, batch), expected)


def test_dropless_experts_of_parts_of_rows_on_stages_agree_with_one_device():
    """A device has more tokens than an expert is wide, so that experts come to them."""
    experts = {"number": 4, "layers": [1, 3], "width": 8, "dropless": True, "balance_loss": 0.1}
    config = tiny(n_layer=4, **{f"experts.{key}": value for key, value in experts.items()})
    batch = batch_of(config)
    layout = "batch:data, layers:stage, sequence:row, experts:row, vocab:stage"
    expected = loss_and_gradients(config, layout_of("data:1"), Compute(), batch)
    found = loss_and_gradients(
        config, layout_of("stage:2, data:2, row:2", layout), Compute(remat="full"), batch
    )
    assert_same(found, expected)


def of_family(name):
    keys = {"n_layer": 4, "n_embd": 32, "n_ctx": 24, "n_vocab": 61, "attention.heads": 4}
    if name == "gpt_neo":
        keys["attention.window"] = 7
    return model_config(**{**keys, **FAMILIES[name]})


def test_only_what_a_stage_made_and_what_the_loss_needs_travels():
    config = tiny(n_layer=8)
    model = Transformer(config, layout_of("stage:4, data:2", "batch:data, layers:stage, vocab:stage"))
    tokens = jax.ShapeDtypeStruct((8, 4, 24), jnp.int32)
    with jax.set_mesh(model.layout.mesh):
        sharding = model.layout.sharding(("microbatches", "batch", "sequence"))
        batch = Batch(*[jax.ShapeDtypeStruct(tokens.shape, tokens.dtype, sharding=sharding)] * 2)
        grad = jax.grad(lambda p, b: loss_of_microbatches(model.bind(p), b).total())
        program = jax.jit(grad).lower(model.stored(), batch).compile().as_text()
    assert "all-gather" not in program and "all-to-all" not in program
    sent = re.findall(r"= (\S+) collective-permute\(", program)
    assert sent and set(sent) == {"f32[1,2,24,32]{3,2,1,0}"}  # a device's microbatch


@pytest.mark.parametrize(
    "config, layout, rounds, words",
    [
        (tiny(n_layer=2), "layers:stage", 1, "which does not divide the model's 1 group of 2 layers"),
        (tiny(n_layer=12), "layers:stage", 1, "which does not divide the model's 6 groups of 2 layers"),
        (tiny(n_layer=12), "layers:stage", 1, "2, 3 or 6 stages would do"),
        (tiny(n_layer=8), "layers:stage", 2, "; 2 stages or train.pipeline_rounds=1 would do"),
        (tiny(n_layer=8), "layers:stage", 3, "3 rounds"),
        (tiny(n_layer=32), "layers:stage", 4, "set train.remat=names"),
        (tiny(n_layer=4, share_parameters=True), "layers:stage", 1, "share_parameters=true"),
        (tiny(n_layer=8), "layers:stage, batch:stage", 1, "splits both layers and batch"),
        (tiny(n_layer=8), "layers:stage, embd:stage", 1, "over another axis"),
        (tiny(n_layer=8), "vocab:stage", 2, "train.pipeline_rounds=2 is for layers"),
    ],
)  # fmt: skip
def test_what_is_no_pipeline_is_told_with_what_would_work(config, layout, rounds, words):
    with pytest.raises(NeojaxError) as error:
        Transformer(
            config,
            layout_of("stage:4", layout),
            Compute(rounds=rounds, remat="none" if rounds == 4 else "full"),
        )
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "batch_size, microbatch, words",
    [
        (32, 0, "1 microbatch of a batch of 32, too few for 4 stages of layers; set train.microbatch=8"),
        (32, 16, "set train.microbatch=8"),
        (6, 2, "raise train.batch_size to 8 or a multiple, with train.microbatch=2"),
    ],
)
def test_too_few_microbatches_are_told_with_what_would_do(batch_size, microbatch, words):
    layout = layout_of("stage:4, data:2", "layers:stage, batch:data")
    with pytest.raises(NeojaxError, match=words):
        check_microbatches(TrainConfig(batch_size=batch_size, microbatch=microbatch), layout)
    check_microbatches(TrainConfig(batch_size=32, microbatch=8), layout)


def test_layers_are_stored_where_they_are_used():
    with pytest.raises(NeojaxError, match=r"give layers in mesh\.layout alone"):
        layout_of("stage:4", "vocab:stage", "layers:stage")
