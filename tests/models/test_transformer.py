"""The model equals an independent re-implementation, is causal, and does not depend on how it is computed."""

import re
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import N_VOCAB, layout_of, perturbed, random_tokens, tiny

from neojax.data.batch import Batch
from neojax.errors import NeojaxError
from neojax.models import Transformer
from neojax.models.compute import PRODUCTS, Compute, check_remat
from neojax.models.stack import smallest_pattern

CONFIG = tiny()
TOKENS = random_tokens(2)


@cache
def weights(config=CONFIG):
    return perturbed(Transformer(config).init(0).params())


def layer_params(params, config, i):
    """The parameters of layer i by their name within the block, whatever group they are stacked in."""
    group = len(smallest_pattern(config.attention_layers))
    prefix = f"blocks.{i % group}."
    return {n.removeprefix(prefix): p[i // group] for n, p in params.items() if n.startswith(prefix)}


def unstacked(params, config):
    """The same weights under the names of `stacked=False`."""
    flat = {n: p for n, p in params.items() if not n.startswith("blocks.")}
    for i in range(config.n_layer):
        flat |= {f"blocks.{i}.{n}": p for n, p in layer_params(params, config, i).items()}
    return flat


def loss_of(model, tokens=TOKENS, **kwargs):
    losses = model.loss(Batch(tokens[:, :-1], tokens[:, 1:]), **kwargs)
    total = losses.objective
    count = losses.scored
    return total / count


def value_and_grad(model, params, **kwargs):
    return jax.jit(jax.value_and_grad(lambda p: loss_of(model.bind(p), **kwargs)))(params)


def assert_same_gradients(a, b, tolerance=1e-5):
    assert a.keys() == b.keys()
    for name in a:
        x, y = np.asarray(a[name]), np.asarray(b[name])
        np.testing.assert_allclose(x, y, atol=tolerance * np.abs(y).max(), err_msg=name)


# An independent GPT-Neo in numpy, from its published description


def by_hand(config, params, tokens):
    p = {n: np.asarray(x, np.float64) for n, x in params.items()}

    def norm(x, scale, bias):
        mean = x.mean(-1, keepdims=True)
        return (x - mean) / np.sqrt(x.var(-1, keepdims=True) + config.norm.epsilon) * scale + bias

    def gelu_new(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    length = tokens.shape[1]
    x = p["wte"][tokens] + p["wpe"][:length]
    ago = np.arange(length)[:, None] - np.arange(length)[None]
    for i, kind in enumerate(config.attention_layers):
        w = layer_params(p, config, i)
        h = norm(x, w["norm_1.scale"], w["norm_1.bias"])
        q, k, v = (np.einsum("bse,ehd->bhsd", h, w[f"attn.{n}"]) for n in ("query", "key", "value"))
        scores = np.einsum("bhqd,bhkd->bhqk", q, k)  # not scaled
        seen = (ago >= 0) & (ago < (config.attention.window if kind == "local" else length))
        scores = np.where(seen, scores, -1e10)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        attended = np.einsum("bhqk,bhkd->bqhd", scores / scores.sum(-1, keepdims=True), v)
        x = x + np.einsum("bshd,hde->bse", attended, w["attn.out"]) + w["attn.out_bias"]
        h = norm(x, w["norm_2.scale"], w["norm_2.bias"])
        x = x + gelu_new(h @ w["mlp.up"] + w["mlp.up_bias"]) @ w["mlp.down"] + w["mlp.down_bias"]
    return norm(x, p["norm_f.scale"], p["norm_f.bias"]) @ p["wte"].T


def test_forward_pass_is_gpt_neo():
    logits = Transformer(CONFIG).bind(weights())(TOKENS)
    assert logits.dtype == jnp.float32
    expected = by_hand(CONFIG, weights(), TOKENS)
    assert expected.std() > 0.5  # not a comparison of zeros
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_parameters_of_the_published_shapes():
    """Three matrices without and one with bias in attention, two with bias in the MLP; an output tied to
    wte."""
    dims = Transformer(CONFIG).dims()
    per_block = {n.split(".", 2)[2] for n in dims if n.startswith("blocks.0")}
    assert per_block == {
        "attn.query",
        "attn.key",
        "attn.value",
        "attn.out",
        "attn.out_bias",
        "mlp.up",
        "mlp.up_bias",
        "mlp.down",
        "mlp.down_bias",
        "norm_1.scale",
        "norm_1.bias",
        "norm_2.scale",
        "norm_2.bias",
    }
    rest = {n for n in dims if not n.startswith("blocks")}
    assert rest == {"wte", "wpe", "norm_f.scale", "norm_f.bias"}
    assert dims["blocks.0.attn.query"] == ("layers", "embd", "heads", "head_dim")


# What a position sees


def sensitivity(config):
    """|d hidden[query] / d embedding[key]| > 0, as bool [query, key], through the blocks alone."""
    model = Transformer(config).bind(weights(config))
    length = config.n_ctx
    tokens = jnp.arange(length)[None] % N_VOCAB

    def hidden(wpe):
        out, _, _ = model.bind({**weights(config), "wpe": wpe}).hidden(tokens)
        return out[0]

    jacobian = jax.jit(jax.jacrev(hidden))(weights(config)["wpe"])  # query, embd, key, embd
    return np.asarray(jnp.abs(jacobian).sum((1, 3)) > 0)


@pytest.mark.parametrize("kinds, layers", [(("global",), 2), (("local",), 1), (("local",), 2)])
def test_gradients_flow_from_the_visible_keys_and_from_no_others(kinds, layers):
    config = tiny(n_layer=layers, attention_types=kinds, n_embd=8, n_head=2, n_ctx=12, window_size=4)
    ago = np.arange(12)[:, None] - np.arange(12)[None]
    # A local layer reaches back window - 1 positions; layers add up.
    reach = 11 if kinds == ("global",) else layers * 3
    np.testing.assert_array_equal(sensitivity(config), (ago >= 0) & (ago <= reach))


# How it is computed


@pytest.fixture(scope="module")
def plain():
    return value_and_grad(Transformer(CONFIG), weights())


@pytest.mark.parametrize("remat", ["full", "names", "offload"])
def test_remat_changes_nothing(remat, plain):
    loss, grads = value_and_grad(Transformer(CONFIG, compute=Compute(remat=remat)), weights())
    np.testing.assert_allclose(loss, plain[0], rtol=1e-6)
    assert_same_gradients(grads, plain[1])


def test_remat_saves_less():
    """What is kept for the backward pass: full < names < none."""
    kept = {}
    for remat in ("none", "names", "full"):
        model = Transformer(CONFIG, compute=Compute(remat=remat))
        _, pull = jax.vjp(lambda p, m=model: loss_of(m.bind(p)), weights())
        kept[remat] = sum(x.nbytes for x in jax.tree.leaves(pull))
    assert kept["full"] < kept["names"] < kept["none"], kept


def test_offload_moves_to_the_host_what_names_keeps():
    """Every product of the two layers of a group goes there in the forward pass and comes back in the
    other."""

    def moves(remat):
        model = Transformer(CONFIG, compute=Compute(remat=remat))
        program = jax.make_jaxpr(jax.grad(lambda p: loss_of(model.bind(p))))(weights())
        return str(program).count("device_put[")

    products = set(PRODUCTS) - {"mlp_gate"}
    assert moves("names") == 0
    assert moves("offload") == 2 * 2 * len(products)


def test_offload_is_refused_where_there_is_nowhere_to_go():
    class Chip:
        device_kind = "TinyChip"

        def addressable_memories(self):
            return [SimpleNamespace(kind="device")]

    mesh = SimpleNamespace(local_devices=[Chip()])
    with pytest.raises(NeojaxError, match=r"pinned_host memory, but TinyChip has only device; use .*names"):
        check_remat("offload", mesh)
    check_remat("names", mesh)
    check_remat("offload", layout_of("data:1").mesh)


def test_scanned_equals_unrolled(plain):
    model = Transformer(CONFIG, compute=Compute(stacked=False))
    loss, grads = value_and_grad(model, unstacked(weights(), CONFIG))
    np.testing.assert_allclose(loss, plain[0], rtol=1e-6)
    assert_same_gradients(grads, unstacked(plain[1], CONFIG))


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("unroll", [0, 2])
def test_turns_of_the_loop_that_do_several_repetitions_change_nothing(plain, unroll, remat):
    loss, grads = value_and_grad(Transformer(CONFIG, compute=Compute(unroll=unroll, remat=remat)), weights())
    np.testing.assert_allclose(loss, plain[0], rtol=1e-6)
    assert_same_gradients(grads, plain[1])


def test_one_group_that_does_not_repeat_is_unrolled():
    config = tiny(n_layer=3, attention_types=("global", "local", "local"))
    logits = Transformer(config).bind(weights(config))(TOKENS)
    np.testing.assert_allclose(logits, by_hand(config, weights(config), TOKENS), atol=1e-4)


def test_compiled_size_does_not_grow_with_depth():
    """The layers are scanned: 24 of them lower to the same text as 4, but for the sizes."""

    def text(n_layer):
        model = Transformer(tiny(n_layer=n_layer))
        return jax.jit(lambda p: loss_of(model.bind(p))).lower(model.stored()).as_text()

    assert len(text(24).splitlines()) == len(text(4).splitlines())


def test_bfloat16_compute_is_close_and_the_loss_is_float32(plain):
    model = Transformer(CONFIG, compute=Compute(dtype=jnp.bfloat16))
    losses = jax.jit(lambda p: model.bind(p).loss(Batch(TOKENS[:, :-1], TOKENS[:, 1:])))(weights())
    total = losses.objective
    nll = losses.nats
    count = losses.scored
    assert {x.dtype for x in (total, nll, count)} == {jnp.dtype("float32")}
    assert abs(nll / count - plain[0]) < 0.01 * plain[0]
    _, grads = value_and_grad(model, weights())
    assert {g.dtype for g in grads.values()} == {jnp.dtype("float32")}  # as the master weights
    assert_same_gradients(grads, plain[1], tolerance=0.1)
    text = jax.jit(lambda p: loss_of(model.bind(p))).lower(weights()).as_text()
    matmuls = re.findall(r"dot_general.*?\((tensor<\S+>), (tensor<\S+>)\)", text)
    assert len(matmuls) > 10
    assert all("bf16" in a and "bf16" in b for a, b in matmuls), matmuls


# Dropout

RATES = {"embed_dropout": 0.1, "attn_dropout": 0.2, "res_dropout": 0.15}


def dropped_loss(config, layout=None, key=0):
    model = Transformer(config, layout)
    params = {n: jax.device_put(np.asarray(p), model.stored()[n].sharding) for n, p in weights().items()}
    run = jax.jit(lambda p, k: loss_of(model.bind(p), random_tokens(4, 25), dropout_key=k))
    return float(run(params, jax.random.key(key)))


def test_dropout_depends_on_the_key_and_on_nothing_else():
    config = tiny(**RATES)
    first = dropped_loss(config)
    assert first == dropped_loss(config)
    assert first != dropped_loss(config, key=1)
    for shape, layout in [
        ("data:4", "batch:data"),
        ("data:2, model:2", "batch:data, heads:model, mlp:model"),
    ]:
        assert dropped_loss(config, layout_of(shape, layout)) == pytest.approx(first, rel=1e-5)


@pytest.mark.parametrize("name", RATES)
def test_each_rate_has_an_effect_and_remat_draws_the_same(name):
    config = tiny(**{name: 0.3})
    none = Transformer(tiny())
    without = float(jax.jit(lambda p: loss_of(none.bind(p), random_tokens(4, 25)))(weights()))
    dropped = dropped_loss(config)
    assert abs(dropped - without) > 1e-4
    key = jax.random.key(0)
    grads = [
        value_and_grad(Transformer(config, compute=Compute(remat=remat)), weights(), dropout_key=key)[1]
        for remat in ("none", "full")
    ]
    assert_same_gradients(*grads)


def test_layers_draw_different_dropout_and_unrolled_draws_the_same():
    config = tiny(**RATES)
    flat = Transformer(config, compute=Compute(stacked=False)).bind(unstacked(weights(), config))
    tokens = random_tokens(4, 25)
    key = jax.random.key(0)
    assert float(jax.jit(partial(loss_of, tokens=tokens, dropout_key=key))(flat)) == pytest.approx(
        dropped_loss(config), rel=1e-5
    )


def test_no_key_no_dropout(plain):
    loss, _ = value_and_grad(Transformer(tiny(**RATES)), weights())
    np.testing.assert_allclose(loss, plain[0], rtol=1e-6)


# Initial weights


def test_initial_weights_have_the_published_deviations():
    config = tiny(n_embd=256, n_head=8, n_ctx=512, n_vocab=1000, n_layer=2)
    params = Transformer(config).init(3).params()
    expected = {
        "wte": 0.02,
        "wpe": 0.01,
        "attn.query": 256**-0.5 * 32**-0.5,
        "attn.key": 256**-0.5,
        "attn.value": 256**-0.5,
        "attn.out": 256**-0.5,
        "mlp.up": 0.02,
        "mlp.down": 0.02,
    }
    for name, p in params.items():
        p = np.asarray(p)
        short = name.removeprefix("blocks.0.").removeprefix("blocks.1.")
        if short in expected:
            assert p.std() == pytest.approx(expected[short], rel=0.02), name
            assert abs(p.mean()) < 0.02 * p.std() + 4 * p.std() / p.size**0.5, name
            assert np.abs(p).max() > 3.5 * p.std(), name  # not truncated
        else:
            assert (p == (1 if name.endswith("scale") else 0)).all(), name
    assert not np.array_equal(params["blocks.0.attn.key"], params["blocks.1.attn.key"])
    again = Transformer(config).init(3).params()
    assert all(np.array_equal(params[n], again[n]) for n in params)
    other = Transformer(config).init(4).params()
    assert not np.array_equal(params["wte"], other["wte"])


@pytest.mark.parametrize(
    "key, up, down", [("scale_by_depth", 1, 4**-0.5), ("scale_by_in", 64**-0.5, 256**-0.5)]
)
def test_initial_scale_options(key, up, down):
    params = Transformer(tiny(n_embd=64, **{key: True})).init(0).params()
    assert np.std(params["blocks.0.mlp.up"]) == pytest.approx(0.02 * up, rel=0.03)
    assert np.std(params["blocks.0.mlp.down"]) == pytest.approx(0.02 * down, rel=0.03)


# The callable


@pytest.mark.parametrize("shape", [(1, 25), (4,)])
def test_tokens_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(NeojaxError, match="n_ctx=24"):
        Transformer(CONFIG).bind(weights())(np.zeros(shape, np.int32))


@pytest.mark.parametrize("token", [-1, N_VOCAB])
@pytest.mark.parametrize("kind", [list, np.asarray, jnp.asarray])
def test_ids_beyond_the_vocabulary_are_refused(kind, token):
    tokens = kind([[0, token]])
    with pytest.raises(NeojaxError, match=f"token {token} is not in the vocabulary, 0 to {N_VOCAB - 1}"):
        Transformer(CONFIG).bind(weights())(tokens)


def test_left_padding_shifts_positions():
    """A row that begins later gives the logits of the same tokens without padding, whatever the padding
    is."""
    from neojax.models.context import Context

    model = Transformer(CONFIG).bind(weights())
    short = TOKENS[:, :15]
    padded = np.concatenate([np.full((2, 5), 3, np.int32), short], axis=1)
    run = jax.jit(lambda m, t, s: m.logits(m.hidden(t, Context(start=s))[0]))
    out = run(model, padded, jnp.array([5, 5]))
    np.testing.assert_allclose(out[:, 5:], model(short), atol=2e-5)
