"""The training step: accumulation equals the whole batch, its metrics are what they say, and it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import layout_of, model_config, random_tokens, tiny, true_rows

from neojax.config import TrainConfig
from neojax.data.batch import Batch
from neojax.data.share import Share
from neojax.errors import NeojaxError
from neojax.models import Transformer
from neojax.training.optimizer import make_optimizer
from neojax.training.schedule import learning_rate
from neojax.training.state import init_state
from neojax.training.step import evaluate, make_eval_step, make_train_step

LAYOUT = layout_of("data:2, model:2", "batch:data, heads:model, mlp:model, vocab:model", "embd:data")
CONFIG = tiny(n_layer=1, attention_types=("global",), n_embd=16, n_ctx=12)
TRAIN = TrainConfig(learning_rate=1e-2, warmup_steps=2, steps=50, clip_norm=0.5)


def batch_of(seed=0, rows=8):
    """A batch whose rows have very different numbers of scored tokens."""
    targets = random_tokens(rows, 12, seed + 1)
    for row in range(rows):
        targets[row, : row * 12 // rows] = -1
    return Batch(random_tokens(rows, 12, seed), targets)


def setup(config=CONFIG, train=TRAIN, layout=LAYOUT):
    """The model, its first state and its step, on the mesh of `layout`."""
    model = Transformer(config, layout)
    optimizer = make_optimizer(train, model.dims())
    step = make_train_step(model, optimizer, train)

    def run(*args):
        with jax.set_mesh(layout.mesh):
            return step(*args)

    with jax.set_mesh(layout.mesh):
        return model, init_state(model.init(0), optimizer), run


def stepped(microbatches, config=CONFIG, train=TRAIN, batch=None, layout=LAYOUT, step=3):
    """The state and the metrics of `step` as the first, with the schedule there."""
    _, state, run = setup(config, train, layout)
    counts = optax.tree.set(state.opt_state, count=jnp.int32(step))
    state = state._replace(opt_state=jax.tree.map(jnp.copy, counts))  # two counts, two arrays to donate
    state, metrics = run(state, Share(layout, 8 // microbatches).place(batch or batch_of()), jnp.int32(step))
    return state, {name: float(value) for name, value in metrics.items()}


@pytest.fixture(scope="module")
def whole():
    return stepped(1)


@pytest.mark.parametrize("microbatches", [2, 4])
def test_microbatches_equal_the_whole_batch(microbatches, whole):
    """Also where padding is spread unevenly: the mean is over tokens, not over microbatches."""
    state, metrics = stepped(microbatches)
    for name, value in metrics.items():
        assert value == pytest.approx(whole[1][name], rel=1e-5), name
    for name, value in true_rows(state.params).items():
        # Adam's step magnifies the rounding of a gradient that is tiny.
        whole_value = true_rows(whole[0].params)[name]
        np.testing.assert_allclose(value, whole_value, rtol=1e-5, atol=2e-6, err_msg=name)


def test_metrics_are_the_loss_the_norm_before_clipping_and_the_rate(whole):
    model, state, _ = setup(layout=layout_of("data:1"))
    batch = batch_of()

    def mean(params):
        losses = model.bind(params).loss(batch)
        total = losses.objective
        count = losses.scored
        return total / count

    loss, grads = jax.jit(jax.value_and_grad(mean))(state.params)
    norm = float(optax.tree.norm(grads))
    assert norm > TRAIN.clip_norm
    expected = {"loss": float(loss), "grad_norm": norm, "learning_rate": float(learning_rate(TRAIN)(3))}
    assert whole[1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("options", [{"moment_dtype": "bfloat16"}, {"optimizer": "adafactor"}], ids=str)
def test_the_new_state_takes_the_place_of_the_old(options):
    """All of it: what is not donated, or has no result of its size and type, would be held twice."""
    train = dataclasses.replace(TRAIN, **options)
    model = Transformer(CONFIG, LAYOUT)
    optimizer = make_optimizer(train, model.dims())
    with jax.set_mesh(LAYOUT.mesh):
        state = init_state(model.init(0), optimizer)
        batch = Share(LAYOUT, 8).place(batch_of())
        step = make_train_step(model, optimizer, train).lower(state, batch, jnp.int32(0)).compile()
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    assert step.memory_analysis().alias_size_in_bytes == held


def test_state_is_donated_and_keeps_its_layout():
    model, state, run = setup()
    before = state.params
    after, _ = run(state, Share(LAYOUT, 8).place(batch_of()), jnp.int32(0))
    assert all(p.is_deleted() for p in before.values())
    for name, spec in model.stored().items():
        assert after.params[name].sharding.is_equivalent_to(spec.sharding, len(spec.shape)), name


def test_the_step_learns():
    """Ids that follow one another are learnt within a few steps."""
    _, state, run = setup()
    rows = (np.arange(13)[None] * 3 + np.arange(8)[:, None]).astype(np.int32) % 61
    batch = Share(LAYOUT, 8).place(Batch(rows[:, :-1], rows[:, 1:]))
    losses = []
    for step in range(40):
        state, metrics = run(state, batch, jnp.int32(step))
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(np.log(61), abs=0.3)
    assert losses[-1] < 1.5


def test_padding_of_the_vocabulary_is_never_trained():
    _, state, run = setup(train=TrainConfig(weight_decay=0.1, z_loss=1e-3, steps=10, warmup_steps=0))
    for step in range(3):
        state, _ = run(state, Share(LAYOUT, 8).place(batch_of(step)), jnp.int32(step))
    table = np.asarray(state.params["wte"])
    assert table.shape[0] == 62 and not table[61:].any()


def test_a_batch_without_targets_changes_nothing_but_decay():
    batch = batch_of()
    batch.targets[:] = -1
    state, metrics = stepped(1, train=TrainConfig(weight_decay=0.0), batch=batch)
    assert metrics["loss"] == metrics["grad_norm"] == 0
    _, start, _ = setup()
    for name, value in start.params.items():
        np.testing.assert_array_equal(value, state.params[name])


@pytest.mark.parametrize("options", [{}, {"moment_dtype": "bfloat16"}], ids=str)
@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_step_without_a_finite_loss_leaves_the_state_as_it_was(options, microbatches):
    """Bit for bit, moments and schedule too; what comes after it is as if it had not been."""
    config = model_config(CONFIG, tie_word_embeddings=False)
    train = dataclasses.replace(TRAIN, **options, warmup_steps=0)
    model, state, run = setup(config, train)
    first = state.params
    table = np.asarray(first["wte"]).copy()
    table[60] = np.nan  # the row of a token that only the bad batch has
    batches = {name: batch_of() for name in ("good", "bad")}
    for batch in batches.values():
        batch.tokens[:] %= 60
    batches["bad"].tokens[-1, 0] = 60
    batches = {n: Share(LAYOUT, 8 // microbatches).place(b) for n, b in batches.items()}
    ends = []
    for order in (["good", "bad", "bad", "good"], ["good", "good"]):
        values = {
            n: jax.device_put(table if n == "wte" else np.asarray(p), p.sharding) for n, p in first.items()
        }
        with jax.set_mesh(LAYOUT.mesh):
            state = init_state(model.bind(values), make_optimizer(train, model.dims()))
        for step, name in enumerate(order):
            before = jax.tree.map(np.asarray, state)
            state, metrics = run(state, batches[name], jnp.int32(step))
            after = jax.tree.map(np.asarray, state)
            same = jax.tree.leaves(jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), before, after))
            assert np.isfinite(float(metrics["loss"])) == (name == "good")
            assert all(same) if name == "bad" else not any(same[:1])
        ends.append((after, float(metrics["learning_rate"])))
    assert ends[0][1] == ends[1][1]
    for a, b in zip(*(jax.tree.leaves(end) for end, _ in ends)):
        np.testing.assert_array_equal(a, b)


def test_every_step_draws_its_own_dropout():
    config = tiny(n_layer=1, attention_types=("global",), n_embd=16, n_ctx=12, res_dropout=0.3)
    model, _, run = setup(config)
    batch = Share(LAYOUT, 4).place(batch_of())

    def loss(step):
        optimizer = make_optimizer(TRAIN, model.dims())
        with jax.set_mesh(LAYOUT.mesh):
            state = init_state(model.init(0), optimizer)
        return float(run(state, batch, jnp.int32(step))[1]["loss"])

    assert loss(3) == loss(3) != loss(4)


def test_evaluation_weighs_by_token_and_refuses_nothing():
    model, state, _ = setup()
    eval_step = make_eval_step(model)
    batches = [batch_of(0), batch_of(5)]
    batches[1].targets[:6] = -1
    share = Share(LAYOUT, 8)
    found = [
        evaluate(eval_step, state.params, iter(part), share) for part in (batches, *([b] for b in batches))
    ]
    (loss, count), *means = [(values["loss"], count) for values, count in found]
    assert [n for _, n in means] == [(b.targets >= 0).sum() for b in batches]
    assert count == means[0][1] + means[1][1]
    assert loss == pytest.approx(np.average([m for m, _ in means], weights=[n for _, n in means]), rel=1e-6)
    with pytest.raises(NeojaxError, match="no token"):
        evaluate(eval_step, state.params, iter([]), share)
