"""gpt-neo's checkpoints converted, against what Mesh-TensorFlow computed of the same weights
(`make_kept.py`)."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bundle_writer import write

from neojax.convert import mesh_tf
from neojax.data.batch import Batch
from neojax.models.compute import Compute
from neojax.training.moments import opt_state
from neojax.training.optimizer import make_optimizer
from neojax.training.state import State
from neojax.training.step import make_train_step


@pytest.fixture(scope="module")
def kept():
    with np.load(cases.KEPT) as file:
        found: dict[str, dict[str, np.ndarray]] = {}
        for key, value in file.items():
            name, _, rest = key.partition("/")
            found.setdefault(name, {})[rest] = value
        return found


def checkpoint(folder, config, tensors, step=0):
    cases.write_config(folder, config)
    write(folder / f"model.ckpt-{step}", {**tensors, "global_step": np.int64(step)})
    return mesh_tf.load(folder)


def logits(loaded, tokens):
    return np.asarray(loaded.model(tokens[:, :-1]))


def loss_and_gradients(loaded, tokens):
    """The loss with z_loss, a token, and its gradients."""
    model, z_loss = loaded.model, loaded.config.train.z_loss

    def loss(params):
        losses = model.bind(params).loss(Batch(tokens[:, :-1], tokens[:, 1:]), z_loss=z_loss)
        total = losses.objective
        scored = losses.scored
        return total / scored

    return jax.jit(jax.value_and_grad(loss))(model.params())


def losses(loaded, batches):
    """Those of a run that goes on at the step of the checkpoint."""
    model, train = loaded.model, loaded.config.train
    found = []
    with jax.set_mesh(model.layout.mesh):
        optimizer = make_optimizer(train, model.dims(), model.config.n_vocab)
        step = make_train_step(model, optimizer, train)
        state = jax.tree.map(jnp.copy, State(model.params(), {}, opt_state(loaded)))
        for i, tokens in enumerate(batches):
            batch = Batch(jnp.asarray(tokens[None, :, :-1]), jnp.asarray(tokens[None, :, 1:]))
            state, metrics = step(state, batch, loaded.step + i)
            found.append(float(metrics["loss"]))
    return found


@pytest.mark.parametrize("name", cases.VALUES)
def test_logits_loss_and_gradients_are_those_of_the_original(tmp_path, kept, name):
    config, expected = cases.config_of(name, cases.VALUES), kept[name]
    (tokens,) = cases.batches(config, 1)
    loaded = checkpoint(tmp_path / "weights", config, cases.weights(config))
    assert expected["logits"].std() > 0.15  # not a comparison of zeros
    np.testing.assert_allclose(logits(loaded, tokens), expected["logits"], atol=1e-5)
    loss, gradients = loss_and_gradients(loaded, tokens)
    assert loss == pytest.approx(float(expected["loss"]), abs=2e-6)
    theirs = {n.removeprefix("gradient/"): g for n, g in expected.items() if n.startswith("gradient/")}
    theirs = checkpoint(tmp_path / "gradients", config, theirs).model.params()
    for n, g in theirs.items():
        np.testing.assert_allclose(gradients[n], g, atol=2e-5 * np.abs(g).max(), err_msg=n)


@pytest.mark.parametrize("name", cases.BIDIRECTIONAL)
def test_logits_of_bidirectional_models_are_those_of_the_original(tmp_path, kept, name):
    config = cases.config_of(name, cases.BIDIRECTIONAL)
    (tokens,) = cases.batches(config, 1)
    loaded = checkpoint(tmp_path, config, cases.weights(config))
    np.testing.assert_allclose(logits(loaded, tokens), kept[name]["logits"], atol=1e-5)


@pytest.mark.parametrize("name", cases.ROUNDED)
def test_in_bfloat16_logits_differ_by_what_the_two_roundings_add_up_to(tmp_path, kept, name):
    """Ours are no farther from float32 than the original's, and what is between them is chance."""
    config, theirs = cases.config_of(name, cases.ROUNDED), kept[name]
    (tokens,) = cases.batches(config, 1)
    exact = checkpoint(tmp_path, config, cases.rounded_weights(config))
    np.testing.assert_allclose(logits(exact, tokens), theirs["float32"], atol=1e-5)
    ours = logits(mesh_tf.load(tmp_path, compute=Compute(dtype=jnp.bfloat16)), tokens).astype("f4")

    def far(a, b):
        return np.sqrt(np.mean((a - b) ** 2))

    own, other = far(ours, theirs["float32"]), far(theirs["bfloat16"], theirs["float32"])
    assert 1e-3 < own < 1.1 * other
    assert far(ours, theirs["bfloat16"]) < 1.2 * np.hypot(own, other)


@pytest.mark.parametrize("name", cases.RESUMED)
def test_losses_of_resumed_steps_are_those_of_the_original(tmp_path, kept, name):
    config, expected = cases.config_of(name, cases.RESUMED), kept[name]["losses"]
    weights = cases.weights(config)
    loaded = checkpoint(tmp_path, config, weights | cases.slots(config, weights), cases.START)
    assert loaded.keeps_moments and loaded.step == cases.START
    assert abs(expected[0] - expected[-1]) > 0.02
    np.testing.assert_allclose(losses(loaded, cases.batches(config, len(expected))), expected, atol=1e-5)
