"""What is frozen stays bit for bit what it was and costs no optimizer state; what is trained does not
notice."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import layout_of, random_tokens, tiny, true_rows

from neojax.config import TrainConfig
from neojax.data.batch import Batch
from neojax.data.share import Share
from neojax.errors import NeojaxError
from neojax.loading import load_trained
from neojax.models import Transformer
from neojax.models.selection import frozen_names, selected
from neojax.runs.checkpoint import Checkpoints
from neojax.runs.orbax import shapes
from neojax.training.loop import train
from neojax.training.metrics import read_metrics
from neojax.training.optimizer import make_optimizer
from neojax.training.state import init_state
from neojax.training.step import make_train_step

ONE = layout_of("data:1")
FSDP = layout_of("data:2, model:2", "batch:data, heads:model, mlp:model, vocab:model", "embd:data")
CONFIG = tiny(n_layer=1, attention_types=("global",), n_embd=16, n_ctx=12)
# Without clipping, an update of a parameter depends on no other's gradient.
TRAIN = TrainConfig(learning_rate=1e-2, warmup_steps=0, steps=50, clip_norm=0)
ADAFACTOR = {"optimizer": "adafactor", "adafactor_momentum": 0.9, "learning_rate": 1.0}
FROZEN = ("vocab", "blocks.0.mlp.*")
NAMES = {"wte", "blocks.0.mlp.up", "blocks.0.mlp.up_bias", "blocks.0.mlp.down", "blocks.0.mlp.down_bias"}
BATCH = Batch(random_tokens(8, 12, 0), random_tokens(8, 12, 1))


def compiled(settings, layout):
    """The model, its first state, and its step on two microbatches."""
    model = Transformer(CONFIG, layout)
    optimizer = make_optimizer(settings, model.dims(), CONFIG.n_vocab)
    with jax.set_mesh(layout.mesh):
        state = init_state(model.init(0), optimizer)
        batch = Share(layout, 4).place(BATCH)
        step = make_train_step(model, optimizer, settings).lower(state, batch, jnp.int32(0)).compile()

    def run(state, index):
        with jax.set_mesh(layout.mesh):
            return step(state, batch, jnp.int32(index))

    return model, state, step, run


def places(params):
    """Where in memory the pieces of every parameter lie."""
    return {n: [s.data.unsafe_buffer_pointer() for s in p.addressable_shards] for n, p in params.items()}


@pytest.mark.parametrize(
    "layout, options",
    [(ONE, {}), (FSDP, {}), (FSDP, ADAFACTOR)],
    ids=["one device", "FSDP", "FSDP, adafactor"],
)
def test_frozen_parameters_stay_and_the_trained_ones_do_not_notice(layout, options):
    whole = dataclasses.replace(TRAIN, **options)
    part = dataclasses.replace(whole, frozen=FROZEN)
    model, state, _, run = compiled(whole, layout)
    all_trained, _ = run(state, 0)
    _, state, step, run = compiled(part, layout)
    assert state.frozen.keys() == NAMES and state.trained.keys() == model.dims().keys() - NAMES
    assert state.params.keys() == model.dims().keys()

    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    assert step.memory_analysis().alias_size_in_bytes == held
    before, where = {n: np.array(p) for n, p in state.params.items()}, places(state.frozen)
    state, _ = run(state, 0)
    for name, value in true_rows(state.trained).items():
        np.testing.assert_allclose(value, true_rows(all_trained.trained)[name], atol=1e-6, err_msg=name)
        assert np.abs(value - true_rows(before)[name]).max() > 5e-5, name
    for index in (1, 2):
        state, _ = run(state, index)
    assert places(state.frozen) == where
    for name, value in state.frozen.items():
        assert np.asarray(value).tobytes() == before[name].tobytes(), name
        assert value.sharding.is_equivalent_to(model.stored()[name].sharding, value.ndim), name

    moments = jax.tree_util.tree_leaves_with_path(state.opt_state)
    named = {path[-1].key for path, _ in moments if isinstance(path[-1], jax.tree_util.DictKey)}
    assert named == state.trained.keys()


def test_the_norm_is_that_of_the_trained_and_only_they_are_clipped_by_it():
    clipped = dataclasses.replace(TRAIN, frozen=FROZEN, clip_norm=0.1, beta1=0.0)
    _, state, _, run = compiled(clipped, FSDP)
    plain = Transformer(CONFIG, ONE).init(0)

    def mean(params):
        losses = plain.bind(params).loss(BATCH)
        return losses.objective / losses.scored

    gradients = jax.jit(jax.grad(mean))(plain.params())
    trained = {name: g for name, g in gradients.items() if name not in NAMES}
    norm = float(optax.tree.norm(trained))
    assert 0.1 < norm < 0.9 * float(optax.tree.norm(gradients))
    state, metrics = run(state, 0)
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)
    for name, first in true_rows(state.opt_state[0].mu).items():  # without a mean: the last gradient
        np.testing.assert_allclose(first, trained[name] * 0.1 / norm, atol=1e-6, err_msg=name)


DIMS = {"wte": ("vocab", "embd"), "blocks.0.query": ("layers", "embd", "heads"), "norm.scale": ("embd",)}


def test_an_entry_is_a_dimension_a_pattern_or_all_vectors():
    assert frozen_names((), DIMS) == frozenset()
    assert frozen_names(("vocab", "ndim<2"), DIMS) == {"wte", "norm.scale"}
    assert frozen_names(("blocks.*",), DIMS) == frozen_names(("heads",), DIMS) == {"blocks.0.query"}
    with pytest.raises(
        NeojaxError, match=r"^train.frozen: 'blocks.0.querry' .* did you mean blocks.0.query\?$"
    ):
        frozen_names(("vocab", "blocks.0.querry"), DIMS)
    with pytest.raises(NeojaxError, match=r"train.frozen: vocab, layers, ndim<2 match all 3 parameters"):
        frozen_names(("vocab", "layers", "ndim<2"), DIMS)
    matrix = {"wte": DIMS["wte"]}
    assert selected(("ndim<2",), matrix, "train.no_decay", may_miss=("ndim<2",)) == frozenset()
    with pytest.raises(NeojaxError, match=r"train.frozen: 'ndim<2' matches no parameter"):
        frozen_names(("ndim<2",), matrix)


def test_weight_decay_may_leave_out_what_is_frozen_anyway():
    """An entry of no_decay is of the model, whatever is trained of it."""
    settings = dataclasses.replace(TRAIN, frozen=("vocab",), no_decay=("vocab", "norm*"))
    optimizer = make_optimizer(dataclasses.replace(settings, weight_decay=0.5, learning_rate=1.0), DIMS)
    trained, frozen = optimizer.split({name: jnp.ones(3) for name in DIMS})
    assert frozen.keys() == {"wte"}
    zeros = jax.tree.map(jnp.zeros_like, trained)
    after, _, _ = jax.jit(optimizer.update)(zeros, jax.jit(optimizer.init)(trained), trained)
    assert after.keys() == trained.keys()
    np.testing.assert_array_equal(after["norm.scale"], 1.0)
    assert float(after["blocks.0.query"][0]) < 1.0


@pytest.fixture(scope="module")
def tuned(settings, whole_run, tmp_path_factory):
    """A run from the weights of another, with a part of them frozen: its settings by folder and steps, and
    its folder."""

    def tuning(run, steps=4, *more):
        every = ("train.checkpoint_every=2", "train.eval_every=2", "train.frozen=[vocab, blocks.1.*]")
        return settings(run, f"train.init_from={whole_run}", f"train.steps={steps}", *every, *more)

    run: Path = tmp_path_factory.mktemp("runs") / "tuned"
    train(tuning(run))
    return tuning, run


def numbers(run):
    kept = ("loss", "grad_norm", "learning_rate", "validation_loss")
    return [[row.get(key) for key in kept] for row in read_metrics(run)]


def test_a_run_from_other_weights_leaves_the_frozen_ones_and_its_checkpoints_hold_all(tuned, whole_run):
    before, after = (load_trained(run).params() for run in (whole_run, tuned[1]))
    same = {name for name, p in after.items() if np.array_equal(p, before[name])}
    assert same == {name for name in before if name == "wte" or name.startswith("blocks.1.")}
    assert before.keys() == after.keys()
    folder = tuned[1] / "checkpoints" / "4" / "opt_state"
    assert {path.split("/")[-1] for path in shapes(folder) if "/mu/" in path} == before.keys() - same
    assert not any("mfu" in row or "model_flops_per_second" in row for row in read_metrics(tuned[1]))


def test_a_stopped_run_with_frozen_parameters_goes_on_bit_for_bit(tuned, tmp_path, capsys):
    tuning, whole = tuned
    train(tuning(tmp_path / "run", 2))
    train(tuning(tmp_path / "run"))
    assert numbers(tmp_path / "run") == numbers(whole)
    a, b = (load_trained(run).params() for run in (whole, tmp_path / "run"))
    for name, value in a.items():
        assert np.asarray(value).tobytes() == np.asarray(b[name]).tobytes(), name
    said = " ".join("".join(capsys.readouterr()).split())
    assert "parameters, 3,520 of them trained, on mesh" in said


@pytest.mark.parametrize("frozen", ["[vocab]", "[]"])
def test_other_frozen_parameters_are_refused_with_the_way_on(frozen, tuned):
    with pytest.raises(NeojaxError) as error:
        train(tuned[0](tuned[1], 6, f"train.frozen={frozen}"))
    text = str(error.value)
    assert f"train.frozen ([vocab, blocks.1.*] -> {frozen})" in text and "\n" not in text
    assert f"begin another run with these weights: train.run_dir=NEW train.init_from={tuned[1]}" in text
    with Checkpoints(tuned[1]) as checkpoints:
        assert checkpoints.latest() == 4
