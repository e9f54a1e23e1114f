"""Learning rates by depth and by name are shares of the scheduled one, of update and weight decay."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import layout_of, model_config, tiny

from neojax.config import LoraConfig, TrainConfig
from neojax.errors import NeojaxError
from neojax.models import Transformer
from neojax.training.optimizer import make_optimizer, taken
from neojax.training.rates import shares

TRAIN = TrainConfig(learning_rate=1e-2, warmup_steps=0, clip_norm=0, weight_decay=0.1)
FSDP = layout_of("data:2, model:2", "batch:data, heads:model, mlp:model, vocab:model", "embd:data")


def changed(train, layout):
    """What two steps change of every parameter, and the optimizer's state."""
    model = Transformer(tiny(), layout)
    with jax.set_mesh(layout.mesh):
        before = model.init(0).params()
        optimizer = make_optimizer(train, model.dims(), 61, model.depths())
        params, state = before, jax.jit(optimizer.init)(before)
        first = {n: np.random.default_rng(i).normal(size=p.shape) for i, (n, p) in enumerate(before.items())}
        for _ in range(2):
            slopes = {n: jax.device_put(g.astype("f4"), before[n].sharding) for n, g in first.items()}
            params, state, _ = jax.jit(optimizer.update)(slopes, state, params)
    return {n: np.asarray(params[n]) - np.asarray(before[n]) for n in params}, state


def test_every_layer_is_changed_by_its_share_and_the_state_is_the_same():
    uniform = dataclasses.replace(TRAIN, weight_decay=0.0)
    plain, state = changed(uniform, FSDP)
    keys = {"layer_decay": 0.5, "rate_factors": ("heads:0.1", "*up_bias:0", "norm_f.*:3", "norm_f.scale:2")}
    scaled, other = changed(dataclasses.replace(uniform, **keys), FSDP)
    assert jax.tree.structure(state) == jax.tree.structure(other) and int(taken(other)) == 2
    expected = {
        "wte": 0.5**5,
        "wpe": 0.5**5,
        "norm_f.bias": 3.0,
        "norm_f.scale": 6.0,
        "blocks.0.mlp.down": [0.5**4, 0.5**2],  # layers 1 and 3 of four
        "blocks.1.mlp.down": [0.5**3, 0.5**1],
        "blocks.1.attn.query": [0.1 * 0.5**3, 0.1 * 0.5**1],
        "blocks.0.mlp.up_bias": [0.0, 0.0],
    }
    for name, share in expected.items():
        share = np.reshape(share, (-1, *[1] * (plain[name].ndim - 1)))
        np.testing.assert_allclose(scaled[name], share * plain[name], rtol=2e-3, atol=1e-6, err_msg=name)


def test_weight_decay_takes_the_share_too():
    train = dataclasses.replace(TRAIN, rate_factors=("wte:0.5",))
    dims = {"wte": ("vocab", "embd")}
    weights, nothing = {"wte": np.full((3, 4), 2.0, "f4")}, {"wte": np.zeros((3, 4), "f4")}
    optimizer = make_optimizer(train, dims)
    after, _, _ = jax.jit(optimizer.update)(nothing, jax.jit(optimizer.init)(weights), weights)
    np.testing.assert_allclose(after["wte"], 2.0 - 0.5 * 1e-2 * 0.1 * 2.0, rtol=1e-6)


def test_depths_are_of_the_part_that_a_parameter_stands_in():
    bert = {"family": "bert", "n_layer": 2, "n_embd": 32, "n_head": 4, "n_ctx": 12, "n_vocab": 61}
    model = Transformer(
        model_config(**bert, **{"head.kinds": ["sequence_classification"]}), lora=LoraConfig(rank=2)
    )
    depths = model.depths()
    assert depths.keys() == model.dims().keys()
    assert {name for name, own in depths.items() if own == (0,)} == {
        "wte", "wpe", "token_types", "norm_e.scale", "norm_e.bias",
    }  # fmt: skip
    assert {name.partition(".")[0] for name, own in depths.items() if own == (3,)} == {"classifier", "pooler"}
    assert depths["blocks.0.attn.query.lora_a"] == depths["blocks.0.mlp.up"] == (1, 2)


@pytest.mark.parametrize("entry", ["wte", "wte:fast", ":2", "wte:-1", "wte:inf"])
def test_what_is_no_factor_is_told(entry):
    with pytest.raises(NeojaxError, match=r"train.rate_factors: .* expected parameters and a factor"):
        shares(dataclasses.replace(TRAIN, rate_factors=(entry,)), {"wte": ("vocab",)}, None)


def test_a_factor_of_what_is_frozen_is_told():
    train = dataclasses.replace(TRAIN, frozen=("wte",), rate_factors=("wte:2",))
    with pytest.raises(NeojaxError, match=r"train.rate_factors: 'wte' matches no trained parameter"):
        make_optimizer(train, {"wte": ("vocab", "embd"), "wpe": ("positions", "embd")})
