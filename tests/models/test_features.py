"""gpt-neo's options of the model: each against an independent numpy model, on every kind of layout, and
decoded."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import N_VOCAB, layout_of, perturbed, random_tokens, tiny

from neojax.config import ACTIVATIONS as NAMES
from neojax.data.batch import Batch
from neojax.errors import NeojaxError
from neojax.kernels.entmax import entmax, entmax_loss
from neojax.models import Transformer
from neojax.models.activations import ACTIVATIONS, LEARNED
from neojax.models.context import Context
from neojax.models.stack import smallest_pattern

TOKENS = random_tokens(4, 24)
FEATURES = {
    "rotary": {"rotary_emb": True},
    "axial": {"axial_pos_emb": (5, 6)},
    "memory": {"num_mem_kv": 3},
    "glu": {"mlp_glu": True, "n_inner": 40},
    "scalenorm": {"scalenorm": True},
    "rezero": {"rezero": True},
    "macaron": {"macaron": True},
    "shared": {"share_parameters": True, "num_mem_kv": 2},
    "untied": {"tie_word_embeddings": False},
    "linear": {"attention_types": ("linear", "global")},
    "none": {"attention_types": ("global", "none")},
    "none alone": {"attention_types": ("none",)},
    "bidirectional": {"causal": False},
    "bidirectional linear": {"causal": False, "attention_types": ("linear", "local")},
    "rotary and linear": {"rotary_emb": True, "attention_types": ("linear",)},
}
# Combinations that have every feature once, so that each is seen on every layout without compiling them all.
TOGETHER = {
    "rotary, memory, linear, glu": {
        "rotary_emb": True,
        "num_mem_kv": 3,
        "mlp_glu": True,
        "scalenorm": True,
        "activation_function": "aria",
        "attention_types": ("global", "linear"),
    },
    "axial, rezero, macaron, none, shared, untied": {
        "axial_pos_emb": (4, 6),
        "rezero": True,
        "macaron": True,
        "share_parameters": True,
        "tie_word_embeddings": False,
        "attention_types": ("local", "none"),
    },
    "bidirectional": {"causal": False, "attention_types": ("global", "local", "linear", "local")},
}
LAYOUTS = {
    "model and fsdp": ("x:2, y:4", "batch:x, heads:y, mlp:y, vocab:y", "embd:x"),
    "gpt-neo XL": ("x:4, y:2", "batch:x, memory_length:y, embd:y", ""),
    "sequence": ("x:2, y:4", "batch:x, sequence:y", ""),
    "head_dim": ("x:2, y:4", "batch:x, features_per_head:y, intermediate_expanded:y", ""),
}


@cache
def weights(name):
    config = tiny(**{**FEATURES, **TOGETHER}[name])
    return config, {n: np.asarray(p) for n, p in perturbed(Transformer(config).init(0).params()).items()}


# An independent model in numpy


def by_hand(config, params, tokens):
    p = {n: np.asarray(x, np.float64) for n, x in params.items()}
    pattern = smallest_pattern(config.attention_layers)
    heads, length = config.attention.heads, tokens.shape[1]
    time = np.arange(length)

    def layer(i):
        if config.share_parameters:
            return {n.removeprefix("blocks.0."): x for n, x in p.items() if n.startswith("blocks.0.")}
        group = f"blocks.{i % len(pattern)}."
        return {n.removeprefix(group): x[i // len(pattern)] for n, x in p.items() if n.startswith(group)}

    def norm(x, w, name):
        if config.norm.kind == "rezero" and name != "norm_f":
            return x
        y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config.norm.epsilon)
        return y * w[f"{name}.scale"] + w.get(f"{name}.bias", 0.0)

    def act(x, w, name):
        if config.mlp.activation == "aria":
            a, k, c, q, b, nu = (w[f"{name}.curve.{n}"] for n in ("a", "k", "c", "q", "b", "nu"))
            return x * (a + k / (np.log1p(np.exp(c)) + q * np.exp(b * x) ** (1 / (np.log1p(np.exp(nu)) + 1))))
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def mlp(x, w, name):
        up = x @ w[f"{name}.up"] + w[f"{name}.up_bias"]
        gate = x @ w[f"{name}.gate"] + w[f"{name}.gate_bias"] if config.mlp.gated else None
        hidden = act(up, w, name) if gate is None else up * act(gate, w, name)
        return hidden @ w[f"{name}.down"] + w[f"{name}.down_bias"]

    def turn(x):  # pairs (i, i + half) as complex numbers
        half = x.shape[-1] // 2
        angle = time[:, None] / 10000 ** (np.arange(half) * 2 / (2 * half))
        z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
        return np.concatenate([z.real, z.imag], -1)

    def attend(x, w, kind):
        q, k, v = (np.einsum("bse,ehd->bhsd", x, w[f"attn.{n}"]) for n in ("query", "key", "value"))
        if config.positions.kind == "rotary":
            q, k = turn(q), turn(k)
        ago = time[:, None] - time
        if kind == "linear":
            q = np.exp(q) / np.exp(q).sum(-1, keepdims=True)
            if config.causal:  # one denominator a query
                weights = np.where(ago >= 0, np.einsum("bhqd,bhkd->bhqk", q, np.exp(k)), 0.0)
                share = weights / (weights.sum(-1, keepdims=True) + 1e-6)
            else:  # one a feature
                share = np.einsum("bhqd,bhkd->bhqk", q, np.exp(k) / np.exp(k).sum(2, keepdims=True))
            out = share @ v
        else:
            reach = config.attention.window if kind == "local" else length
            seen = ((ago >= 0) & (ago < reach)) if config.causal else abs(ago) <= reach
            scores = np.where(seen, np.einsum("bhqd,bhkd->bhqk", q, k), -np.inf)
            if config.attention.memory_slots and kind == "global":
                own = np.einsum("bhqd,mhd->bhqm", q, w["attn.memory_key"])
                scores = np.concatenate([own, scores], -1)
                extra = np.broadcast_to(
                    w["attn.memory_value"].transpose(1, 0, 2), (len(x), heads, *own.shape[-1:], v.shape[-1])
                )
                v = np.concatenate([extra, v], 2)
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            out = np.einsum("bhqk,bhkd->bhqd", scores / scores.sum(-1, keepdims=True), v)
        return np.einsum("bhsd,hde->bse", out, w["attn.out"]) + w["attn.out_bias"]

    x = p["wte"][tokens]
    if config.positions.kind == "axial":
        rows, columns = p["wpe.row"], p["wpe.column"]
        x = x + np.stack([(rows[t // len(columns)] + columns[t % len(columns)]) / 2 for t in time])
    elif config.positions.kind != "rotary":
        x = x + p["wpe"][:length]
    weight = 0.5 if config.mlp.macaron else 1
    for i, kind in enumerate(config.attention_layers):
        w = layer(i)
        gates = (
            [w["gate_1.scale"] if kind != "none" else 0, w["gate_2.scale"]]
            if config.norm.kind == "rezero"
            else [1, 1]
        )
        if config.mlp.macaron:
            x = x + 0.5 * mlp(x, w, "mlp_macaron")
        if kind != "none":
            x = x + gates[0] * attend(norm(x, w, "norm_1"), w, kind)
        x = x + gates[1] * weight * mlp(norm(x, w, "norm_2"), w, "mlp")
    return norm(x, p, "norm_f") @ p["wte" if config.embedding.tied else "lm_head"].T


@pytest.mark.parametrize("name", [*FEATURES, *TOGETHER])
def test_forward_pass_is_the_definition(name):
    config, params = weights(name)
    logits = Transformer(config).bind(params)(TOKENS)
    expected = by_hand(config, params, TOKENS)
    assert expected.std() > 0.3  # not a comparison of zeros
    np.testing.assert_allclose(logits, expected, atol=2e-4 * expected.std() * 10)


def test_shared_weights_are_one_block_without_a_layer_dimension():
    _config, params = weights("shared")
    block = [n for n in params if n.startswith("blocks.")]
    assert all(n.startswith("blocks.0.") for n in block)
    assert params["blocks.0.mlp.up"].shape == (32, 128)
    once = Transformer(tiny(n_layer=1, attention_types=("global",), num_mem_kv=2))
    assert {n: p.shape[1:] for n, p in once.params().items() if n in block} == {
        n: params[n].shape for n in block
    }


def test_a_layer_without_attention_has_no_weights_for_it():
    assert not [n for n in weights("none alone")[1] if "attn" in n or "norm_1" in n]


# The same on every layout


@cache
def measured(name, layout):
    config, params = weights(name)
    model = Transformer(config, layout_of(*LAYOUTS[layout]) if layout else None)
    specs = model.stored()
    padded = {}
    for n, p in params.items():
        extra = specs[n].shape[0] - len(p) if p.ndim else 0
        p = np.pad(p, [(0, extra)] + [(0, 0)] * (p.ndim - 1)) if extra else p
        padded[n] = jax.device_put(p, specs[n].sharding)

    def loss(p):
        losses = model.bind(p).loss(Batch(TOKENS[:, :16], TOKENS[:, 1:17]))
        nll = losses.nats
        scored = losses.scored
        return nll / scored

    with jax.set_mesh(model.layout.mesh):
        value, grads = jax.jit(jax.value_and_grad(loss))(padded)
    return float(value), {
        n: np.asarray(g)[:N_VOCAB] if "vocab" in model.dims()[n] else np.asarray(g) for n, g in grads.items()
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TOGETHER)
def test_loss_and_gradients_do_not_depend_on_the_layout(name, layout):
    loss, grads = measured(name, layout)
    expected_loss, expected = measured(name, None)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for n, g in expected.items():
        np.testing.assert_allclose(grads[n], g, atol=3e-5 * max(np.abs(g).max(), 1e-3), err_msg=n)


def test_chunks_of_linear_attention_are_the_definition():
    from neojax.kernels import linear_attention as linear
    from neojax.layout import named
    from neojax.layout.mesh import single_device

    q, k, v = (
        jnp.asarray(np.random.default_rng(i).normal(size=(2, 300, 2, 4)), jnp.float32) for i in range(3)
    )
    with named.use_layout(single_device()):
        chunked, state = linear.attention(q, k, v, start=jnp.array([0, 7]))
        f, g = linear.features(q, k)
        g = jnp.where((jnp.arange(300) >= jnp.array([0, 7])[:, None])[:, :, None, None], g, 0)
        other = linear.sums(g, v)
    weights = jnp.tril(jnp.einsum("bihd,bjhd->bhij", f, g))
    weights = weights / (weights.sum(-1, keepdims=True) + linear.EPSILON)
    np.testing.assert_allclose(chunked, jnp.einsum("bhij,bjhe->bihe", weights, v), atol=1e-4)
    for a, b in zip(state, other):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "size, causal", [(0, True), (60, True), (0, False), (60, False), (100, False), (-110, False)]
)
def test_linear_attention_and_its_gradients_are_exact_for_keys_of_any_size(size, causal):
    """Without a mask, of any size that a softmax has; with it, of those whose exponentials float32 holds."""
    from neojax.kernels import linear_attention as linear
    from neojax.layout import named
    from neojax.layout.mesh import single_device

    q, k, v, g = np.random.default_rng(0).normal(size=(4, 2, 30, 2, 4)).astype("f4")
    k += np.float32(size)
    start = np.array([0, 7])
    present = (np.arange(30) >= start[:, None])[:, :, None, None]
    g *= present  # what padding looks at is nobody's

    def exact(q, k, v):
        """With k less a number for all, which but for the epsilon cancels."""
        q, k = jax.nn.softmax(q, -1), present * jnp.exp(k - size)
        if not causal:
            k = k / k.sum(1, keepdims=True)
        scores = jnp.einsum("bihd,bjhd->bhij", q, k)
        if causal:
            scores = jnp.tril(scores)
            scores = scores / (scores.sum(-1, keepdims=True) + 1e-6 * np.exp(-float(size)))
        return jnp.sum(jnp.einsum("bhij,bjhe->bihe", scores, v) * g)

    def ours(q, k, v):
        y, _ = linear.attention(q, k, v, start=jnp.asarray(start), causal=causal)
        return jnp.sum(y * g)

    with jax.enable_x64(True):
        expected = jax.value_and_grad(exact, (0, 1, 2))(*(jnp.asarray(x, "f8") for x in (q, k, v)))
    with named.use_layout(single_device()):
        found = jax.jit(jax.value_and_grad(ours, (0, 1, 2)))(q, k, v)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, atol=3e-5 * np.abs(b).max())


# Decoding


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("name", ["memory", "axial", "shared", "rotary, memory, linear, glu", "none"])
def test_decoding_with_a_cache_gives_the_logits_of_whole_rows(name, padding):
    config, params = weights(name)
    model = Transformer(config).bind(params)
    tokens = TOKENS[:, : 24 - padding]
    expected = np.asarray(model(tokens))
    rows = jnp.asarray(np.pad(tokens, ((0, 0), (padding, 0))))
    start = jnp.full((4,), padding) if padding else None
    slots = {"global": 24, "local": config.attention.window}

    @jax.jit
    def prefill(m, t):
        hidden, caches, _ = m.hidden(t, Context(start, slots=slots))
        return m.logits(hidden), caches

    @jax.jit
    def decode(m, t, time, caches):
        hidden, caches, _ = m.hidden(t, Context(start, time, slots), caches)
        return m.logits(hidden), caches

    first, caches = prefill(model, rows[:, :10])
    out = [np.asarray(first)[:, padding:]]
    for time in range(10, 24):
        step, caches = decode(model, rows[:, time : time + 1], jnp.int32(time), caches)
        out.append(np.asarray(step))
    np.testing.assert_allclose(np.concatenate(out, 1), expected, atol=1e-4 * max(1, expected.std()))


def test_a_model_of_masked_tokens_does_not_generate():
    config, params = weights("bidirectional")
    with pytest.raises(NeojaxError, match="causal"):
        Transformer(config).bind(params).hidden(
            jnp.asarray(TOKENS), Context(slots={"global": 24, "local": 7})
        )


# Activations


def test_every_configured_activation_is_there():
    assert set(NAMES) == set(ACTIVATIONS)


def test_activations_are_their_definitions():
    x = np.linspace(-4, 4, 41)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    softplus = np.log1p(np.exp(x))
    zero = np.log(2)  # softplus of 0, at which most learned scalars begin
    expected = {
        "relu": np.maximum(x, 0),
        "sigmoid": sigmoid(x),
        "silu": x * sigmoid(x),
        "selu": 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
        "elu": np.where(x > 0, x, np.expm1(x)),
        "softplus": softplus,
        "lrelu001": np.where(x > 0, x, 0.01 * x),
        "lrelu020": np.where(x > 0, x, 0.2 * x),
        "elish": np.where(x > 0, x / (1 + np.exp(-x)), np.expm1(x) / (1 + np.exp(-x))),
        "arcsinh": np.log(x + np.sqrt(1 + x**2)),
        "mish": x * np.tanh(softplus),
        "softsign": x / (1 + abs(x)),
        "bipolarsigmoid": 2 * sigmoid(x) - 1,
        "roottanh": (x**2 + 1) ** (1 / 3) * np.tanh(x),
        "seagull": np.log(1 + x**2),
        "tanhshrink": x - np.tanh(x),
        "sign": np.sign(x),
        "spike": 1 / (1 + x**2),
        "spike2": np.exp(-(x**2)),
        "snake": x + np.sin(x) ** 2,
        "softmax": np.exp(x) / np.exp(x).sum(),
        "logsoftmax": x - np.log(np.exp(x).sum()),
        "aria": x / (zero + np.exp(-x) ** (1 / (zero + 1))),
        "prelu": np.where(x > 0, x, 0.2 * x),
        "parcsinh": np.arcsinh((zero + 1) * x),
        "psoftplus": softplus,
        "proottanh": (abs(x) ** (zero + 2) + zero + 1) ** (1 / (zero + 3)) * np.tanh(x),
        "rrelu": np.where(x > 0, x, x * 0.38629436),
    }
    for name, y in expected.items():
        ours = ACTIVATIONS[name](jnp.asarray(x, jnp.float32), **LEARNED.get(name, {}))
        np.testing.assert_allclose(ours, y, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("name", LEARNED)
def test_every_scalar_of_an_activation_is_learned(name):
    x = jnp.linspace(-3, 3, 13)  # zero is among them, where a power has no logarithm
    values = {n: jnp.float32(v) for n, v in LEARNED[name].items()}
    grads = jax.grad(lambda v: jnp.sum(ACTIVATIONS[name](x, **v) * jnp.cos(x + 1)))(values)
    assert all(np.isfinite(g) and g != 0 for g in grads.values()), grads


@pytest.mark.parametrize("name", NAMES)
def test_every_activation_is_finite_far_out(name):
    x = jnp.array([-60.0, -1.0, 0.0, 1.0, 60.0])
    assert np.isfinite(ACTIVATIONS[name](x, **LEARNED.get(name, {}))).all() or name == "tanhexp"


# Entmax


def test_entmax_is_a_sparse_distribution_that_solves_its_equation():
    z = np.random.default_rng(0).normal(size=(5, 60)).astype("f4") * 3
    p = np.asarray(entmax(jnp.asarray(z)))
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-6)
    assert ((p == 0).sum(-1) > 20).all() and (np.argmax(p, -1) == np.argmax(z, -1)).all()
    for row, q in zip(z, p):  # (alpha - 1) z - p ** (alpha - 1) is the same threshold wherever p > 0
        threshold = 0.3 * row[q > 1e-6] - q[q > 1e-6] ** 0.3
        np.testing.assert_allclose(threshold, threshold[0], atol=1e-4)
        assert (0.3 * row[q == 0] <= threshold[0] + 1e-4).all()


def test_entmax_loss_is_convex_zero_at_certainty_and_has_the_stated_gradient():
    z = jnp.asarray(np.random.default_rng(1).normal(size=20) * 2, jnp.float32)
    value, grad = jax.value_and_grad(lambda z: entmax_loss(z, z[4]))(z)
    np.testing.assert_allclose(grad, np.asarray(entmax(z)) - np.eye(20)[4], atol=1e-6)
    step = np.random.default_rng(2).normal(size=20).astype("f4") * 1e-2
    numeric = (entmax_loss(z + step, (z + step)[4]) - entmax_loss(z - step, (z - step)[4])) / 2
    assert float(numeric) == pytest.approx(float(step @ np.asarray(grad)), rel=2e-2)
    certain = jnp.zeros(20).at[4].set(40.0)
    assert float(entmax_loss(certain, certain[4])) == pytest.approx(0, abs=1e-6)
    assert float(value) > 0
    assert np.isfinite(float(entmax_loss(certain, certain[5])))  # a target without probability


def test_entmax_loss_of_a_split_padded_vocabulary():
    config = tiny(n_layer=1, attention_types=("global",))
    values = []
    for layout in (None, layout_of("x:2, y:4", "batch:x, vocab:y")):
        model = Transformer(config, layout).init(0)
        losses = jax.jit(lambda m: m.loss(Batch(TOKENS[:, :-1], TOKENS[:, 1:]), entmax=True))(model)
        total = losses.objective
        nll = losses.nats
        scored = losses.scored
        assert float(total) == float(nll)
        values.append(float(nll / scored))
    assert values[0] == pytest.approx(values[1], rel=1e-5)
