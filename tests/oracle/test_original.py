"""Checkpoints that TensorFlow's own Saver wrote of models that Mesh-TensorFlow trained, converted: the same
values, gradients and next steps. Runs where the extra `oracle` is installed; elsewhere `test_kept.py`
compares with what it gave.
"""

from importlib.util import find_spec

import cases
import numpy as np
import pytest
from test_kept import checkpoint, logits, loss_and_gradients, losses

from neojax.convert import mesh_tf

if not (find_spec("tensorflow") and find_spec("mesh_tensorflow")):
    pytest.skip("needs TensorFlow and Mesh-TensorFlow: pip install -e '.[oracle]'", allow_module_level=True)

from original import Original

BEFORE = 4  # steps until the checkpoint


def trained(config, folder):
    """A model of the original's own training, and the batches that it has not seen."""
    tokens = cases.batches(config, BEFORE + cases.STEPS + 1)
    model = Original(config, config["batch"], cases.weights(config))
    for t in tokens[:BEFORE]:
        model.train(t[:, :-1], t[:, 1:])
    cases.write_config(folder, config)
    model.save(folder)
    return model, tokens[BEFORE:]


@pytest.mark.parametrize("name", [*cases.VALUES, *cases.BIDIRECTIONAL])
def test_a_saved_model_has_the_same_logits_loss_and_gradients(tmp_path, name):
    config = cases.config_of(name, cases.VALUES | cases.BIDIRECTIONAL)
    model, (tokens, *_) = trained(config, tmp_path / "saved")
    loaded = mesh_tf.load(tmp_path / "saved")
    expected = model.logits(tokens[:, :-1])
    np.testing.assert_allclose(logits(loaded, tokens), expected, atol=1e-5)
    if name in cases.BIDIRECTIONAL:
        return
    loss, gradients = loss_and_gradients(loaded, tokens)
    their_loss, theirs = model.loss_and_gradients(tokens[:, :-1], tokens[:, 1:])
    assert loss == pytest.approx(float(their_loss), abs=2e-6)
    for n, g in checkpoint(tmp_path / "gradients", config, theirs).model.params().items():
        np.testing.assert_allclose(gradients[n], g, atol=2e-5 * np.abs(g).max(), err_msg=n)


@pytest.mark.parametrize("name", ["adam", *cases.RESUMED])
def test_training_goes_on_as_the_original_does(tmp_path, name):
    config = cases.config_of(name, {**cases.RESUMED, "adam": cases.DEEP})
    model, tokens = trained(config, tmp_path)
    loaded = mesh_tf.load(tmp_path)
    assert loaded.keeps_moments and loaded.step == BEFORE
    expected = [model.train(t[:, :-1], t[:, 1:]) for t in tokens]
    assert np.ptp(expected) > 0.02
    np.testing.assert_allclose(losses(loaded, tokens), expected, atol=1e-5)
