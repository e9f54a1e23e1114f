"""What a run says of skipped steps and of losses that jump does not depend on when it was stopped."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from neojax.config import TrainConfig
from neojax.training.health import LEAST, WINDOW, Health, not_finite

TRAIN = TrainConfig(run_dir="runs/a", max_bad_steps=3)


def follow(losses, health=None, first=1):
    """A `Health` after steps of these losses, the lines it gave and the marks it made."""
    health = health or Health(TRAIN)
    for step, loss in enumerate(losses, first):
        health.add(step, {"loss": np.float32(loss), "grad_norm": np.float32(1.0), "learning_rate": 0.1})
    lines = health.take()
    return health, lines


def falling(n=300, seed=0):
    """Losses as of a run that learns: a fall with noise."""
    rng = np.random.default_rng(seed)
    return 2 + 5 * np.exp(-np.arange(n) / 40) + 0.05 * rng.normal(size=n)


def test_a_jump_is_a_spike_and_noise_or_a_fall_is_not():
    losses = falling()
    assert "loss_spikes" not in follow(losses)[0].row()
    losses[[220, 221, 280]] += 1.0
    losses[250] = 1.0
    assert follow(losses)[0].row()["loss_spikes"] == [221, 222, 281]


def test_nothing_is_a_spike_before_there_is_something_to_compare_with():
    assert "loss_spikes" not in follow([5.0] * (LEAST - 1) + [9.0])[0].row()
    assert follow([5.0] * LEAST + [5.04, 5.06])[0].row()["loss_spikes"] == [LEAST + 2]  # above 1 %


def test_a_new_level_is_no_spike_for_ever():
    spikes = follow([5.0] * 200 + [6.0] * 300)[0].row()["loss_spikes"]
    assert spikes[0] == 201 and len(spikes) <= WINDOW // 2 + 1


@pytest.mark.parametrize("stopped", [1, 40, 152, 153, 299])
def test_a_resumed_run_says_the_same(stopped):
    losses = falling()
    losses[[151, 152, 250]] = np.nan, 9.0, np.inf
    whole, lines = follow(losses)
    before, first = follow(losses[:stopped])
    after, then = follow(losses[stopped:], Health(TRAIN, json.loads(json.dumps(before.saved()))), stopped + 1)
    assert first + then == lines and len(lines) == 2
    assert after.row() == whole.row() == {"skipped": 2, "skipped_steps": [152, 251], "loss_spikes": [153]}
    assert after.saved() == whole.saved()


def test_a_skipped_step_is_told_with_the_command_that_shows_its_documents():
    health, (line,) = follow([1.0, math.nan, 1.0])
    assert "step 2 " in line and "nan" in line and "neojax data show runs/a --step 2" in line
    assert health.row() == {"skipped": 1, "skipped_steps": [2]}
    assert health.row() == {"skipped": 1}  # each step is marked once


def test_it_is_hopeless_after_so_many_bad_steps_in_a_row():
    nan = math.nan
    assert not follow([1.0, nan, nan, 1.0, nan, nan])[0].is_hopeless()
    health, lines = follow([1.0, nan, nan, nan, 1.0])  # also where a good step follows before anybody looked
    assert health.is_hopeless() and len(lines) == 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named(bad):
    params = {"a": jnp.ones(3), "b": jnp.array([1.0, bad])}
    state = {"params": params, "opt_state": (jnp.int32(3), {"m": jnp.bfloat16(bad)})}
    assert set(not_finite(state)) == {"params/b", "opt_state/1/m"}
    assert not not_finite({"a": jnp.ones(3), "n": jnp.int32(5)})
