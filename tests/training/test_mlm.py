"""Masked tokens: what is scored, what is shown, and that the mesh has no say in it; and gpt-neo's training
recipe."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import N_VOCAB, layout_of, model_config, random_tokens

from neojax.config import Config, ModelConfig, TrainConfig, check
from neojax.data.batch import Batch
from neojax.data.share import BATCH_DIMS
from neojax.errors import NeojaxError
from neojax.layout.mesh import single_device
from neojax.models.flops import forward_flops_per_token, visible_keys
from neojax.training.mlm import mask_tokens
from neojax.training.optimizer import make_optimizer
from neojax.training.schedule import learning_rate

TRAIN = TrainConfig(
    mlm_mask_id=60,
    mlm_random_token_prob=0.2,
    mlm_same_token_prob=0.1,
    mlm_mask_ignore_ids=(3,),
    mlm_cls_token_id=59,
)
TOKENS = random_tokens(256, 24).reshape(2, 128, 24) % 50
PRESENT = np.broadcast_to(np.arange(24) < 20, TOKENS.shape)
BATCH = Batch(TOKENS, np.where(PRESENT, TOKENS, -1))


def masked(layout, train=TRAIN, key=0, batch=BATCH):
    sharding = layout.sharding(BATCH_DIMS)
    batch = jax.device_put(batch, sharding)
    with jax.set_mesh(layout.mesh):
        out = jax.jit(lambda b: mask_tokens(b, jax.random.key(key), train, N_VOCAB, layout))(batch)
    return jax.tree.map(np.asarray, out)


def test_the_masked_tokens_are_scored_and_hidden_as_asked():
    out = masked(single_device())
    scored = out.targets >= 0
    may = PRESENT & (TOKENS != 3)
    may[..., 0] = False
    assert not (scored & ~may).any()
    assert scored.sum() / may.sum() == pytest.approx(0.15, abs=0.02)
    assert (out.targets[scored] == TOKENS[scored]).all()
    assert (out.tokens[..., 0] == 59).all()
    rest = ~scored
    rest[..., 0] = False
    assert (out.tokens[rest] == TOKENS[rest]).all()
    shown = out.tokens[scored]
    assert (shown == 60).mean() == pytest.approx(0.7, abs=0.06)
    assert (shown == TOKENS[scored]).mean() == pytest.approx(0.1, abs=0.05)


def test_masks_depend_on_the_key_and_not_on_the_mesh():
    one = masked(single_device())
    many = masked(layout_of("x:2, y:4", "batch:x, sequence:y"))
    assert np.array_equal(one.tokens, many.tokens) and np.array_equal(one.targets, many.targets)
    assert not np.array_equal(one.targets, masked(single_device(), key=1).targets)


def test_documents_that_stand_apart_each_begin_with_cls_and_are_masked_to_their_ends():
    """Also where the next token of a document's last is not scored in training on the next token."""
    segments = np.broadcast_to(np.repeat([1, 2, 0], [9, 11, 4]), TOKENS.shape).astype(np.int32)
    positions = np.broadcast_to([*range(9), *range(11), 0, 0, 0, 0], TOKENS.shape).astype(np.int32)
    targets = np.where((segments > 0) & (np.arange(24) != 8), TOKENS, -1)
    out = masked(single_device(), batch=Batch(TOKENS, targets, segments=segments, positions=positions))
    is_first = np.isin(np.arange(24), [0, 9])
    assert (out.tokens[..., is_first] == 59).all() and (out.targets[..., is_first] == -1).all()
    assert (out.tokens[..., 20:] == TOKENS[..., 20:]).all() and (out.targets[..., 20:] == -1).all()
    assert (out.targets[..., 8] >= 0).any()
    np.testing.assert_array_equal(out.segments, segments)


@pytest.mark.parametrize(
    "causal, keys",
    [
        (True, {"mlm_mask_id": 3}),
        (False, {}),
        (False, {"mlm_mask_id": 99}),
        (False, {"mlm_mask_id": 1, "mlm_same_token_prob": 2.0}),
    ],
)
def test_settings_that_do_not_go_together(causal, keys):
    with pytest.raises(NeojaxError, match="mlm"):
        check(Config(model=ModelConfig(causal=causal, n_vocab=50), train=TrainConfig(**keys)))


def test_the_original_schedule():
    train = TrainConfig(
        learning_rate=0.1,
        warmup_steps=10,
        warmup_scales_decay=True,
        decay_steps=40,
        steps=100,
        schedule="cosine",
    )
    for step in (0, 3, 9, 10, 25, 40, 80):
        decayed = 0.1 * (0.1 + 0.9 * (1 + math.cos(math.pi * min(step, 40) / 40)) / 2)
        expected = decayed * (step / 10 if step < 10 else 1)
        assert float(learning_rate(train)(step)) == pytest.approx(expected, rel=1e-5)
    linear = dataclasses.replace(train, schedule="linear", warmup_steps=0)
    assert float(learning_rate(linear)(20)) == pytest.approx(0.1 * (1 - 0.9 * 20 / 40))


def test_adam_without_bias_correction():
    train = TrainConfig(
        learning_rate=0.1,
        warmup_steps=0,
        schedule="constant",
        bias_correction=False,
        weight_decay=0.2,
        clip_norm=0,
    )
    optimizer = make_optimizer(train, {"w": ("vocab", "embd")})
    params = {"w": jnp.ones((2, 3))}
    state = jax.jit(optimizer.init)(params)
    w, m, v = np.ones((2, 3)), 0.0, 0.0
    for i in range(4):
        g = np.random.default_rng(i).normal(size=(2, 3))
        params, state, _ = jax.jit(optimizer.update)({"w": jnp.asarray(g, jnp.float32)}, state, params)
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        w = w - 0.1 * (m / (np.sqrt(v) + 1e-8) + 0.2 * w)
        np.testing.assert_allclose(params["w"], w, rtol=1e-5)


def test_flops_count_every_option():
    plain = model_config(n_layer=2, n_embd=8, n_head=2, n_ctx=6, n_vocab=10, attention_types=("global",))
    base = forward_flops_per_token(plain)

    def more(**keys):
        return forward_flops_per_token(model_config(plain, **keys)) - base

    mlp = 2 * 8 * 32
    assert more(mlp_glu=True) == 2 * mlp
    assert more(macaron=True) == 2 * 2 * mlp
    assert more(num_mem_kv=3) == 2 * 2 * (2 * 8 * 3)
    assert more(causal=False) == 2 * 2 * (2 * 8 * 2.5)  # 6 keys instead of 3.5
    assert more(attention_types=("none",)) == -2 * (2 * 4 * 8 * 8 + 2 * 2 * 8 * 3.5)
    assert more(attention_types=("linear",)) == 2 * 2 * (2 * 8 * (4 - 3.5))
    assert more(share_parameters=True, rotary_emb=True) == 0


@pytest.mark.parametrize("length, window", [(1, 3), (5, 2), (5, 9)])
def test_visible_keys_both_ways(length, window):
    near = [abs(i - j) <= window for i in range(length) for j in range(length)]
    assert visible_keys("local", length, window, causal=False) == pytest.approx(sum(near) / length)
