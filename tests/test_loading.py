"""A run directory, or one of its checkpoints, opens as a model; what is none says why."""

import logging
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_tokens, tiny, true_rows

import neojax
from neojax import config as configuration
from neojax.config import Config, MeshConfig
from neojax.errors import NeojaxError
from neojax.models import Transformer
from neojax.training.checkpoint import Checkpoints
from neojax.training.run_dir import meta

CONFIG = Config(model=tiny(n_layer=2))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Checkpoints of steps 3 (seed 3) and 7 (seed 7)."""
    run = tmp_path_factory.mktemp("run")
    with Checkpoints(run, keep=2) as checkpoints:
        for step in (3, 7):
            checkpoints.save(
                step, {"params": params(step), "opt_state": {"count": jnp.zeros(())}}, meta(CONFIG, None)
            )
            checkpoints.wait()
    (run / "config.yml").write_text(configuration.dump(CONFIG))
    return run


def params(seed):
    return Transformer(CONFIG.model).init(seed).params()


@pytest.mark.parametrize(
    "inside, seed", [("", 7), ("checkpoints", 7), ("checkpoints/7", 7), ("checkpoints/3", 3)]
)
def test_the_newest_checkpoint_or_the_one_named(run, inside, seed):
    model = neojax.load(run / inside)
    for name, value in params(seed).items():
        np.testing.assert_array_equal(model.params()[name], value)
    assert model.config == CONFIG.model and model.tokenizer is None


def test_logits_on_a_mesh_are_those_of_one_device(run):
    tokens = random_tokens(2, 8)
    mesh = MeshConfig("data:2, model:2", "batch:data, vocab:model, mlp:model", "embd:data", cpu_devices=4)
    split = neojax.load(str(run), mesh=mesh)
    alone = neojax.load(run)
    np.testing.assert_allclose(split(tokens), alone(tokens), atol=1e-5)
    assert len(split.params()["wte"].sharding.device_set) == 4
    assert true_rows(split.params()).keys() == alone.params().keys()


def test_the_compute_type_can_be_chosen(run):
    assert neojax.load(run, dtype="bfloat16").dtype == "bfloat16"
    with pytest.raises(NeojaxError, match="expected auto, float32"):
        neojax.load(run, dtype="float16")


def test_weights_can_be_kept_narrow(run):
    model = neojax.load(run, weights="int8")
    assert model.params()["blocks.0.mlp.up"].values.dtype == "int8"
    assert neojax.load(run, weights="bfloat16").params()["wte"].dtype == "bfloat16"
    with pytest.raises(NeojaxError, match="'int3': expected float32, bfloat16 or int8"):
        neojax.load(run, weights="int3")


@pytest.mark.parametrize(
    "inside, words",
    [("absent", "does not exist"), ("checkpoints/5", "step 5; it has: 3, 7"), ("empty", "neither")],
)
def test_what_is_no_model_says_why(run, inside, words):
    (run / "empty").mkdir(exist_ok=True)
    with pytest.raises(NeojaxError, match=words) as error:
        neojax.load(run / inside)
    assert "\n" not in str(error.value)


def test_a_run_that_has_no_checkpoint_yet(tmp_path):
    (tmp_path / "config.yml").write_text(configuration.dump(CONFIG))
    with pytest.raises(NeojaxError, match="train it first"):
        neojax.load(tmp_path)


LOGGING = """
import logging, sys, absl.logging
def state():
    return [(l.name, l.level, l.handlers, l.propagate, l.filters) for l in
            [logging.root, *logging.root.manager.loggerDict.values()] if isinstance(l, logging.Logger)
            and (l.level, l.handlers, l.propagate) != (0, [], True)]
import jax
before = state()
import neojax
neojax.load(sys.argv[1])
assert state() == before, (before, state())
"""


def test_logging_is_left_as_it_was(run):
    done = subprocess.run(
        [sys.executable, "-c", LOGGING, str(run)],
        env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_logging_is_quiet_until_the_last_checkpoints_are_closed(run):
    absl = logging.getLogger("absl")
    before = absl.level
    first, second = Checkpoints(run), Checkpoints(run)
    first.close()
    assert absl.level == logging.ERROR
    second.close()
    second.close()
    assert absl.level == before
