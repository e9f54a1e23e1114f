"""BERT and ALBERT: the losses of their heads, the same on every layout and in parts of a batch, and what
padding does."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import layout_of, model_config, noisy

from neojax.config import TrainConfig
from neojax.data.batch import Batch
from neojax.data.share import Share
from neojax.errors import NeojaxError
from neojax.models import Transformer
from neojax.models.classifiers import class_scores, independent_scores, number_scores
from neojax.models.flops import forward_flops_per_token
from neojax.training.optimizer import make_optimizer
from neojax.training.state import init_state
from neojax.training.step import make_train_step

N_VOCAB, LENGTH = 61, 24
SIZES = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_ctx": LENGTH, "n_vocab": N_VOCAB, "dropout": 0.0}
STILL = {"embedding.dropout": 0.0, "attention.dropout": 0.0, "head.dropout": 0.0}
ALBERT = model_config(family="albert", **SIZES, **STILL, **{"embedding.width": 16})
RNG = np.random.default_rng(0)


def pairs(rows=8):
    """Rows of pairs, one of them all padding, which scores nothing."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, N_VOCAB, (rows, LENGTH))
    there = np.arange(LENGTH) < np.array([24, 24, 9, 17, 24, 1, 12, 0])[:rows, None]
    scored = (rng.uniform(size=tokens.shape) < 0.2) & there
    batch = Batch(
        tokens,
        np.where(scored, rng.integers(0, N_VOCAB, tokens.shape), -1),
        segments=there,
        token_types=there & (np.arange(LENGTH) > 7),
        labels=np.array([0, 1, 1, 0, 1, 1, 0, -1])[:rows],
    )
    return jax.tree.map(lambda x: x.astype(np.int32), batch)


@cache
def measured(shape, layout, param_layout):
    """The sums of a batch and the gradients of its objective."""
    model = noisy(ALBERT, layout_of(shape, layout, param_layout))

    def objective(params):
        losses = model.bind(params).loss(pairs())
        return losses.total() / losses.scored, losses.sums

    with jax.set_mesh(model.layout.mesh):
        (total, sums), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(model.params())
    rows = {
        name: np.asarray(g)[:N_VOCAB] if "vocab" in model.dims()[name] else np.asarray(g)
        for name, g in grads.items()
    }
    return float(total), jax.tree.map(float, sums), rows


@pytest.mark.parametrize(
    "layout",
    [
        ("x:2, y:4", "batch:x, sequence:y", "embd:x+y"),
        ("data:2, model:4", "batch:data, heads:model, mlp:model, token_embd:model", "embd:data"),
    ],
    ids=["sequence", "width"],
)
def test_the_objective_and_its_gradients_are_the_same_everywhere(layout):
    total, sums, grads = measured("data:1", "", "")
    assert sums["loss"][1] == (pairs().targets >= 0).sum() and sums["pair_loss"][1] == 7
    assert total == pytest.approx(
        sum(sums[f"{head}loss"][0] / sums[f"{head}loss"][1] for head in ("", "pair_"))
    )
    other, other_sums, other_grads = measured(*layout)
    assert other == pytest.approx(total, rel=1e-5)
    for name, pair in sums.items():
        assert other_sums[name] == pytest.approx(pair, rel=1e-5), name
    most = max(np.abs(grad).max() for grad in grads.values())
    for name, grad in grads.items():
        limit = max(1e-4 * np.abs(grad).max(), 1e-6 * most)
        np.testing.assert_allclose(other_grads[name], grad, atol=limit, rtol=0, err_msg=name)


def test_a_step_in_microbatches_is_the_step_of_the_whole_batch():
    """Each objective is a mean over what it scores in all of them: they hold unequal numbers of masked
    tokens and of pairs. The gradients of one device on the whole batch have the norm of the step's."""
    layout = layout_of("data:2", "batch:data")
    model = noisy(ALBERT, layout)
    train = TrainConfig(batch_size=8, warmup_steps=0, schedule="constant", clip_norm=0.0)
    optimizer = make_optimizer(train, model.dims(), N_VOCAB)
    with jax.set_mesh(layout.mesh):
        step = make_train_step(model, optimizer, train)
        _, metrics = step(init_state(model, optimizer), Share(layout, 2).place(pairs()), jnp.int32(0))
    _, sums, grads = measured("data:1", "", "")
    assert sums.keys() == {"loss", "accuracy", "pair_loss", "pair_accuracy"}
    for name, (total, count) in sums.items():
        assert float(metrics[name]) == pytest.approx(total / count, rel=1e-5), name
    norm = np.sqrt(sum((grad**2).sum() for grad in grads.values()))
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-4)


