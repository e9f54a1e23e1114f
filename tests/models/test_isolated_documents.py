"""Documents that share a window are to the model as if each were alone: losses, slopes and steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import N_VOCAB, layout_of, noisy, tiny, true_rows

import neojax
from neojax.config import DataConfig, SourceConfig, TrainConfig
from neojax.data.batch import Batch
from neojax.data.loader import train_batches
from neojax.data.share import Share
from neojax.data.store import StoreWriter
from neojax.training.optimizer import make_optimizer
from neojax.training.state import init_state
from neojax.training.step import evaluate, make_eval_step, make_train_step

END = 60
ONE = layout_of("data:1")
MESHES = {
    "one device": ONE,
    "heads": layout_of("x:2, y:4", "batch:x, heads:y, mlp:y, vocab:y", "embd:x"),
    "sequence": layout_of("x:2, y:4", "batch:x, sequence:y"),
}
MODELS = {
    "learned positions": tiny(),
    "rotary positions": tiny(rotary_emb=True, attention_types=("local", "global", "linear", "none")),
    "axial positions": tiny(
        axial_pos_emb=(4, 6), n_layer=2, num_mem_kv=4, attention_types=("global", "linear")
    ),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A mixture of 80 documents of 1 to 20 tokens, each with its end behind it."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    documents = [[*rng.integers(0, END, rng.integers(1, 15)), END] for _ in range(80)]
    with StoreWriter(folder / "train", N_VOCAB) as writer:
        writer.add(np.concatenate(documents), [len(document) for document in documents])
    (folder / "prepared.json").write_text(f'{{"tokenizer": {{"end_of_document_id": {END}}}}}')
    return DataConfig(train=(SourceConfig(str(folder)),), isolate_documents=True)


@pytest.fixture(scope="module")
def batch(data):
    """Eight rows of it."""
    return next(train_batches(data, 24, 8, seed=0))


def placed(batch, layout):
    """The batch as one microbatch on a mesh."""
    return jax.tree.map(lambda x: x[0], Share(layout, len(batch.tokens)).place(batch))


@pytest.mark.parametrize("kind", MODELS)
def test_the_loss_of_a_document_in_a_window_is_that_of_the_document_alone(kind, batch):
    """As `neojax.score` gives it, with the end-of-document token before it; on one device and on meshes."""
    alone = noisy(MODELS[kind])
    alone.eos_token_id = END
    places = [
        (row, segments == segment)
        for row, segments in enumerate(batch.segments)
        for segment in range(1, segments.max() + 1)
        if batch.tokens[row, segments == segment][0] == END
    ]
    assert len(places) > 12
    expected = neojax.score(alone, [batch.targets[place].tolist() for place in places])
    for layout in MESHES.values():
        model, rows = noisy(MODELS[kind], layout), placed(batch, layout)
        with jax.set_mesh(layout.mesh):
            nats, logprobs = jax.jit(lambda rows: (model.loss(rows).nats, model.token_scores(rows)[0]))(rows)  # noqa: B023
        logprobs = layout.fetch(logprobs)
        assert float(nats) == pytest.approx(-logprobs.sum(), rel=1e-5)
        for place, score in zip(places, expected, strict=True):
            np.testing.assert_allclose(logprobs[place], score.logprobs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        *MODELS.values(),
        tiny(causal=False, num_mem_kv=2),
        tiny(n_layer=1, attention_types=("local",), causal=False),
    ],
    ids=[*MODELS, "not causal", "not causal, window"],
)
def test_the_loss_of_a_document_has_no_slope_in_the_embeddings_of_another(config):
    """Each document has ids of its own, and the logits a table of their own, so that an id's embedding is its
    tokens'."""
    config = dataclasses.replace(config, embedding=dataclasses.replace(config.embedding, tied=False))
    model = noisy(config)
    tokens = np.arange(24, dtype=np.int32)[None] + 10
    segments = np.repeat([1, 2, 3, 0], [5, 9, 7, 3])[None].astype(np.int32)
    positions = np.concatenate([np.arange(n) for n in (5, 9, 7, 3)])[None].astype(np.int32)

    @jax.jit
    def slope(params, targets):
        rows = Batch(tokens, targets, segments=segments, positions=positions)
        return jax.grad(lambda params: model.bind(params).loss(rows).objective)(params)["wte"]

    for segment in (1, 2, 3):
        own = segments[0] == segment
        found = np.array(slope(model.params(), jnp.where(own, tokens + 1, -1)))
        assert found[tokens[0, own]].any(axis=1)[:-1].all()
        found[tokens[0, own]] = 0
        assert not found.any()


def step_of(batch, layout, microbatches, train):
    """The state and the loss after one step."""
    model = noisy(MODELS["rotary positions"], layout)
    optimizer = make_optimizer(train, model.dims())
    with jax.set_mesh(layout.mesh):
        state = init_state(model, optimizer)
        step = make_train_step(model, optimizer, train)
        state, metrics = step(state, Share(layout, 8 // microbatches).place(batch), jnp.int32(0))
    return true_rows(state.trained), float(metrics["loss"])


def test_a_step_is_the_same_in_microbatches_and_on_a_mesh(batch):
    """Also where positions weigh differently."""
    weights = np.random.default_rng(1).uniform(0, 2, batch.tokens.shape).astype(np.float32)
    train = TrainConfig(schedule="constant", warmup_steps=0, learning_rate=1e-2, epsilon=1e-3, z_loss=1e-3)
    whole, loss = step_of(batch._replace(weights=weights), ONE, 1, train)
    assert step_of(batch, ONE, 1, train)[1] != pytest.approx(loss, rel=1e-4)
    for layout, microbatches in ((ONE, 4), (MESHES["heads"], 2)):
        params, other = step_of(batch._replace(weights=weights), layout, microbatches, train)
        assert other == pytest.approx(loss, rel=1e-5)
        for name, value in params.items():
            np.testing.assert_allclose(value, whole[name], atol=2e-5, err_msg=name)


def test_weights_of_less_than_one_token_in_all_are_divided_by_what_they_are(batch):
    weights = np.zeros(batch.tokens.shape, np.float32)
    weights[0, 0] = 0.25
    _, light = step_of(batch._replace(weights=weights), ONE, 1, TrainConfig())
    _, full = step_of(batch._replace(weights=4 * weights), ONE, 1, TrainConfig())
    assert light == pytest.approx(full, rel=1e-6)
    assert light > 0.1


def test_evaluation_sees_documents_and_counts_by_weight(batch):
    model = noisy(MODELS["learned positions"])
    share, step = Share(ONE, 8), make_eval_step(model)
    with jax.set_mesh(ONE.mesh):
        loss, count = evaluate(step, model.params(), iter([batch]), share)
        mixed, _ = evaluate(step, model.params(), iter([Batch(batch.tokens, batch.targets)]), share)
        half = batch._replace(weights=np.full(batch.tokens.shape, 0.5, np.float32))
        same, weight = evaluate(step, model.params(), iter([half]), share)
    assert count == 2 * weight == batch.targets.size
    assert same == pytest.approx(loss, rel=1e-6) != pytest.approx(mixed, rel=1e-4)
