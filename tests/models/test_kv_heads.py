"""Fewer heads of keys and values than of queries: the same as a model whose heads of keys are repeated,
trained and decoded, however they are split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import layout_of, model_config, noisy, random_tokens, tiny

from neojax.config import from_dict
from neojax.data.batch import Batch
from neojax.errors import NeojaxError
from neojax.models import Transformer
from neojax.models.context import Context
from neojax.models.flops import forward_flops_per_token
from neojax.models.inference import for_inference

CONFIG = tiny(
    n_layer=2,
    n_embd=24,
    rotary_emb=True,
    attention_types=["local", "linear"],
    **{
        "attention.heads": 8,
        "attention.kv_heads": 2,
        "attention.head_dim": 6,  # not n_embd / heads
        "attention.bias": True,
        "attention.out_bias": False,
        "mlp.gated": True,
        "mlp.bias": False,
        "norm.kind": "rms",
        "positions.interleaved": True,
        "positions.rotary_dims": 4,
    },
)
REPEATED = model_config(CONFIG, **{"attention.kv_heads": None})
MODEL = "batch:x, heads:y, mlp:y, vocab:y"
MODEL = "batch:x, heads:y, mlp:y, vocab:y"
LAYOUTS = {
    "one device": ("data:1", "", ""),
    "divides": ("x:2, y:2", MODEL, "embd:x"),
    "more parts than heads": ("x:2, y:4", MODEL, "embd:x"),
    "divides by the first axis": ("x:2, y:2, z:2", "batch:x, heads:y+z, vocab:y", "kv_heads:x"),
}
TOKENS = random_tokens(4)
READ = 16  # of them in one pass, in the test of the cache; the others one by one


def repeated(model):
    """The model of as many heads of keys as of queries that computes the same, on one device."""
    values = {}
    for name, value in model.params().items():
        dims = model.dims()[name]
        value = np.asarray(value)
        values[name] = np.repeat(value, 4, dims.index("kv_heads")) if "kv_heads" in dims else value
    return Transformer(REPEATED).bind(jax.tree.map(jnp.asarray, values))


def results(model, is_decoded=False):
    """Logits, gradients and, if asked for, the logits of a call that reads the first tokens and decodes the
    others."""

    def decoded(bound):
        slots = {"local": CONFIG.attention.window, "linear": 0}
        _, caches, _ = bound.hidden(TOKENS[:, :READ], Context(slots=slots))

        def step(caches, given):
            time, token = given
            hidden, caches, _ = bound.hidden(token[:, None], Context(time=time), caches)
            return caches, bound.logits(hidden)[:, 0]

        times = jnp.arange(READ, TOKENS.shape[1])
        return jax.lax.scan(step, caches, (times, jnp.asarray(TOKENS[:, READ:].T)))[1]

    def loss(params):
        bound = model.bind(params)
        found = bound.loss(Batch(TOKENS, np.roll(TOKENS, -1, 1)))
        last = decoded(bound) if is_decoded else jnp.zeros(1)
        return found.nats / found.scored, (bound.logits(bound.hidden(TOKENS)[0]), jax.lax.stop_gradient(last))

    with model.layout.in_force():
        gradients, (logits, last) = jax.jit(jax.grad(loss, has_aux=True))(model.params())
    true = {n: np.asarray(g)[: CONFIG.n_vocab] if n == "wte" else np.asarray(g) for n, g in gradients.items()}
    return np.asarray(logits)[..., : CONFIG.n_vocab], true, np.asarray(last)[..., : CONFIG.n_vocab]


def test_logits_gradients_and_decoding_are_those_of_repeated_heads():
    """Where heads of keys are split over the first axis of those of queries, and repeated over the second."""
    plain = noisy(CONFIG)
    expected, slopes, _ = results(repeated(plain))
    for name, dims in plain.dims().items():
        if "kv_heads" in dims:  # a head that is read four times gets the sum of four gradients
            axis, g = dims.index("kv_heads"), slopes[name]
            slopes[name] = g.reshape(*g.shape[:axis], 2, 4, *g.shape[axis + 1 :]).sum(axis + 1)
    model = noisy(CONFIG, layout_of(*LAYOUTS["divides by the first axis"]))
    logits, gradients, last = results(model, is_decoded=True)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    np.testing.assert_allclose(last.swapaxes(0, 1), expected[:, READ:], atol=1e-5)
    for param, g in gradients.items():
        np.testing.assert_allclose(g, slopes[param], atol=1e-5 * np.abs(slopes[param]).max(), err_msg=param)


@pytest.mark.parametrize(
    "name, heads, axes",
    [
        ("one device", 2, None),
        ("divides", 2, "y"),
        ("more parts than heads", 4, "y"),
        ("divides by the first axis", 4, ("y", "z")),
    ],
)
def test_the_cache_has_no_more_heads_than_devices_read(name, heads, axes):
    layout = layout_of(*LAYOUTS[name])
    model = Transformer(CONFIG, layout)
    context = Context(slots={"local": 7, "linear": 0})
    with jax.set_mesh(layout.mesh):
        caches = jax.eval_shape(lambda p: model.bind(p).hidden(TOKENS, context)[1], model.stored())
    assert [keys.shape[1] for keys, _ in caches] == [heads, 8]  # linear attention has its own of each
    assert {keys.sharding.spec[1] for keys, _ in caches} == {axes}


def test_int8_has_a_scale_for_every_feature_of_a_head_of_keys():
    model = noisy(CONFIG, layout_of(*LAYOUTS["divides"]))
    joined = for_inference(model, "int8").params()["blocks.0.attn.key_value"]
    assert joined.values.dtype == jnp.int8 and joined.scale.shape == (1, 2, 2, 6)
    for number, role in enumerate(("key", "value")):
        true = np.asarray(model.params()[f"blocks.0.attn.{role}"])[0]
        near = np.asarray(joined.values)[:, number] * np.asarray(joined.scale)[:, number]
        assert np.all(abs(near - true) <= 0.5001 * np.asarray(joined.scale)[:, number])


def test_flops_count_the_projections_of_fewer_heads():
    saved = 2 * 2 * CONFIG.n_embd * (8 - 2) * 6 * CONFIG.n_layer  # keys and values
    assert forward_flops_per_token(REPEATED) - forward_flops_per_token(CONFIG) == saved


@pytest.mark.parametrize(
    "layout, words",
    [
        (("x:2, y:2", "heads:x, kv_heads:y"), ["kv_heads over y but heads over x", "leave kv_heads out"]),
        (("x:2", "kv_heads:x"), ["kv_heads over x but heads over nothing"]),
        (("x:4", "heads:x, kv_heads:x"), ["attn.key", "kv_heads over x (4 parts)", "size 2"]),
    ],
)
def test_a_layout_that_does_not_split_them_as_heads_is_one_line(layout, words):
    with pytest.raises(NeojaxError) as error:
        Transformer(CONFIG, layout_of(*layout)).stored()
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "keys, words",
    [
        (["attention.kv_heads=5"], "kv_heads=5 does not divide model.attention.heads=12"),
        (["attention.kv_heads=4", "attention.memory_slots=2"], "memory_slots=2 is for models with as many"),
        (["positions.scaling=linear"], "scaling=linear is for model.positions.kind=rotary"),
        (["positions.kind=rotary", "positions.scaling_factor=2"], "scaling_factor=2.0 needs model.positions"),
        (
            ["positions.kind=rotary", "positions.scaling=llama3", "positions.scaling_long=4"],
            "scaling_long=4.0 is not below scaling_short=4.0",
        ),
    ],
)
def test_keys_that_do_not_go_together_are_one_line(keys, words):
    with pytest.raises(NeojaxError, match=words):
        from_dict({}, [f"model.{key}" for key in keys])