def test_what_stands_in_padding_changes_nothing_and_a_shorter_row_gives_the_same():
    model, batch = noisy(ALBERT), pairs()
    given = {"segments": batch.segments, "token_types": batch.token_types}
    found = model.outputs(batch.tokens, **given)
    other = model.outputs(np.where(batch.segments > 0, batch.tokens, 5), **given)
    short = model.outputs(batch.tokens[2:3, :9], token_types=batch.token_types[2:3, :9])
    assert found.keys() == {"hidden", "mlm", "pair", "pooled"} and found["pooled"].shape == (8, 32)
    real = batch.segments > 0
    for name in ("hidden", "mlm"):
        np.testing.assert_allclose(other[name][real], found[name][real], atol=1e-6)
        np.testing.assert_allclose(short[name][0], found[name][2, :9], atol=1e-5)
    np.testing.assert_allclose(short["pair"][0], found["pair"][2], atol=1e-5)


def test_losses_of_classes_are_those_of_their_definitions():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    logits = RNG.normal(size=(6, 5)).astype(np.float32)
    labels = np.array([0, 4, -1, 2, 5, 1], np.int32)  # one that is not scored, and one that is no class
    kept = (labels >= 0) & (labels < 5)
    given = torch.tensor(logits)
    total, count, right = class_scores(jnp.array(logits), jnp.array(labels))
    mean = functional.cross_entropy(given[kept], torch.tensor(labels[kept]).long())
    assert (float(total / count), float(count)) == (pytest.approx(float(mean), rel=1e-6), 4)
    assert float(right) == (logits.argmax(1) == labels).sum()
    weights = jnp.array([1.0, 0.5, 2.0, 0.0, 1.0, 1.0])
    weighted, count, _ = class_scores(jnp.array(logits), jnp.array(labels), weights=weights)
    each = functional.cross_entropy(given[kept], torch.tensor(labels[kept]).long(), reduction="none").numpy()
    assert float(weighted) == pytest.approx(each @ [1.0, 0.5, 0.0, 1.0], rel=1e-6) and float(count) == 2.5
    total, count, right = number_scores(jnp.array(logits[:, 0]), jnp.array([0.0, 1, np.nan, 2, 3, 4]))
    assert right is None and float(total / count) == pytest.approx(
        float(functional.mse_loss(given[[0, 1, 3, 4, 5], 0], torch.tensor([0.0, 1, 2, 3, 4]))), rel=1e-6
    )
    several = (RNG.uniform(size=logits.shape) < 0.5).astype(np.float32)
    total, count, right = independent_scores(jnp.array(logits), jnp.array(several))
    mean = functional.binary_cross_entropy_with_logits(given, torch.tensor(several))
    assert float(total / count) == pytest.approx(float(mean), rel=1e-6)
    assert float(right) == ((logits > 0) == (several > 0.5)).sum()


@pytest.mark.parametrize(
    "labels, words",
    [(np.zeros(4, np.float32), "loss"), (np.zeros((4, 3), np.float32), "accuracy"), (None, "no labels")],
)
def test_the_type_of_labels_says_which_loss_it_is(labels, words):
    """Traced alone: a number for each row, a probability for each class of a row; without any, what lacks."""
    names = ["a"] if labels is not None and labels.ndim == 1 else ["a", "b", "c"]
    keys = {"head.kinds": ["sequence_classification"], "head.labels": names}
    model = Transformer(model_config(family="bert", **SIZES, **keys))
    batch = Batch(pairs(4).tokens, pairs(4).targets, labels=labels)
    if labels is None:
        with pytest.raises(NeojaxError, match=words):
            jax.eval_shape(lambda p: model.bind(p).loss(batch), model.stored())
        return
    sums = jax.eval_shape(lambda p: model.bind(p).loss(batch), model.stored()).sums
    assert "loss" in sums and ("accuracy" in sums) == (words == "accuracy")


def test_flops_count_the_matrix_between_and_the_share_of_tokens_that_is_masked():
    """Per token: layers, ALBERT's matrix from its width, and of 15 % of the tokens the head and the table; of
    a row, pooler and pair."""
    layer = 4 * 32 * 32 + 2 * 32 * 128 + 2 * 32 * LENGTH
    ends = 16 * 32 + 0.15 * (32 * 16 + 16 * N_VOCAB) + (32 * 32 + 2 * 32) / LENGTH
    assert forward_flops_per_token(ALBERT) == pytest.approx(2 * (2 * layer + ends))
